"""validate.py: other sizes and crops, test-time flip, folded and re-estimated batch norms."""
import json
from collections import Counter

import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from mobilenetv3 import checkpoint, create_model, data, device, engine, models, recalibrate
from mobilenetv3.data import transforms as own_transforms

FAMILIES = ("mobilenetv3_small_050", "tf_mobilenetv3_small_minimal_100", "mobilenetv2_035",
            "dli14_mobilenetv3_small_075", "xiaolai2023_mobilenetv3_small",
            "xiaolai2019old_mobilenetv3_small")


def network(arch, seed=0):
    """A network of random weights whose batch norms have something to do."""
    torch.manual_seed(seed)
    model = create_model(arch, num_classes=3).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.running_mean.normal_(0, 0.2)
                module.running_var.uniform_(0.5, 2.0)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
        for parameter in list(model.parameters())[-2:-1]:  # the classifier's: answers that differ
            parameter.normal_(0, 0.5)
    return model


def save(path, model, **prepare):
    checkpoint.save(path, {
        "arch": model.config["arch"], "model": model.config, "classes": ["a", "b", "c"],
        "state_dict": model.state_dict(), "state_dict_ema": None,
        "config": dict({"img_size": 32, "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.25] * 3},
                       **prepare)})


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """24 photographs' worth of noise in three classes, twice: train and val. None is square."""
    root = tmp_path_factory.mktemp("set")
    torch.manual_seed(3)
    for split in ("train", "val"):
        for number in range(24):
            place = root / split / "abc"[number % 3]
            place.mkdir(parents=True, exist_ok=True)
            small = torch.randint(0, 256, (9, 7, 3), dtype=torch.uint8).numpy()
            Image.fromarray(small).resize((90, 110)).save(str(place / f"{number}.png"))
    return root


def plain(folder, model, size, crop_pct, flip=False, split="val"):
    """(correct, loss) over a split, without this package's code."""
    images = datasets.ImageFolder(str(folder / split), transforms.Compose([
        transforms.Resize(int(size / crop_pct)), transforms.CenterCrop(size),
        transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.25] * 3)]))
    batch, targets = torch.stack([image for image, _ in images]), torch.tensor(images.targets)
    with torch.no_grad():
        shares = model(batch).double().softmax(1)
        if flip:
            shares = (shares + model(torch.flip(batch, [3])).double().softmax(1)) / 2
    loss = -shares[torch.arange(len(targets)), targets].log().mean()
    return int((shares.argmax(1) == targets).sum()), loss.item()


@pytest.fixture
def scored(validate, tmp_path):
    """scored(arguments...) -> the figures of one file, as JSON has them."""
    def run(*arguments):
        validate(*arguments, "--json", tmp_path / "scores.json", "--force")
        return json.loads((tmp_path / "scores.json").read_text())["results"][0]
    return run


@pytest.mark.parametrize("size, crop_pct", [(40, 0.95), (72, 0.875)])
@pytest.mark.parametrize("arch", FAMILIES)
def test_every_family_is_scored_at_other_sizes_and_crops(
        arch, size, crop_pct, folder, scored, tmp_path, monkeypatch):
    seen, evaluate = [], engine.evaluate

    def watched(model, loader, *others):
        seen.append(tuple(next(iter(loader))[0].shape))
        return evaluate(model, loader, *others)
    monkeypatch.setattr(engine, "evaluate", watched)
    model = network(arch)
    save(tmp_path / "w.pth", model)
    found = scored(folder, "--ckpt_path", tmp_path / "w.pth", "--img_size", size, "--crop_pct",
                   crop_pct)
    correct, loss = plain(folder, model, size, crop_pct)
    assert (found["correct1"], found["images"]) == (correct, 24)
    assert found["loss"] == pytest.approx(loss, rel=1e-4)
    assert found["prepare"]["img_size"] == size
    assert seen == [(24, 3, size, size)]


def test_the_mirror_images_probabilities_count_as_much(folder, scored, tmp_path):
    model = network("mobilenetv3_small_050", seed=1)
    with torch.no_grad():
        model.classifier.weight.mul_(20)  # so sure of itself that a mirror image matters
    save(tmp_path / "w.pth", model)
    found = scored(folder, "--ckpt_path", tmp_path / "w.pth", "--tta_flip")
    correct, loss = plain(folder, model, 32, 1.0, flip=True)
    assert (found["correct1"], found["loss"]) == (correct, pytest.approx(loss, rel=1e-4))
    assert loss != pytest.approx(plain(folder, model, 32, 1.0)[1], rel=3e-4)
    assert "mean probabilities of each image and its mirror image" in found["notes"]
    # mmpretrain's users type it so.
    assert scored(folder, "--ckpt_path", tmp_path / "w.pth", "--tta")["loss"] == found["loss"]


def test_folded_batch_norms_change_rounding_alone_and_can_be_left(
        folder, scored, tmp_path, monkeypatch):
    model = network("mobilenetv3_small_050")
    save(tmp_path / "w.pth", model)
    seen, fuse = [], models.fuse_conv_bn
    monkeypatch.setattr(models, "fuse_conv_bn", lambda model: seen.append(fuse(model)) or seen[-1])
    folded = scored(folder, "--ckpt_path", tmp_path / "w.pth")
    norm, conv = torch.nn.BatchNorm2d, torch.nn.Conv2d
    kinds = Counter(kind for module in seen[0].modules() for kind in (norm, conv)
                    if isinstance(module, kind))
    assert kinds[norm] == 0 and kinds[conv] > 30  # all of them
    plain_one = scored(folder, "--ckpt_path", tmp_path / "w.pth", "--fuse_bn=false")
    assert len(seen) == 1
    assert folded["loss"] == pytest.approx(plain_one["loss"], rel=1e-4)
    assert folded["correct1"] == plain_one["correct1"]
    images = torch.randn(4, 3, 64, 64)
    with torch.no_grad():  # logits of size 1: the tolerance is a fraction of them
        assert (seen[0](images) - model(images)).abs().max() < 1e-4 * model(images).abs().max()


# ----------------------------------------------------------------------------- batch norms anew


class Plain:
    """Stands for a precision: computes as the model is."""

    @staticmethod
    def forward(model, images):
        return model(images)


def test_statistics_are_the_mean_over_batches_and_nothing_else_changes():
    model = network("mobilenetv3_small_050")
    for module in model.modules():  # what would make two passes differ
        if hasattr(module, "drop_prob"):
            module.drop_prob = 0.5
    before = {name: value.clone() for name, value in model.named_parameters()}
    momenta = [m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    batches = [(torch.randn(6, 3, 32, 32) + shift, None) for shift in range(3)]
    count = recalibrate.recalibrate(model, batches, Plain())
    assert count == len(momenta)
    with torch.no_grad():
        stems = [model.conv_stem(images) for images, _ in batches]
    mean = torch.stack([stem.mean((0, 2, 3)) for stem in stems]).mean(0)
    var = torch.stack([stem.transpose(0, 1).flatten(1).var(1) for stem in stems]).mean(0)
    assert torch.allclose(model.bn1.running_mean, mean, atol=1e-5)
    assert torch.allclose(model.bn1.running_var, var, rtol=1e-4)
    assert not any(module.training for module in model.modules())
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == momenta
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    with pytest.raises(ValueError, match="no batch norms"):
        recalibrate.recalibrate(torch.nn.Conv2d(3, 3, 1), batches, Plain())


def test_two_ranks_agree_and_the_file_that_is_saved_needs_no_options(
        launched, scored, folder, tmp_path):
    model = network("mobilenetv3_small_050")
    save(tmp_path / "w.pth", model)
    bytes_before = (tmp_path / "w.pth").read_bytes()
    result = launched(
        2, "validate.py", folder, "--ckpt_path", tmp_path / "w.pth", "--device", "cpu",
        "--workers", 0, "--batch_size", 8, "--recalibrate_bn", 20, "--img_size", 40, "--save",
        tmp_path / "new.pth.tar", "--json", tmp_path / "two.json")
    assert result.status == 0, result.err
    # 20 images are two whole batches of 8: four of 4 images, two on each rank.
    assert "estimated anew over 16 images of train" in result.out
    written = json.loads((tmp_path / "two.json").read_text())["results"][0]
    assert (tmp_path / "w.pth").read_bytes() == bytes_before

    def batches(rank):
        loader = data.train_loader(
            data.open_source("folder", str(folder), "train"), device.select("cpu"), rank=rank,
            world=2, batch_size=8, workers=0, seed=42, mean=[0.5] * 3, std=[0.25] * 3,
            transform=own_transforms.val_transform(40, 1.0))
        return [images for _, (images, _) in zip(range(2), loader)]
    four = batches(0) + batches(1)
    assert len(torch.unique(torch.cat(four).flatten(1), dim=0)) == 16  # no image twice
    with torch.no_grad():
        mean = torch.stack([model.conv_stem(images).mean((0, 2, 3)) for images in four]).mean(0)
    new = checkpoint.load(tmp_path / "new.pth.tar")
    assert torch.allclose(new["state_dict"]["bn1.running_mean"], mean, atol=1e-5)
    assert torch.equal(new["state_dict"]["conv_stem.weight"], model.conv_stem.weight)
    assert new["config"]["img_size"] == 40
    found = scored(folder, "--ckpt_path", tmp_path / "new.pth.tar")
    assert found["loss"] == pytest.approx(written["loss"], rel=1e-5)
    assert found["loss"] != pytest.approx(
        scored(folder, "--ckpt_path", tmp_path / "w.pth", "--img_size", 40)["loss"], rel=1e-3)


@pytest.mark.parametrize("words, message", [
    (["--save", "x.pth"], "--save x.pth is for the weights of --recalibrate_bn IMAGES"),
    (["--recalibrate_bn", "9", "--save", "x.ckpt"], "x.ckpt: expected a name that ends in .pth"),
    (["b.pth", "--recalibrate_bn", "9", "--save", "x.pth"], "--ckpt_path names 2; give one"),
    (["--fuse_bn", "--apex"], "--fuse_bn is for float32"),
])
def test_what_cannot_be_scored_so_is_told(validate, words, message, capsys):
    with pytest.raises(SystemExit):
        validate("--ckpt_path", "a.pth", *words)
    assert message in capsys.readouterr().err


def test_batches_too_small_or_too_large_for_statistics_are_refused(validate, folder, tmp_path):
    save(tmp_path / "w.pth", network("mobilenetv3_small_050"))
    for size in (1, 25):
        with pytest.raises(ValueError, match=f"batches of {size} images .* the 24 of train"):
            validate(folder, "--ckpt_path", tmp_path / "w.pth", "--recalibrate_bn", 8,
                     "--batch_size", size)
