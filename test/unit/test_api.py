"""What a user of the Python API does: a model from a name or a file, images in, classes out."""
import copy
import gc
import io
import pickle
import warnings
import weakref

import numpy as np
import pytest
import timm
import torch
from npu_process import on_npu
from PIL import Image
from timm.data import ImageNetInfo

import mobilenetv3
from mobilenetv3 import api, data, device, inference_model, init_model, prepare
from mobilenetv3.models import create_model, extract

SMALL = "mobilenetv3_small_050"
CLASSES = ["ant", "bee", "cat"]
OPTIONS = {"num_classes": 3, "bn_eps": 1e-3, "pad_type": "same_depthwise"}
PREPARE = {"img_size": 64, "crop_pct": 0.8, "interpolation": "bicubic", "mean": [0.5, 0.4, 0.3],
           "std": [0.2, 0.3, 0.4]}


def noise(height=90, width=120, seed=0):
    """A photograph's worth of structure: blocks of colour, uint8 (height, width, 3), R G B."""
    blocks = np.random.RandomState(seed).randint(0, 256, (height // 10, width // 10, 3))
    return np.kron(blocks, np.ones((10, 10, 1))).astype(np.uint8)


def random_network(**options):
    """A network whose batch norms and classifier do something."""
    generator = torch.Generator().manual_seed(0)
    network = create_model(SMALL, **options).eval()
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.dim() < 3:
            low, high = (0.5, 1.5) if "var" in name or value.dim() == 1 else (-0.1, 0.1)
            value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)
    return network


def as_saved(network, classes=None, settings=PREPARE):
    """What train.py saves of a network."""
    return {"format": 1, "epoch": 1, "arch": network.config["arch"], "model": network.config,
            "classes": classes, "state_dict": network.state_dict(), "state_dict_ema": None,
            "config": dict(settings)}


@pytest.fixture(scope="module")
def network():
    return random_network(**OPTIONS)


@pytest.fixture(scope="module")
def checkpoint(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("run dir") / "model_best.pth.tar"
    torch.save(as_saved(network, CLASSES), str(path))
    return path


@pytest.fixture(scope="module")
def model(checkpoint):
    return init_model(None, checkpoint, "cpu")


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a photo.png"
    Image.fromarray(noise()).save(str(path))
    return path


def test_every_public_name_is_there():
    assert {"init_model", "inference_model", "classify"} <= set(mobilenetv3.__all__)
    assert all(getattr(mobilenetv3, name) is not None for name in mobilenetv3.__all__)


# From a file ------------------------------------------------------------------------------------


def test_a_checkpoint_alone_gives_the_network_its_classes_and_its_preparation(model, network):
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(model(x), network(x))
    assert model.config == network.config
    assert not model.training and model.classes == CLASSES
    prepared = model.data_preprocessor
    assert {name: getattr(prepared, name) for name in PREPARE} == {
        **PREPARE, "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4),
    }


@pytest.mark.parametrize("name", [SMALL, "mobilenet-v3-small-050"])
def test_a_name_beside_the_file_leaves_what_the_file_says(name, checkpoint, model):
    named = init_model(name, checkpoint, "cpu")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(named(x), model(x))
    assert named.classes == CLASSES


def test_another_network_than_the_files_is_an_error_that_lists_what_differs(checkpoint):
    with pytest.raises(ValueError, match="holds a mobilenetv3_small_050.*the model is a mobilenetv3"
                                         "_large_100.*missing.*unexpected.*of another shape"):
        init_model("mobilenetv3_large_100", checkpoint, "cpu")
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        init_model(SMALL, checkpoint.with_name("nothing.pth"), "cpu")


def test_a_name_tells_timms_networks_of_equal_shapes_apart(tmp_path):
    torch.manual_seed(0)
    theirs = timm.create_model("tf_mobilenetv3_small_075", num_classes=4).eval()
    torch.nn.init.normal_(theirs.classifier.weight)  # answers of 1e-3 would be near any others
    path = tmp_path / "weights.pth"
    torch.save(theirs.state_dict(), str(path))
    x = torch.randn(1, 3, 65, 65)
    for name, is_theirs in (("tf_mobilenetv3_small_075", True), (None, False)):
        model = init_model(name, path, "cpu")
        assert torch.allclose(model(x), theirs(x), atol=1e-5) is is_theirs
    # A file that says what it holds is not taken for another.
    torch.save(as_saved(create_model("mobilenetv3_small_075")), str(path))
    with pytest.raises(ValueError, match="holds a mobilenetv3_small_075, not the tf_mobilenetv3_"):
        init_model("tf_mobilenetv3_small_075", path, "cpu")
    with pytest.raises(ValueError, match="equal names and shapes, but .* graph is another"):
        init_model("dli14_mobilenetv3_small_075", path, "cpu")


def test_a_configuration_as_a_dict_loads_the_weights_it_belongs_to(checkpoint, network, model):
    again = init_model(network.config, checkpoint, "cpu")
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(again(x), model(x))
    with pytest.raises(ValueError, match="has no 'arch'"):
        init_model({"num_classes": 3}, checkpoint, "cpu")


def test_another_class_count_starts_a_new_classifier_and_says_so(checkpoint, model):
    with pytest.warns(UserWarning, match="has 3 classes: the classifier of 5 starts with random"):
        other = init_model(None, checkpoint, "cpu", num_classes=5)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(other.extract_feat(x)[0], model.extract_feat(x)[0])
    assert other(x).shape == (1, 5) and other.classes == list("01234")


def test_a_network_for_grey_images_sums_the_stem(checkpoint, model, photo):
    grey = init_model(None, checkpoint, "cpu", in_chans=1)
    assert torch.allclose(grey.conv_stem.weight, model.conv_stem.weight.sum(1, keepdim=True))
    assert grey.data_preprocessor(photo).shape == (1, 1, 64, 64)
    assert grey.data_preprocessor.mean == pytest.approx((0.4,))  # of 0.5, 0.4 and 0.3
    assert inference_model(grey, photo)["pred_class"] in CLASSES


def test_a_missing_file_and_a_file_in_the_place_of_the_name_are_told(tmp_path, checkpoint):
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        init_model(None, tmp_path / "nothing.pth", "cpu")
    with pytest.raises(ValueError, match=r"second argument: init_model\(None, FILE\)"):
        init_model(checkpoint, device="cpu")


# From a name ------------------------------------------------------------------------------------


def test_a_name_alone_has_random_weights_and_says_so():
    with pytest.warns(UserWarning, match=f"{SMALL} has random weights"):
        model = init_model(SMALL, device="cpu", num_classes=7)
    assert model.classes == list("0123456") and not model.training
    assert (model.data_preprocessor.img_size, model.data_preprocessor.crop_pct) == (224, 0.875)


def test_a_yaml_file_of_options_describes_network_and_images(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("model: mobilenetv3_small_050\ndataset: cifar10\nbn_eps: 1.0e-3\n"
                    "img_size: 64\ncrop_pct: 1.0\nlr: 0.1\n")
    with pytest.warns(UserWarning, match="random weights"):
        model = init_model(path, device="cpu")
    assert (model.num_classes, model.config["bn_eps"]) == (10, 1e-3)
    assert (model.data_preprocessor.img_size, model.data_preprocessor.crop_pct) == (64, 1.0)
    path.write_text("modle: mobilenetv3_small_050\n")
    with pytest.raises(ValueError, match="recipe.yaml, line 1: unknown key 'modle'"):
        init_model(path, device="cpu")


def test_a_yaml_file_beside_a_checkpoint_wins_where_it_says_something(tmp_path, checkpoint, model):
    path = tmp_path / "recipe.yml"
    path.write_text("model: mobilenetv3_small_050\nimg_size: 96\n")
    other = init_model(path, checkpoint, "cpu")
    assert (other.data_preprocessor.img_size, other.data_preprocessor.crop_pct) == (96, 0.8)
    assert other.config == model.config


def test_what_names_no_network_is_an_error():
    with pytest.raises(ValueError, match="near names: mobilenetv3_large_100"):
        init_model("mobilenetv3_lagre_100", device="cpu")
    with pytest.raises(ValueError, match="nothing says which network"):
        init_model(device="cpu")
    with pytest.raises(ValueError, match=r"wrap one: models.MobileNetFeatures\(init_model"):
        init_model({"arch": SMALL, "features_only": True}, device="cpu")


def test_a_file_of_a_backbone_ended_in_an_attribute_error(tmp_path):
    backbone = create_model(SMALL, features_only=True, out_indices=(1, 2))
    path = tmp_path / "a.pth"
    torch.save({"model": backbone.config, "state_dict": backbone.state_dict()}, str(path))
    with pytest.raises(ValueError, match=r"a\.pth holds a network for feature maps"):
        init_model(None, path, "cpu")
    again = mobilenetv3.convert.build(mobilenetv3.convert.read(path))  # as the sentence says
    assert again.config["out_indices"] == [1, 2]


def test_pretrained_takes_timms_weights_and_preparation(monkeypatch):
    theirs = timm.create_model("tf_mobilenetv3_small_075", num_classes=1000).eval()
    monkeypatch.setattr(timm, "create_model", lambda *args, **options: theirs)
    # Where timm cannot read its file, with PyTorch 1.8.1, it is fetched before timm is asked.
    monkeypatch.setattr("mobilenetv3.models.pretrained.read_for_timm", lambda arch: {})
    model = init_model("tf_mobilenetv3_small_075", pretrained=True, device="cpu")
    x = torch.randn(1, 3, 64, 64)
    assert torch.allclose(model(x), theirs(x), atol=1e-5)
    assert model.data_preprocessor.mean == model.data_preprocessor.std == (0.5, 0.5, 0.5)
    assert model.classes[0] == "tench, Tinca tinca"
    with pytest.raises(ValueError, match="two sets of weights"):
        init_model(SMALL, "file.pth", "cpu", pretrained=True)


def test_pretrained_weights_that_cannot_be_had_are_an_error_in_the_words_of_a_call(monkeypatch):
    def unreachable(*args, **options):
        raise OSError("offline")

    monkeypatch.setattr(timm, "create_model", unreachable)
    # With PyTorch 1.8.1 the hub itself would be asked first, for half a minute.
    monkeypatch.setattr("mobilenetv3.models.pretrained.read_for_timm", lambda arch: {})
    for name in (SMALL, "dli14_mobilenetv3_small"):
        with pytest.raises(ValueError, match="give a file of weights to init_model$") as e:
            init_model(name, pretrained=True, device="cpu")
        assert "--" not in str(e.value)


# Device -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cpu", None, torch.device("cpu"), "cpu:0"])
def test_the_network_is_where_it_was_asked_for(name, checkpoint):
    assert init_model(None, checkpoint, name).data_preprocessor.device == torch.device("cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:one", 0, "npu:-1", ""])
def test_a_device_of_another_name_is_an_error(name, checkpoint):
    with pytest.raises(ValueError, match=f"device is {str(name)!r}, expected one of auto, npu"):
        init_model(None, checkpoint, name)


def test_a_device_that_is_not_there_is_an_error_in_the_words_of_a_call(checkpoint):
    absent = next((kind for kind in ("npu", "cuda") if device.fault(kind)), None)
    if absent is None:
        pytest.skip("this host has every kind of device")
    with pytest.raises(ValueError, match=f"^device {absent} cannot be used: .*usable here: ") as e:
        init_model(None, checkpoint, absent)
    assert "--" not in str(e.value)


@on_npu
def test_the_network_and_its_images_are_on_the_npu_that_auto_finds():
    source, models = random_network(**OPTIONS), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # random weights are meant here
        for kind in ("cpu", "auto"):
            models.append(init_model(source.config, device=kind))
            models[-1].load_state_dict(source.state_dict())
    assert models[1].data_preprocessor.device == torch.device("npu:0")
    cpu, npu = (inference_model(model, noise())["pred_scores"] for model in models)
    assert np.allclose(cpu, npu, atol=1e-6)
    features = models[1].extract_feat(models[1].data_preprocessor(noise()))
    assert features[0].device == torch.device("npu:0")


def test_batches_have_the_type_of_the_weights(model, photo):
    moved = copy.deepcopy(model).double()
    assert moved.data_preprocessor(photo).dtype == torch.float64
    assert model.data_preprocessor(photo).dtype == torch.float32


@pytest.mark.skipif(device.TORCH_VERSION < (1, 13), reason="PyTorch has no meta device")
def test_the_preprocessor_follows_the_network_to_another_device(model):
    moved = copy.deepcopy(model).to("meta")
    assert moved.data_preprocessor.device.type == "meta"
    assert model.data_preprocessor.device.type == "cpu"


# What init_model adds to a network stays out of the way -----------------------------------------


def test_the_state_dict_is_the_networks_own(model, network):
    assert list(model.state_dict()) == list(network.state_dict())
    assert [name for name, _ in model.named_modules()] == [n for n, _ in network.named_modules()]
    create_model(**model.config).load_state_dict(model.state_dict(), strict=True)


def test_the_model_survives_pickling_and_copying(model, photo):
    expected = inference_model(model, photo)["pred_scores"]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert np.array_equal(inference_model(twin, photo)["pred_scores"], expected)
        assert twin.data_preprocessor._layer is twin.conv_stem


def test_the_model_is_freed_as_soon_as_it_is_dropped(checkpoint):
    gc.disable()
    try:
        model = init_model(None, checkpoint, "cpu")
        gone = weakref.ref(model)
        del model
        assert gone() is None
    finally:
        gc.enable()


def test_the_model_can_be_scripted_and_saved(model):
    stream, x = io.BytesIO(), torch.randn(1, 3, 64, 64)
    torch.jit.save(torch.jit.script(model), stream)
    stream.seek(0)
    with torch.no_grad():
        assert torch.allclose(torch.jit.load(stream)(x), model(x), atol=1e-6)


def test_the_model_trains_under_distributed_data_parallel(model, tmp_path):
    twin = copy.deepcopy(model).train()
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1
    )
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(twin)
        parallel(torch.randn(2, 3, 64, 64)).sum().backward()
        assert twin.classifier.weight.grad is not None
        assert parallel.module.data_preprocessor.device.type == "cpu"
    finally:
        torch.distributed.destroy_process_group()


# Inference --------------------------------------------------------------------------------------


def test_a_result_is_the_softmax_of_the_prepared_image(model, photo):
    with torch.no_grad():
        expected = model(model.data_preprocessor(photo)).softmax(1)[0].numpy()
    result = inference_model(model, photo)
    assert np.array_equal(result["pred_scores"], expected) and expected.dtype == np.float32
    label = int(expected.argmax())
    assert (result["pred_label"], result["pred_class"]) == (label, CLASSES[label])
    assert result["pred_score"] == expected[label] == expected.max()
    ranked = sorted(zip(expected.tolist(), CLASSES), reverse=True)
    assert [(t["score"], t["class"]) for t in result["top"]] == ranked
    assert [CLASSES[t["label"]] for t in result["top"]] == [name for _, name in ranked]


def test_an_image_is_the_same_in_every_form(model, photo):
    with Image.open(str(photo)) as opened:
        forms = [str(photo), photo, opened, noise(), np.dstack([noise(), noise()[..., 0]])]
        batch = model.data_preprocessor(forms)
    assert batch.shape == (5, 3, 64, 64) and all(torch.equal(each, batch[0]) for each in batch)
    # The order of an array's channels matters: OpenCV's makes another image.
    assert not torch.equal(model.data_preprocessor(noise()[..., ::-1])[0], batch[0])


def test_arrays_are_red_green_blue_and_grey_ones_have_three_equal_channels():
    red = np.zeros((4, 5, 3), np.uint8)
    red[..., 0] = 200
    assert prepare.read_image(red).getpixel((0, 0)) == (200, 0, 0)
    assert prepare.read_image(red[..., 0]).getpixel((0, 0)) == (200, 200, 200)


def test_images_are_prepared_as_validation_prepares_them(model, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.fromarray(noise(seed=seed)).save(str(tmp_path / "val" / name / "image.jpg"))
    source = data.open_source("folder", str(tmp_path), "val")
    transform = data.val_transform(64, 0.8, "bicubic")
    loader = data.val_loader(source, device.select("cpu"), rank=0, world=1, batch_size=2, workers=0,
                             transform=transform, mean=PREPARE["mean"], std=PREPARE["std"])
    (expected, _), = loader
    paths = [path for path, _ in source.samples.samples]
    assert torch.equal(model.data_preprocessor(paths), expected)


def test_a_batch_of_pixels_is_normalised(model):
    pixels = torch.tensor([0, 128, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    # (pixel / 255 - mean) / std of the three channels
    expected = [(0 - 0.5) / 0.2, (128 / 255 - 0.4) / 0.3, (1 - 0.3) / 0.4]
    assert model.data_preprocessor(pixels).flatten().tolist() == pytest.approx(expected, rel=1e-6)
    for wrong in (pixels.float(), pixels[0], pixels[:, :1]):
        with pytest.raises(ValueError, match=r"expected uint8 of shape \(N, 3, H, W\)"):
            model.data_preprocessor(wrong)


def test_classify_takes_images_as_it_needs_them_and_keeps_their_order(model):
    taken = []

    def images():
        for seed in range(5):
            taken.append(seed)
            yield noise(seed=seed)

    results = api.classify(model, images(), batch_size=2, top_k=1)
    first = next(results)
    assert taken == [0, 1]
    scores = [r["pred_scores"] for r in [first, *results]]
    alone = [inference_model(model, noise(seed=seed))["pred_scores"] for seed in range(5)]
    assert np.allclose(scores, alone, atol=1e-6) and len(first["top"]) == 1
    assert len({tuple(s) for s in scores}) == 5


def test_a_classifier_that_was_replaced_has_plain_numbers(model, photo):
    twin = copy.deepcopy(model)
    twin.reset_classifier(5)
    result = inference_model(twin, photo)
    assert result["pred_class"] == str(result["pred_label"]) and len(result["pred_scores"]) == 5


def test_a_network_without_classifier_is_refused_by_name(photo):
    for config in ({"arch": SMALL, "num_classes": 0}, {"arch": "lraspp_mobilenetv3_small"}):
        with pytest.warns(UserWarning, match="random weights"):
            model = init_model(config, device="cpu")
        with pytest.raises(ValueError, match=f"this {config['arch']} has no classifier"):
            inference_model(model, photo)


def test_a_model_that_says_nothing_of_images_is_refused(network, photo):
    with pytest.raises(ValueError, match="make it with init_model"):
        inference_model(network, photo)


def test_a_bad_image_is_an_error_that_names_it(model, tmp_path):
    text, empty, cut = tmp_path / "text.jpg", tmp_path / "empty.png", tmp_path / "cut.jpg"
    text.write_text("no image")
    empty.write_bytes(b"")
    stream = io.BytesIO()
    Image.fromarray(noise()).save(stream, "JPEG")
    cut.write_bytes(stream.getvalue()[:-200])
    for path, words in ((text, "not an image"), (empty, "not an image"), (cut, "truncated"),
                        (tmp_path, "is a folder")):
        with pytest.raises(ValueError, match=f"{path}.*{words}"):
            inference_model(model, path)
    with pytest.raises(FileNotFoundError, match="no image at .*none.jpg"):
        inference_model(model, tmp_path / "none.jpg")


@pytest.mark.parametrize("image", [
    None, 3, torch.zeros(3, 8, 8), np.zeros((8, 8, 3)), np.zeros((3, 8, 8), np.uint8),
    np.zeros((0, 8, 3), np.uint8),
])
def test_what_is_no_image_is_an_error_that_says_what_is(model, image):
    with pytest.raises(ValueError, match=r"expected a path, a PIL image, or a uint8 array"):
        inference_model(model, [image])


# Features ---------------------------------------------------------------------------------------


def test_features_are_mmpretrains_tuples(model):
    x = torch.randn(2, 3, 64, 64)
    maps = model.forward_features(x)
    (last,) = model.extract_feat(x, stage="backbone")
    assert torch.equal(last, maps)
    (pooled,) = model.extract_feat(x)
    assert pooled.shape == (2, 288) and torch.allclose(pooled, maps.mean((2, 3)), atol=1e-6)
    logits = model.classifier(model.extract_feat(x, stage="pre_logits"))
    assert torch.equal(logits, model(x)) and pooled.requires_grad


def test_a_backbone_gives_a_feature_for_each_map():
    backbone = create_model(SMALL, features_only=True, out_indices=(2, 4)).eval()
    x = torch.randn(2, 3, 64, 64)
    maps = backbone(x)
    assert all(torch.equal(a, b) for a, b in zip(backbone.extract_feat(x, "backbone"), maps))
    assert [f.shape for f in backbone.extract_feat(x)] == [(2, 16), (2, 288)]
    with pytest.raises(ValueError, match="needs a head"):
        backbone.extract_feat(x, "pre_logits")


def test_every_kind_of_classifier_extracts_features():
    network = create_model("xiaolai2023_mobilenetv3_small").eval()
    assert isinstance(network, extract.ExtractFeat)
    assert network.extract_feat(torch.randn(1, 3, 64, 64))[0].shape == (1, network.num_features)


def test_an_unknown_stage_is_an_error(model):
    with pytest.raises(ValueError, match="stage is 'head', expected one of backbone, neck, pre_l"):
        model.extract_feat(torch.randn(1, 3, 64, 64), "head")


# Class names ------------------------------------------------------------------------------------


def test_class_names_are_the_files_else_imagenets_else_numbers():
    assert api.class_names(3, CLASSES) == CLASSES
    assert api.class_names(3) == api.class_names(3, ["a", "b"]) == ["0", "1", "2"]
    words = api.class_names(1000)
    assert (words[0], words[65], words[999]) == ("tench, Tinca tinca", "sea snake", "toilet tissue, toilet paper, bathroom tissue")  # noqa: E501
    assert len(api.class_names(11221)) == 11221  # of ImageNet-21k as MIIL cut it
    assert api.class_names(0) == []


def test_folders_named_by_synset_get_words():
    synsets = ImageNetInfo().label_names()
    assert api.class_names(1000, synsets) == api.class_names(1000)
    assert api.class_names(2, ["n01440764", "nothing"]) == ["tench, Tinca tinca", "nothing"]
