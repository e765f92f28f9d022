"""Weights written by the names of other packages, and in our own form."""
import functools
import json

import convert_peers as peers
import pytest
import torch

from mobilenetv3 import checkpoint, convert
from mobilenetv3.models import create_model

# What each package has, as the package itself would write it.
PEERS = {
    "mmpretrain-small": ("mmpretrain", lambda: peers.MMPretrain(peers.SMALL)),
    "mmpretrain-small_050": ("mmpretrain", lambda: peers.MMPretrain(peers.SMALL_050, eps=1e-5)),
    "mmpretrain-v2": ("mmpretrain", lambda: peers.MMPretrain(0.5)),
    "mindcv-small": ("mindcv", lambda: peers.MindCV(peers.SMALL)),
    "mindcv-large_075": ("mindcv", lambda: peers.MindCV(peers.LARGE, alpha=0.75, head=1280)),
    "mindcv-mint": ("mindcv", lambda: peers.MindCV(peers.SMALL, same=False)),
    "mindcv-v2": ("mindcv", lambda: peers.MindCV(0.5)),
}


@functools.lru_cache(maxsize=None)
def ours(arch, **options):
    torch.manual_seed(0)
    model = create_model(arch, **dict({"num_classes": 7}, **options))
    for value in model.state_dict().values():
        if value.is_floating_point():
            value.uniform_(-1, 1)
    return convert.Weights("own", model.state_dict(), model.config, None,
                           {"img_size": 224, "mean": [0.5], "std": [0.5], "crop_pct": 0.875,
                            "interpolation": "bicubic"}, [], "run/model_best.pth.tar")


def assert_equal(first, second):
    """The same names in the same order, with the same bits."""
    assert list(first) == list(second)
    for name, value in first.items():
        assert value.dtype == second[name].dtype and value.shape == second[name].shape, name
        assert torch.equal(value, second[name]), name


def tensors_of(path):
    state = checkpoint.load(path)
    return state.get("state_dict", state)


@pytest.mark.parametrize("case", PEERS)
def test_there_and_back_is_bit_identical(case, tmp_path):
    to, build = PEERS[case]
    if to == "mindcv":
        model = build()
        first, second = tmp_path / "a.ckpt", tmp_path / "b.ckpt"
        tensors = model.state_dict() if "mint" in case else model.parameters_of_mindspore()
        checkpoint.save_mindspore(first, tensors)
    else:
        first, second = tmp_path / "a.pth", tmp_path / "b.pth"
        checkpoint.save(first, {"meta": {}, "state_dict": build().state_dict()})
    convert.save(convert.read(first), second, to=to)
    if to == "mindcv":
        assert second.read_bytes() == first.read_bytes()
    assert_equal(tensors_of(first), tensors_of(second))


@pytest.mark.parametrize("package, name, options", [
    ("timm.models", "mobilenetv3_small_075", {}),
    ("timm.models", "tf_mobilenetv3_small_minimal_100", {}),
    ("timm.models", "mobilenetv2_110d", {}),
    ("torchvision.models", "mobilenet_v3_small", {}),
    ("torchvision.models", "mobilenet_v2", {"width_mult": 0.35}),
])
def test_there_and_back_with_the_packages_themselves(package, name, options, tmp_path):
    models = pytest.importorskip(package)
    state = getattr(models, name)(num_classes=7, **options).state_dict()
    torch.save(state, str(tmp_path / f"{name}.pth"))
    weights = convert.read(tmp_path / f"{name}.pth")
    for extension in (".pth", ".safetensors"):
        path = tmp_path / ("b" + extension)
        convert.save(weights, path, to=package.partition(".")[0])
        back = checkpoint.load(path)
        assert_equal(dict(state), {key: back[key] for key in state})  # safetensors sorts its names
        assert len(back) == len(state)
        getattr(models, name)(num_classes=7, **options).load_state_dict(back)


@pytest.mark.parametrize("to, arch, options", [
    ("timm", "mobilenetv3_large_100", {"bn_eps": 1e-3}),
    ("timm", "mobilenetv3_rw", {}),
    ("timm", "mobilenetv2_140", {"in_chans": 1, "num_classes": 0}),
    ("torchvision", "mobilenetv3_large_100", {}),
    ("torchvision", "mobilenetv3_small", {"width_mult": 0.6, "width_rule": "torchvision"}),
    ("mmpretrain", "mobilenetv3_small_075", {}),
    ("mmpretrain", "mobilenetv3_small_1280", {}),
    ("mmpretrain", "mobilenetv2_050", {}),
    ("mindcv", "mobilenetv3_small_100", {}),
    ("mindcv", "mobilenetv3_small_100", {"pad_type": "same_depthwise"}),
    ("mindcv", "mobilenetv2_140", {}),
])
def test_a_model_trained_here_comes_back_from_every_family(to, arch, options, tmp_path):
    weights = ours(arch, **options)
    path = tmp_path / ("a.ckpt" if to == "mindcv" else "a.pth")
    convert.save(weights, path, to=to)
    back = convert.read(path)
    assert back.family == to
    expected = weights.state_dict
    if to == "mindcv" and "gamma" in "".join(checkpoint.load(path)):  # which counts no batches
        expected = {name: value * (0 if name.endswith("tracked") else 1)
                    for name, value in expected.items()}
    assert_equal(expected, back.state_dict)
    silent = ("pad_type", "num_classes", "in_chans", "width_mult")
    assert [back.config[key] for key in silent] == [weights.config[key] for key in silent]


@pytest.mark.parametrize("to, arch, options, reason", [
    ("torchvision", "mobilenetv3_small_075", {}, "0.75 by timm's rule has no place in torchvision"),
    ("timm", "mobilenetv3_small_075", {"width_rule": "torchvision"}, "torchvision's rule"),
    ("timm", "mobilenetv3_small", {"width_mult": 0.6}, "timm has no network of"),
    ("mindcv", "mobilenetv3_small_075", {}, "by timm's rule has no place in MindCV"),
    ("mmpretrain", "mobilenetv3_large_075", {}, "not mobilenetv3_large at 0.75 by timm's"),
    ("torchvision", "mobilenetv3_small_100", {"pad_type": "same_depthwise"},
     "need pad_type same_depthwise, and torchvision's network pads symmetric only"),
    ("timm", "mobilenetv3_small_100", {"pad_type": "same_depthwise"}, "need pad_type same_depthw"),
    ("mmpretrain", "tf_mobilenetv3_small_100", {}, "need pad_type same"),
    ("mindcv", "tf_mobilenetv3_small_100", {}, "need pad_type same"),
    ("torchvision", "mobilenetv3_rw", {}, "no network there has the graph of mobilenetv3_rw"),
    ("mmpretrain", "mobilenetv2_110d", {}, "no network there has the graph of mobilenetv2_110d"),
    ("timm", "dli14_mobilenetv3_small_100", {}, "no network there has the graph of dli14"),
    ("timm", "xiaolai2019_mobilenetv3_small", {}, "no network there has the graph of xiaolai2019"),
    ("timm", "lraspp_mobilenetv3_large", {}, "no network there has the graph of lraspp"),
    ("torchvision", "lraspp_mobilenetv3_small", {}, "torchvision has no lraspp_mobilenetv3_small"),
    ("torchvision", "mobilenetv3_small_100", {"in_chans": 1}, "take 1 input channels"),
    ("mmpretrain", "mobilenetv3_small_100", {"num_classes": 0}, "have no classifier"),
    ("timm", "mobilenetv3_small_100", {"output_stride": 16}, "dilated to an output stride of 16"),
    ("timm", "mobilenetv3_small_100", {"stem_stride": 1}, "stem has stride 1, which no network"),
])
def test_what_a_family_cannot_express_is_refused_with_the_reason(
    to, arch, options, reason, tmp_path
):
    path = tmp_path / ("a.ckpt" if to == "mindcv" else "a.pth")
    with pytest.raises(ValueError, match="model_best.pth.tar cannot be written for") as error:
        convert.save(ours(arch, **options), path, to=to)
    assert reason in str(error.value)
    assert not path.exists()


@pytest.mark.parametrize("to, arch, options, told", [
    ("timm", "mobilenetv3_small_100", {"bn_eps": 1e-3},
     'timm.create_model("mobilenetv3_small_100", bn_eps=0.001, num_classes=7)'),
    ("timm", "tf_mobilenetv3_small_100", {}, '("tf_mobilenetv3_small_100", num_classes=7)'),
    ("timm", "mobilenetv3_small_100", {"pad_type": "same"}, "pad_type='same'"),
    ("torchvision", "mobilenetv3_small_100", {"bn_eps": 1e-3, "bn_momentum": 0.01},
     "torchvision.models.mobilenet_v3_small(num_classes=7)"),
    ("torchvision", "mobilenetv3_small_100", {},
     "norm_layer=partial(nn.BatchNorm2d, eps=1e-05, momentum=0.1)"),
    ("torchvision", "mobilenetv2_050", {}, "mobilenet_v2(width_mult=0.5, num_classes=7)"),
    ("mmpretrain", "mobilenetv3_small_050", {},
     "arch='small_050', norm_cfg=dict(type='BN', eps=1e-05, momentum=0.1)"),
    ("mmpretrain", "mobilenetv3_small_1280", {}, "num_classes=7 and mid_channels=[1280] in head"),
    ("mindcv", "mobilenetv3_small_100", {"pad_type": "same_depthwise"},
     'create_model("mobilenet_v3_small_100", num_classes=7)'),
    ("mindcv", "mobilenetv3_small_100", {}, "mint layers"),
    ("mindcv", "mobilenetv2_050", {"bn_eps": 1e-3}, "eps 1e-5, these weights need 0.001"),
    ("mindcv", "mobilenetv3_small", {"width_mult": 0.6, "width_rule": "torchvision"},
     'MobileNetV3(arch="small", alpha=0.6, num_classes=7)'),
])
def test_what_to_set_there_is_told(to, arch, options, told, tmp_path):
    path = tmp_path / ("a.ckpt" if to == "mindcv" else "a.pth")
    assert told in " ".join(convert.save(ours(arch, **options), path, to=to))


@pytest.mark.parametrize("extension", [".pth", ".pth.tar", ".safetensors"])
def test_our_own_form_keeps_all_that_is_known(extension, tmp_path):
    torch.save({"meta": {"dataset_meta": {"classes": tuple("abcdefghij")}},
                "state_dict": peers.MMPretrain(peers.SMALL).state_dict()}, str(tmp_path / "mm.pth"))
    first = convert.read(tmp_path / "mm.pth")
    path = tmp_path / ("own" + extension)
    assert convert.save(first, path) == []
    second = convert.read(path)
    assert second.family == "own"
    assert {key: second.config[key] for key in first.config} == first.config
    assert (second.prepare, second.classes) == (first.prepare, first.classes)
    assert "converted from mmpretrain's mm.pth" in second.notes
    assert_equal(first.state_dict, {key: second.state_dict[key] for key in first.state_dict})
    convert.build(second)


def test_the_record_of_where_the_weights_come_from(tmp_path):
    convert.save(ours("mobilenetv3_small_100"), tmp_path / "a.pth")
    state = checkpoint.load(tmp_path / "a.pth")
    assert state["source"] == {"family": "own", "file": "model_best.pth.tar", "notes": [],
                               "head": [576, 1024, 7]}
    assert state["config"]["interpolation"] == "bicubic"
    convert.save(ours("mobilenetv3_small_100"), tmp_path / "a.safetensors")
    metadata = checkpoint.metadata_of(tmp_path / "a.safetensors")
    assert json.loads(metadata["mobilenetv3"])["source"] == state["source"]


def test_a_checkpoint_of_a_run(tmp_path):
    """train.py's own: averaged weights where there are any, images as the run prepared them."""
    weights = ours("mobilenetv3_small_050")
    average = {name: value * 0.5 for name, value in weights.state_dict.items()}
    state = {"format": 1, "epoch": 3, "arch": "mobilenetv3_small_050", "model": weights.config,
             "classes": list("abcdefg"), "state_dict": weights.state_dict,
             "state_dict_ema": average, "optimizer": {}, "precision": {},
             "config": {"img_size": 96, "crop_pct": None, "interpolation": "bicubic",
                        "mean": None, "std": [0.25, 0.25, 0.25], "lr": 0.1}}
    checkpoint.save(tmp_path / "a.pth.tar", state)
    read = convert.read(tmp_path / "a.pth.tar")
    assert (read.family, read.config, read.classes) == ("own", weights.config, list("abcdefg"))
    assert torch.equal(read.state_dict["bn1.weight"], average["bn1.weight"])
    assert read.prepare == {"img_size": 96, "crop_pct": 0.875, "interpolation": "bicubic",
                            "mean": [0.485, 0.456, 0.406], "std": [0.25, 0.25, 0.25]}
    live = convert.read(tmp_path / "a.pth.tar", ema=False).state_dict["bn1.weight"]
    assert torch.equal(live, weights.state_dict["bn1.weight"])


@pytest.mark.parametrize("change, told", [
    ({"arch": "mobilenetv9"}, "Unknown model 'mobilenetv9'"),
    ({"arch": None}, "its description of the network has arch None"),
    ({"num_classes": "7"}, "its description of the network has num_classes '7'"),
])
def test_a_checkpoint_of_ours_that_describes_no_network(change, told, tmp_path):
    convert.save(ours("mobilenetv3_small_050"), tmp_path / "a.pth")
    state = checkpoint.load(tmp_path / "a.pth")
    state["model"].update(change)
    checkpoint.save(tmp_path / "a.pth", state)
    with pytest.raises(ValueError, match=r"a\.pth cannot be used: ") as error:
        convert.read(tmp_path / "a.pth")
    assert told in str(error.value)


@pytest.mark.parametrize("name, to, told", [
    ("a.ckpt", None, "add --to mindcv for MindCV's names"),
    ("a", None, "the files of this package"),
    ("a.pth", "mindcv", "does not end with .ckpt, the files of mindcv"),
    ("a.ckpt", "timm", "the files of timm"),
    ("a.pth", "keras", "expected one of timm, torchvision, mmpretrain, mindcv"),
])
def test_extensions_and_families_that_are_not_known(name, to, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        convert.save(ours("mobilenetv2_050"), tmp_path / name, to=to)
    assert not list(tmp_path.iterdir())
