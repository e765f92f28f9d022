"""Checkpoints of torchvision, which are also those of Ascend ModelZoo's ID1784 and MobileNetV2."""
import argparse
import functools

import pytest
import torch
from convert_peers import settled

from mobilenetv3 import convert

tv = pytest.importorskip("torchvision.models", reason="the reference implementation is missing")

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@functools.lru_cache(maxsize=None)
def peer(name, width=1.0):
    builder = getattr(tv, name)
    try:
        return settled(builder(width_mult=width, num_classes=10))
    except TypeError:  # torchvision 0.9 has the option of V3 under a private name
        return settled(builder(_width_mult=width, num_classes=10))


def apart(model, reference):
    with torch.no_grad():
        expected = reference(IMAGES)
        return ((model(IMAGES) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name, width, arch", [
    ("mobilenet_v3_large", 1.0, "mobilenetv3_large_100"),
    ("mobilenet_v3_large", 0.75, "mobilenetv3_large_075"),
    ("mobilenet_v3_small", 0.5, "mobilenetv3_small_050"),
    ("mobilenet_v3_small", 1.3, "mobilenetv3_small"),  # no name: the family's, with a width
    ("mobilenet_v2", 0.35, "mobilenetv2_035"),
    ("mobilenet_v2", 1.4, "mobilenetv2_140"),
])
def test_the_logits_are_torchvisions(name, width, arch, tmp_path):
    torch.save(peer(name, width).state_dict(), str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert (weights.family, weights.config["arch"]) == ("torchvision", arch)
    assert weights.config["width_mult"] == width
    assert weights.config["bn_eps"] == (1e-5 if "v2" in name else 1e-3)
    assert apart(convert.build(weights), peer(name, width)) <= 1e-5


def test_a_checkpoint_of_the_reference_training(tmp_path):
    live = peer("mobilenet_v3_small").state_dict()
    average = {"module." + name: value * 0.5 for name, value in live.items()}
    args = argparse.Namespace(val_crop_size=192, val_resize_size=232, interpolation="bicubic")
    state = {"model": live, "optimizer": {"state": {}}, "lr_scheduler": {}, "epoch": 3,
             "args": args, "model_ema": {"n_averaged": torch.tensor(9), **average}}
    torch.save(state, str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth", ema=True)
    expected = live["features.0.0.weight"] * 0.5
    assert torch.equal(weights.state_dict["conv_stem.weight"], expected)
    assert (weights.prepare["img_size"], weights.prepare["interpolation"]) == (192, "bicubic")
    assert int(192 / weights.prepare["crop_pct"]) == 232
    weights = convert.read(tmp_path / "a.pth")
    assert apart(convert.build(weights), peer("mobilenet_v3_small")) <= 1e-5


def test_a_checkpoint_of_ascends_id1784(tmp_path):
    tensors = peer("mobilenet_v3_small").state_dict()
    state = {"module." + name: value for name, value in tensors.items()}
    torch.save({"epoch": 1, "arch": "mobilenet", "state_dict": state, "best_prec1": 73.5,
                "optimizer": {"state": {}, "param_groups": []}}, str(tmp_path / "a.pth.tar"))
    weights = convert.read(tmp_path / "a.pth.tar")
    assert apart(convert.build(weights), peer("mobilenet_v3_small")) <= 1e-5


@pytest.mark.parametrize("name, resize", [
    ("mobilenet_v3_small-047dcff4.pth", 256), ("mobilenet_v2-7ebf99e0.pth", 232)
])
def test_published_files_are_known_by_the_hash_in_their_names(name, resize, tmp_path):
    torch.save(peer("mobilenet_v2", 0.35).state_dict(), str(tmp_path / name))
    prepare = convert.read(tmp_path / name).prepare
    assert int(224 / prepare["crop_pct"]) == resize
    assert prepare["interpolation"] == "bilinear"


@functools.lru_cache(maxsize=None)
def segmenter():
    options = {"num_classes": 5}
    try:
        model = tv.segmentation.lraspp_mobilenet_v3_large(
            weights=None, weights_backbone=None, **options)
    except (TypeError, ValueError):
        model = tv.segmentation.lraspp_mobilenet_v3_large(pretrained_backbone=False, **options)
    return settled_map(model)


def settled_map(model):
    """As `settled`, for a network whose output is a dict of maps."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def test_lraspp_there_and_back(tmp_path):
    torch.save(segmenter().state_dict(), str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert weights.config["arch"] == "lraspp_mobilenetv3_large"
    assert weights.config["num_classes"] == 5
    with torch.no_grad():
        expected = segmenter()(IMAGES)["out"]
        given = convert.build(weights)(IMAGES)["out"]
    assert (given - expected).abs().max() <= 1e-5 * expected.abs().max()
    convert.save(weights, tmp_path / "b.pth", to="torchvision")
    back = torch.load(str(tmp_path / "b.pth"))
    assert list(back) == list(segmenter().state_dict())
    assert all(torch.equal(back[name], value) for name, value in segmenter().state_dict().items())


@pytest.mark.parametrize("key, told", [
    ("head.classification_head.module_list.0.0.0.weight", "torchvision's SSDLite detector"),
    ("classifier.0.convs.0.0.weight", "torchvision's DeepLabV3"),
    ("classifier.1._packed_params._packed_params", "a quantized network"),
])
def test_networks_that_are_none_of_ours_are_named(key, told, tmp_path):
    torch.save({"backbone.features.0.0.0.weight": torch.zeros(1), key: torch.zeros(1)},
               str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=f"a.pth cannot be used: it is {told}"):
        convert.read(tmp_path / "a.pth")


def test_names_that_nobody_has(tmp_path):
    torch.save({"layer1.0.conv1.weight": torch.zeros(1), "fc.weight": torch.zeros(1)},
               str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=r"here \(timm, .*\); the first of 2: fc\.weight, layer"):
        convert.read(tmp_path / "a.pth")


def test_a_network_of_the_family_that_is_not_known_lists_the_differences(tmp_path):
    state = dict(peer("mobilenet_v2", 0.35).state_dict())
    state["features.2.conv.0.0.weight"] = torch.zeros(56, 8, 1, 1)
    torch.save(state, str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=(
        r"its names are torchvision's, .* compared with mobilenetv2 of width 0\.35: 1 of another "
        r"shape: features\.2\.conv\.0\.0 \(56, 8, 1, 1\) \(there \(48, 8\)\)"
    )):
        convert.read(tmp_path / "a.pth")


def test_a_part_of_a_network_lists_what_is_missing_and_what_is_left_over(tmp_path):
    state = dict(peer("mobilenet_v2", 0.35).state_dict())
    del state["features.3.conv.1.1.running_mean"]
    state["classifier.1.scale"] = torch.zeros(1)
    torch.save(state, str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=(
        r"1 missing: features\.3\.conv\.1\.1\.running_mean; 1 unexpected: classifier\.1\.scale"
    )):
        convert.read(tmp_path / "a.pth")
    del state["features.5.conv.1.0.weight"]
    torch.save(state, str(tmp_path / "b.pth"))
    with pytest.raises(ValueError, match=r"compared with mobilenetv2: 1 missing: features\.5\."):
        convert.read(tmp_path / "b.pth")


def test_a_backbone_without_a_classifier(tmp_path):
    state = {name: value for name, value in peer("mobilenet_v2", 0.35).state_dict().items()
             if not name.startswith("classifier")}
    torch.save(state, str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert weights.config["num_classes"] == 0
    with torch.no_grad():
        expected = peer("mobilenet_v2", 0.35).features(IMAGES).mean((2, 3))
        assert (convert.build(weights)(IMAGES) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("state", [{}, {"epoch": 3}, [torch.zeros(1)], {"state_dict": {}}])
def test_files_without_weights(state, tmp_path):
    torch.save(state, str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match=r"a\.pth cannot be used: it holds"):
        convert.read(tmp_path / "a.pth")
