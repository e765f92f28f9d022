"""Checkpoints of timm, and what decides between its networks of equal names and shapes."""
import argparse
import functools
import json

import pytest
import torch
from convert_peers import settled

from mobilenetv3 import checkpoint, convert

timm = pytest.importorskip("timm", reason="the reference implementation is missing")

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
TF = "tf_mobilenetv3_small_075"


@functools.lru_cache(maxsize=None)
def peer(name):
    return settled(timm.create_model(name, num_classes=10))


def written(name, path, **entries):
    """A file with the weights of one of timm's networks; with entries, in a checkpoint."""
    state = peer(name).state_dict()
    torch.save(dict(entries, state_dict=state) if entries else state, str(path))
    return path


def apart(model, name):
    with torch.no_grad():
        expected = peer(name)(IMAGES)
        return ((model(IMAGES) - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("name, eps, pad_type", [
    ("mobilenetv3_large_075", 1e-5, "symmetric"),
    ("mobilenetv3_small_100", 1e-5, "symmetric"),
    ("mobilenetv3_rw", 1e-3, "symmetric"),
    ("tf_mobilenetv3_small_minimal_100", 1e-3, "same"),  # timm has no other minimal one
    ("mobilenetv2_050", 1e-5, "symmetric"),
    ("mobilenetv2_110d", 1e-5, "symmetric"),
])
def test_the_shapes_tell_the_network(name, eps, pad_type, tmp_path):
    weights = convert.read(written(name, tmp_path / "weights.pth"))
    assert (weights.family, weights.config["arch"]) == ("timm", name)
    assert (weights.config["bn_eps"], weights.config["pad_type"]) == (eps, pad_type)
    assert apart(convert.build(weights), name) <= 1e-5


def test_every_name_of_timm_is_told_by_its_shapes_and_its_file():
    """Without weights: tables only. Those that need a file's name to be told are the tf_ ones."""
    from mobilenetv3.convert.fit import fit
    from mobilenetv3.convert.layout import shapes
    from mobilenetv3.convert.timm import ARCH_ORDER, SOURCE
    from mobilenetv3.models.arch import ARCHS, plan
    from mobilenetv3.models.names import TIMM_MODELS

    assert {family for family, _ in TIMM_MODELS.values()} == set(ARCH_ORDER)
    for family, width in TIMM_MODELS.values():
        found = {layer: tuple(size or 3 for size in shape)
                 for layer, shape in shapes(plan(ARCHS[family], width)).items()}
        network = fit(SOURCE, found)
        plain = family[3:] if family.startswith("tf_") and "minimal" not in family else family
        assert (network.arch, network.width) == (plain, width)


def test_without_evidence_the_plain_network_is_taken_and_the_note_says_so(tmp_path):
    weights = convert.read(written(TF, tmp_path / "weights.pth"))
    assert weights.config["arch"] == "mobilenetv3_small_075"
    assert "--arch tf_mobilenetv3_small_075" in weights.notes[-1]
    assert apart(convert.build(weights), TF) > 1e-3  # which is why the note is there


EVIDENCE = {
    "name": (f"{TF}-da427f52.pth", {}),
    "folder": (f"models--timm--{TF}.in1k/model.pth", {}),  # the hub's cache
    "arch": ("a.pth", {"arch": TF}),
    "option": ("a.pth", {"args": argparse.Namespace(model=TF)}),
}


@pytest.mark.parametrize("kind", EVIDENCE)
def test_what_says_that_it_is_tensorflows(kind, tmp_path):
    name, entries = EVIDENCE[kind]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    weights = convert.read(written(TF, tmp_path / name, **entries))
    assert weights.config["arch"] == TF
    assert weights.prepare["mean"] == [0.5, 0.5, 0.5]
    assert weights.notes[-1].startswith(f"{TF}, says")
    assert apart(convert.build(weights), TF) <= 1e-5


def test_the_command_line_says_so(tmp_path):
    weights = convert.read(written(TF, tmp_path / "a.pth", arch="mobilenetv3_small_075"), arch=TF)
    assert weights.config["arch"] == TF
    with pytest.raises(ValueError, match="it is a mobilenetv3_small_075 .* not a tf_mobilenetv3_l"):
        convert.read(tmp_path / "a.pth", arch="tf_mobilenetv3_large_075")


@pytest.mark.parametrize("arch", ["mobilenetv3_small_100", "mobilenetv3_small"])
def test_naming_the_network_turned_the_images_of_the_tag_into_imagenets(arch, tmp_path):
    path = written("mobilenetv3_small_100",
                   tmp_path / "mobilenetv3_small_100.ra4_e3600_r224_in1k.pth")
    weights = convert.read(path, arch=arch)
    assert weights.prepare == convert.read(path).prepare
    assert (weights.prepare["mean"], weights.prepare["crop_pct"]) == ([0.5] * 3, 0.95)
    # A name that is not the file's takes nothing over from it: TensorFlow's images have 0.875.
    assert convert.read(path, arch="tf_mobilenetv3_small_100").prepare["crop_pct"] == 0.875


def test_naming_the_network_dropped_the_means_of_the_configuration_beside_it(tmp_path):
    checkpoint.save_safetensors(tmp_path / "model.safetensors", peer(TF).state_dict())
    config = {"architecture": TF, "pretrained_cfg": {"mean": [0.4] * 3, "std": [0.2] * 3}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    prepare = convert.read(tmp_path / "model.safetensors", arch=TF).prepare
    assert (prepare["mean"], prepare["std"]) == ([0.4] * 3, [0.2] * 3)


@pytest.mark.parametrize("alias, name", [
    ("tf_mobilenetv3_small", "tf_mobilenetv3_small_100"),
    ("tf_mobilenetv3_small", TF),  # a family's name is one for every width
    ("tf_mobilenetv3_small_minimal", "tf_mobilenetv3_small_minimal_100"),
])
def test_an_alias_of_tensorflows_networks_was_refused_for_their_files(alias, name, tmp_path):
    weights = convert.read(written(name, tmp_path / "a.pth"), arch=alias)
    assert (weights.config["arch"], weights.config["pad_type"]) == (name, "same")


def test_an_unknown_name_that_is_asked_for_is_told_with_the_near_ones(tmp_path):
    with pytest.raises(ValueError, match="Unknown model 'tf_mobilenetv3_smal'; near names: tf_m"):
        convert.read(written(TF, tmp_path / "a.pth"), arch="tf_mobilenetv3_smal")


@pytest.mark.parametrize("place", ["config.json", "model.config.json", "model.json"])
def test_the_hubs_configuration_beside_the_weights(place, tmp_path):
    checkpoint.save_safetensors(tmp_path / "model.safetensors", peer(TF).state_dict())
    config = {"architecture": TF, "num_classes": 10, "pretrained_cfg": {
        "tag": "in1k", "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2], "crop_pct": 0.9,
        "interpolation": "bicubic", "input_size": [3, 160, 160]}}
    (tmp_path / place).write_text(json.dumps(config), encoding="utf-8")
    weights = convert.read(tmp_path / "model.safetensors")
    assert weights.config["arch"] == TF
    assert weights.prepare == {"img_size": 160, "mean": [0.4] * 3, "std": [0.2] * 3,
                               "crop_pct": 0.9, "interpolation": "bicubic"}
    assert apart(convert.build(weights), TF) <= 1e-5


def test_evidence_that_the_shapes_contradict_is_passed_over(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "tf_mobilenetv3_large_100"}', "utf-8")
    weights = convert.read(written("mobilenetv3_small_100", tmp_path / "mobilenetv3_small_100.pth"))
    assert weights.config["arch"] == "mobilenetv3_small_100"
    assert weights.prepare["mean"] == [0.485, 0.456, 0.406]
    assert "says tf_mobilenetv3_large_100" in weights.notes[1]


@pytest.mark.parametrize("entries, eps, momentum, pad_type", [
    ({"bn_tf": True}, 1e-3, 0.01, "symmetric"),  # timm's option for TensorFlow's norm
    ({"bn_tf": False, "bn_eps": 0.0005, "bn_momentum": None}, 0.0005, 0.1, "symmetric"),
    ({"model_kwargs": {"pad_type": "same", "bn_eps": 1e-3}}, 1e-3, 0.1, "same"),
    ({"model_kwargs": {"pad_type": ""}}, 1e-5, 0.1, "symmetric"),
])
def test_the_options_of_the_run_count(entries, eps, momentum, pad_type, tmp_path):
    args = argparse.Namespace(img_size=160, mean=None, crop_pct=0.9, interpolation="", **entries)
    path = written("mobilenetv2_050", tmp_path / "a.pth", arch="mobilenetv2_050", args=args)
    weights = convert.read(path)
    config, prepare = weights.config, weights.prepare
    assert (config["bn_eps"], config["bn_momentum"], config["pad_type"]) == (
        eps, momentum, pad_type)
    assert (prepare["img_size"], prepare["crop_pct"]) == (160, 0.9)
    assert (prepare["interpolation"], prepare["mean"]) == ("bicubic", [0.485, 0.456, 0.406])


def of_run(tmp_path, **args):
    path = written("mobilenetv2_050", tmp_path / "a.pth", arch="mobilenetv2_050",
                   args=argparse.Namespace(**args))
    return convert.read(path)


def test_one_mean_and_std_for_all_channels_ended_in_a_traceback(tmp_path):
    prepare = of_run(tmp_path, mean=[0.5], std=(0.25,)).prepare  # timm: --mean 0.5 --std 0.25
    assert (prepare["mean"], prepare["std"]) == ([0.5] * 3, [0.25] * 3)


@pytest.mark.parametrize("args, told", [
    ({"mean": [0.5, 0.5]}, "its images have a mean of 2 values; expected 1, or one for each"),
    ({"std": [0.5] * 4}, "its images have a std of 4 values"),
    ({"std": [0.2, 0.0, 0.2]}, r"the std \[0.2, 0.0, 0.2\]; expected numbers above 0, of images"),
    ({"std": [-1.0]}, "expected numbers above 0"),
    ({"mean": [float("nan")] * 3}, "expected numbers, of images scaled to 0..1"),
    ({"mean": [10 ** 400]}, "expected numbers, of images"),
])
def test_means_that_no_image_can_be_given_are_told(args, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        of_run(tmp_path, **args)


@pytest.mark.parametrize("args", [
    {"img_size": 10 ** 6}, {"crop_pct": 1e-6}, {"img_size": 224, "crop_pct": 5e-324},
])
def test_a_size_of_images_in_a_file_took_any_amount_of_memory(args, tmp_path):
    weights = of_run(tmp_path, **args)
    assert (weights.prepare["img_size"], weights.prepare["crop_pct"]) == (224, 0.875)
    assert "are more than is read here: 224 of 256 are taken" in weights.notes[-1]


def test_sizes_up_to_those_of_the_largest_image_are_taken(tmp_path):
    # 10,000 x 10,000 are the 100 million pixels that an image may have.
    assert of_run(tmp_path, img_size=10_000, crop_pct=1.0).prepare["img_size"] == 10_000
    assert of_run(tmp_path, img_size=64, crop_pct=0.0064).prepare["img_size"] == 64


@pytest.mark.parametrize("tag, mean, crop_pct", [
    ("miil_in21k_ft_in1k", 0.0, 0.875), ("ra4_e3600_r224_in1k", 0.5, 0.95)
])
def test_the_tag_of_published_weights_says_how_images_are_prepared(tag, mean, crop_pct, tmp_path):
    path = written("mobilenetv3_small_100", tmp_path / f"mobilenetv3_small_100.{tag}.pth")
    prepare = convert.read(path).prepare
    assert (prepare["mean"], prepare["crop_pct"]) == ([mean] * 3, crop_pct)


def test_averaged_weights(tmp_path):
    live = peer("mobilenetv2_050").state_dict()
    average = {"module." + name: value * 0.5 for name, value in live.items()}
    torch.save({"state_dict": live, "state_dict_ema": average, "arch": "mobilenetv2_050"},
               str(tmp_path / "a.pth.tar"))
    for ema, factor, word in ((None, 1.0, "trained"), (True, 0.5, "averaged"),
                              (False, 1.0, "trained")):
        weights = convert.read(tmp_path / "a.pth.tar", ema=ema)
        assert torch.equal(weights.state_dict["bn1.weight"], live["bn1.weight"] * factor)
        assert f"the {word}" in weights.notes[1]


def test_averaged_weights_that_are_not_there(tmp_path):
    with pytest.raises(ValueError, match=r"a\.pth cannot be used: it holds no averaged weights"):
        convert.read(written("mobilenetv2_050", tmp_path / "a.pth"), ema=True)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model.module."])
@pytest.mark.parametrize("container", [None, "state_dict", "model", "network"])
def test_wrappers_and_containers(prefix, container, tmp_path):
    state = {prefix + name: value for name, value in peer("mobilenetv2_050").state_dict().items()}
    torch.save({container: state, "epoch": 3} if container else state, str(tmp_path / "a.pt"))
    weights = convert.read(tmp_path / "a.pt")
    assert list(weights.state_dict) == list(peer("mobilenetv2_050").state_dict())


@pytest.mark.parametrize("entry, value", [
    ("args", 3), ("args", {"model": 5, "img_size": "x", "mean": 1, "model_kwargs": [1]}),
    ("args", {"bn_eps": "0.1", "crop_pct": 7, "interpolation": "random", "input_size": 3}),
    ("meta", "x"), ("arch", ["a"]), ("epoch", torch.ones(1)), (7, 7),
])
def test_odd_entries_beside_the_weights_are_no_obstacle(entry, value, tmp_path):
    torch.save({"state_dict": peer("mobilenetv2_050").state_dict(), entry: value},
               str(tmp_path / "a.pth"))
    weights = convert.read(tmp_path / "a.pth")
    assert weights.config["bn_eps"] == 1e-5
    assert weights.prepare == {"img_size": 224, "mean": [0.485, 0.456, 0.406], "crop_pct": 0.875,
                               "std": [0.229, 0.224, 0.225], "interpolation": "bicubic"}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"architecture": 3}',
                                  '{"architecture": "mobilenetv2_050", "pretrained_cfg": [1]}'])
def test_odd_files_beside_the_weights_are_no_obstacle(text, tmp_path):
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    weights = convert.read(written("mobilenetv2_050", tmp_path / "a.pth"))
    assert weights.prepare["mean"] == [0.485, 0.456, 0.406]
