"""Distillation: the loss against its definition, and teachers of every kind."""
import copy
import math

import pytest
import timm
import torch
from torch import nn

from mobilenetv3 import (
    build,
    checkpoint,
    config,
    data,
    device,
    distill,
    engine,
    metrics,
    models,
    optim,
    options,
)
from mobilenetv3.precision import create_precision

CPU = device.select("cpu")
O0 = create_precision("O0", CPU)
MEAN, STD = data.IMAGENET_MEAN, data.IMAGENET_STD


def parse(*argv):
    return config.parse(options.train_parser(), ["DIR", *map(str, argv)])


class Fixed(nn.Module):
    """Gives logits that depend on the mean colour alone, or on nothing."""

    def __init__(self, logits=None):
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.dropout = nn.Dropout(0.5)
        self.logits = logits

    def forward(self, images):
        if self.logits is not None:
            return self.logits
        return self.dropout(self.layer(images.mean((2, 3))))


def teacher(model, mean=MEAN, std=STD, precision=O0, classes=None):
    return distill.Teacher(distill.Found("T", model, mean, std, classes), precision, MEAN, STD,
                           CPU.torch_device)


@pytest.mark.parametrize("soft_targets", [False, True], ids=["labels", "mixed"])
def test_the_loss_is_hintons_by_hand(soft_targets):
    ours, theirs = [2.0, 0.0, -1.0], [0.5, 1.5, 0.0]
    alpha, temperature = 0.3, 4.0

    def softmax(logits, t):
        powers = [math.exp(value / t) for value in logits]
        return [power / sum(powers) for power in powers]
    kl = sum(p * math.log(p / q)
             for p, q in zip(softmax(theirs, temperature), softmax(ours, temperature)))
    targets = [0.75, 0.25, 0.0] if soft_targets else [1.0, 0.0, 0.0]
    hard = -sum(t * math.log(q) for t, q in zip(targets, softmax(ours, 1.0)))
    expected = (1 - alpha) * hard + alpha * temperature ** 2 * kl

    loss = distill.DistillationLoss(optim.create_criterion(0.0, soft_targets),
                                    teacher(Fixed(torch.tensor([theirs] * 2))), alpha, temperature)
    loss.see(torch.zeros(2, 3, 8, 8))
    target = torch.tensor([targets] * 2) if soft_targets else torch.tensor([0, 0])
    found = loss(torch.tensor([ours] * 2), target)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_a_student_that_answers_as_its_teacher_has_the_labels_loss_alone():
    logits = torch.randn(4, 3)
    loss = distill.DistillationLoss(nn.CrossEntropyLoss(), teacher(Fixed(logits)), 0.5, 3.0)
    loss.see(torch.zeros(4, 3, 8, 8))
    labels = torch.tensor([0, 1, 2, 0])
    expected = 0.5 * nn.functional.cross_entropy(logits, labels)
    assert loss(logits, labels).item() == pytest.approx(expected.item(), abs=1e-6)


def test_the_teacher_stays_as_it_is_and_sees_the_images_of_the_batch():
    model = Fixed()
    kept = copy.deepcopy(model.state_dict())
    taught = teacher(model)
    images = torch.rand(4, 3, 8, 8, requires_grad=True)
    answer = taught(images)
    assert not answer.requires_grad and torch.equal(answer, taught(images))  # no dropout
    assert torch.allclose(answer, model.layer(images.mean((2, 3))))
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in taught.model.parameters())


def test_a_teacher_of_another_normalisation_sees_the_pixels_it_was_trained_with():
    mean, std = (0.5, 0.4, 0.3), (0.5, 0.25, 0.2)
    pixels = torch.rand(2, 3, 8, 8)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    model = Fixed()
    expected = teacher(model)(normalised(mean, std))
    assert torch.allclose(teacher(model, mean, std)(normalised(MEAN, STD)), expected, atol=1e-5)


@pytest.mark.skipif(device.TORCH_VERSION < (2, 1), reason="no half precision on the CPU before 2.1")
@pytest.mark.parametrize("level, dtype", [("O1", torch.float32), ("O2", torch.bfloat16)])
def test_the_teacher_computes_in_the_precision_of_the_run(level, dtype):
    precision = create_precision(level, CPU)
    found, seen = teacher(Fixed(), precision=precision), []
    layer = found.model.layer
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    answer = found(torch.rand(2, 3, 8, 8))
    assert layer.weight.dtype == dtype
    assert seen == [torch.bfloat16] and answer.dtype == torch.float32


@pytest.mark.parametrize("model, sides, told", [
    (Fixed(), [32], "T has 3 classes, and this run has 10"),
    (nn.Conv2d(3, 10, 1), [32], "T has no class scores, and this run has 10"),
    (nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, 10)), [32, 40],
     "does not take training images of 40x40"),
    (Fixed(torch.full((2, 10), float("inf"))), [32], "answers a blank image with numbers that are "
     "not finite, in O0 float32"),
], ids=["classes", "no classifier", "size", "not finite"])
def test_a_teacher_that_does_not_suit_the_run_is_refused_before_it_begins(model, sides, told):
    with pytest.raises(ValueError, match=told):
        teacher(model).check(sides, 10, CPU.torch_device)


def test_the_classes_are_compared_by_name_where_both_have_names():
    own = ["cat", "dog", "eel"]
    assert len(teacher(Fixed(), classes=own).notes(0.5, 1.0, own)) == 1
    _, odd = teacher(Fixed(), classes=["n01", "n02", "n03"]).notes(0.5, 1.0, own)
    assert "taken to be in the same order" in odd
    with pytest.raises(ValueError, match="or the same in another order"):
        teacher(Fixed(), classes=["dog", "cat", "eel"]).notes(0.5, 1.0, own)


# ------------------------------------------------------------------------------- where it is from


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Weights of this package, and of a network that only timm has."""
    folder = tmp_path_factory.mktemp("teachers")
    torch.manual_seed(0)
    own = models.create_model("mobilenetv3_small_050", num_classes=10)
    checkpoint.save(folder / "own.pth.tar", {
        "model": own.config, "state_dict": own.state_dict(), "classes": list("0123456789"),
        "config": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}})
    theirs = timm.create_model("resnet10t", num_classes=10)
    averaged = {"module." + name: value for name, value in theirs.state_dict().items()}
    checkpoint.save(folder / "timm.pth.tar", {"state_dict": {"x.weight": torch.zeros(1)},
                                              "state_dict_ema": averaged, "arch": "resnet10t"})
    checkpoint.save(folder / "deit.pth", {"model": theirs.state_dict(), "epoch": 3})
    return folder, own.eval(), theirs.eval()


def test_a_checkpoint_of_a_family_is_a_teacher_as_it_is(files):
    folder, own, _ = files
    found = distill.find(str(folder / "own.pth.tar"), "", 10)
    assert (found.mean, found.std) == ([0.5] * 3, [0.25] * 3)
    assert found.classes == list("0123456789") and "mobilenetv3_small_050" in found.title
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.model(images), own(images))
    by_name = distill.find("mobilenetv3_small_050", str(folder / "own.pth.tar"), 10)
    assert torch.equal(by_name.model(images), own(images))


@pytest.mark.parametrize("name", ["timm.pth.tar", "deit.pth"])
def test_a_network_that_timm_has_takes_its_weights_from_a_file(files, name):
    folder, _, theirs = files
    found = distill.find("resnet10t", str(folder / name), 10)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(found.model.eval()(images), theirs(images))
    assert tuple(found.mean) == tuple(theirs.default_cfg["mean"])


def test_a_name_alone_means_timms_published_weights(monkeypatch):
    asked = []

    def create_model(name, pretrained=False, **options):
        asked.append((name, pretrained, options))
        return create(name, num_classes=7)
    create = timm.create_model
    monkeypatch.setattr(distill.timm, "create_model", create_model)
    monkeypatch.setattr(distill, "read_for_timm", lambda name: {})
    found = distill.find("resnet10t", "", 7)
    assert asked == [("resnet10t", True, {})]
    assert found.title == "timm's resnet10t"


@pytest.mark.parametrize("alias", ["mobilenet_v3_small", "mobilenet-v3-small", "mobilenetv3_small"])
def test_an_alias_was_a_teacher_with_a_file_of_weights_alone(files, monkeypatch, alias):
    asked = []
    monkeypatch.setattr(distill, "_published", asked.append)
    distill.find(alias, "", 10)
    assert asked == ["mobilenetv3_small_100"]  # what timm calls it
    with pytest.raises(ValueError, match="it is a mobilenetv3_small_050"):  # the alias is known
        distill.find(alias, str(files[0] / "own.pth.tar"), 10)


@pytest.mark.parametrize("name, file, error, told", [
    ("gone.pth.tar", "", FileNotFoundError, "gone.pth.tar"),
    ("own.pth.tar", "deit.pth", ValueError, "own.pth.tar is a file with its own weights"),
    ("no_such_network", "", ValueError, "--teacher no_such_network: timm does not give it"),
    ("no_such_network", "deit.pth", ValueError, "there is no such network"),
    ("resnet10t", "gone.pth", FileNotFoundError, "gone.pth"),
    ("resnet18", "deit.pth", ValueError, "deit.pth does not fit timm's resnet18 with 10 classes"),
    ("mobilenetv3_large_100", "own.pth.tar", ValueError, "it is a mobilenetv3_small_050"),
])
def test_a_teacher_that_cannot_be_had_is_told_in_one_sentence(
        files, monkeypatch, name, file, error, told):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(files[0])
    with pytest.raises(error, match=told) as raised:
        distill.find(name, file, 10)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("spelled, name, value", [
    (["--teacher", "resnet50"], "teacher", "resnet50"),
    (["--kd-model-name", "resnet50"], "teacher", "resnet50"),
    (["--teacher-model=resnet50", "--teacher-path=w.pth"], "teacher_ckpt", "w.pth"),
    (["--teacher", "x", "--distillation-alpha", "0.9"], "distill_alpha", 0.9),
    (["--teacher", "x", "--distillation-tau", "3"], "distill_temperature", 3.0),
    (["--teacher", "x", "--kd-temperature", "3"], "distill_temperature", 3.0),
])
def test_timms_and_deits_names_of_the_options_are_understood(spelled, name, value):
    assert getattr(parse(*spelled), name) == value


def test_weights_of_a_teacher_without_its_name_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse("--teacher-ckpt", "w.pth")
    assert "--teacher_ckpt w.pth holds weights; name their network" in capsys.readouterr().err
    parse("--distill-alpha", "0.9")
    assert "--distill_alpha has no effect without --teacher" in capsys.readouterr().err


# ---------------------------------------------------------------------------------- in the loop


def test_a_student_of_random_labels_learns_what_its_teacher_knows():
    """Only the teacher can have told it: alpha is 1, and the labels are noise."""
    torch.manual_seed(0)
    master = teacher(nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3)))
    student = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(6, 16, 3, 8, 8)
    loss = distill.DistillationLoss(nn.CrossEntropyLoss(), master, 1.0, 2.0)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05)
    precision = create_precision("O0", CPU)
    precision.prepare(student, optimizer)

    class Steady:
        lr = 0.05

        def at(self, epoch, update=0):
            """Always the same rate."""

    def batches():
        for batch in images:
            loss.see(batch)
            yield batch, torch.randint(0, 3, (16,))

    def agreement():
        with torch.no_grad():
            ours, theirs = student(images.flatten(0, 1)), master(images.flatten(0, 1))
        return (ours.argmax(1) == theirs.argmax(1)).float().mean().item()
    before = agreement()
    for epoch in range(40):
        engine.train_one_epoch(
            student, batches(), loss, optimizer, precision, Steady(), optim.NoEma(),
            metrics.Clock(0), engine.Progress(epoch, 6), engine.Loop(log=lambda line: None))
    assert before < 0.7 and agreement() > 0.95


def test_build_makes_the_teacher_that_the_options_name(files):
    folder, own, _ = files
    cfg = parse("--teacher", folder / "own.pth.tar", "--img_size", 40,
                "--res_schedule", "32@0,40@1")
    made = build.teacher(cfg, 10, O0, CPU)
    images = torch.rand(2, 3, 40, 40)
    shifted = images * (torch.tensor(STD) / 0.25).view(3, 1, 1) + (
        (torch.tensor(MEAN) - 0.5) / 0.25).view(3, 1, 1)
    assert torch.allclose(made(images), own(shifted), atol=1e-5)
    with pytest.raises(ValueError, match="has 10 classes, and this run has 4"):
        build.teacher(cfg, 4, O0, CPU)
    assert build.teacher(parse(), 10, O0, CPU) is None
    assert build.teacher(parse("--teacher", "nobody.pth", "--evaluate", "--ckpt_path", "x"), 10, O0,
                         CPU) is None
    other = parse("--teacher", "mobilenetv3_small_050", "--teacher_ckpt", folder / "own.pth.tar")
    assert build.teacher(other, 10, O0, CPU).digest == made.digest  # the same weights
