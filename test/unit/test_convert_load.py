"""Weights into networks that are already there, or that differ from theirs."""
import functools

import pytest
import torch

from mobilenetv3 import checkpoint, convert
from mobilenetv3.models import create_model

IMAGES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))


@functools.lru_cache(maxsize=None)
def given(arch, **options):
    """Weights as `read` gives them, of a network with random values."""
    torch.manual_seed(0)
    model = create_model(arch, **options)
    return convert.Weights("timm", model.state_dict(), model.config, None, {}, [], "file.pth")


def fresh(weights):
    return weights._replace(notes=[])


def test_another_class_count_replaces_only_the_classifier():
    weights = fresh(given("mobilenetv3_small_050", num_classes=12))
    model = convert.build(weights, num_classes=5)
    assert model(IMAGES).shape == (2, 5)
    assert weights.notes == ["the weights have 12 classes: the model's classifier, of 5, starts "
                             "afresh"]
    for name, value in model.state_dict().items():
        assert name.startswith("classifier.") or torch.equal(value, weights.state_dict[name])


def test_no_classifier_leaves_theirs_out():
    weights = fresh(given("mobilenetv3_small_050", num_classes=12))
    model = convert.build(weights, num_classes=0)
    assert model(IMAGES).shape == (2, 1024)
    assert weights.notes == ["the weights' classifier of 12 classes was left out"]


def test_weights_without_a_classifier_leave_the_models_alone():
    weights = fresh(given("mobilenetv3_small_050", num_classes=0))
    model = create_model("mobilenetv3_small_050", num_classes=4)
    own = model.classifier.weight.clone()
    notes = convert.load_into(model, weights)
    assert torch.equal(model.classifier.weight, own)
    assert notes == ["the weights have no classifier: the model's, of 4 classes, starts afresh"]


def test_one_channel_is_the_sum_of_three():
    weights = fresh(given("mobilenetv2_035", num_classes=3))
    model = convert.build(weights, in_chans=1)
    assert weights.notes == ["the stem's 3 input channels were summed to one"]
    grey = IMAGES[:, :1]
    with torch.no_grad():  # an image of three equal channels gives the same
        expected = convert.build(fresh(weights))(grey.expand(-1, 3, -1, -1))
        assert (model(grey) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("theirs, ours", [(3, 4), (1, 3)])
def test_other_numbers_of_channels_are_refused(theirs, ours):
    weights = given("mobilenetv2_035", num_classes=3, in_chans=theirs)
    with pytest.raises(ValueError, match=f"stem takes {theirs} channels, the model's {ours}; only"):
        convert.build(fresh(weights), in_chans=ours)


def test_another_width_lists_the_differing_shapes():
    weights = given("mobilenetv3_small_050", num_classes=3)
    model = create_model("mobilenetv3_small_075", num_classes=3)
    with pytest.raises(ValueError, match=(
        r"file\.pth holds a mobilenetv3_small_050 \(width 0\.5 by timm's rule\), the model is a "
        r"mobilenetv3_small_075 \(.*\): \d+ of another shape: blocks\.0\.0\.conv_pw\.weight "
        r"\(8, 16, 1, 1\) \(the model's is \(16, 16, 1, 1\)\), .*, \.\.\.$"
    )):
        convert.load_into(model, weights)


def test_another_network_lists_what_is_missing_and_unexpected():
    weights = given("mobilenetv2_035", num_classes=3)
    model = create_model("mobilenetv3_small_050", num_classes=3)
    with pytest.raises(ValueError, match=r": \d+ missing: .*; \d+ unexpected: .*; \d+ of another"):
        convert.load_into(model, weights)


def test_a_graph_of_equal_names_and_shapes_is_another_network():
    weights = given("dli14_mobilenetv3_small_100", num_classes=3)
    model = create_model("mobilenetv3_small_100", num_classes=3)
    assert {k: v.shape for k, v in model.state_dict().items()} == {
        k: v.shape for k, v in weights.state_dict.items()}
    with pytest.raises(ValueError, match="equal names and shapes, but dli14_mobilenetv3_small's "):
        convert.load_into(model, weights)


def test_a_stem_stride_that_differs_is_told():
    weights = given("mobilenetv3_small_050", num_classes=3)
    model = create_model("mobilenetv3_small_050", num_classes=3, stem_stride=1)
    assert convert.load_into(model, weights) == [
        "the weights were trained with stem_stride 2, the model has 1: its outputs differ from "
        "those of their network"]


def test_eps_and_padding_that_differ_are_told():
    weights = given("tf_mobilenetv3_small_075", num_classes=3)
    model = create_model("mobilenetv3_small_075", num_classes=3)
    notes = convert.load_into(model, weights)
    assert [note.split(":")[0] for note in notes] == [
        "the weights were trained with bn_eps 0.001, the model has 1e-05",
        "the weights were trained with pad_type same, the model has symmetric",
    ]


def test_a_backbone_takes_the_weights_of_the_classifier():
    weights = given("mobilenetv3_small_050", num_classes=3)
    model = create_model("mobilenetv3_small_050", features_only=True, out_indices=(1, 3))
    notes = convert.load_into(model, weights)
    assert len(notes) == 1 and notes[0].endswith("are not needed for the feature maps")
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights.state_dict[name])


@pytest.mark.parametrize("arch, classifier", [
    ("xiaolai2019_mobilenetv3_small", ["linear4"]),
    ("xiaolai2023_mobilenetv3_large", ["linear4"]),
    ("lraspp_mobilenetv3_large", ["classifier.low_classifier", "classifier.high_classifier"]),
])
def test_networks_of_their_own_graph_take_other_class_counts_and_grey_images(arch, classifier):
    weights = fresh(given(arch, num_classes=4))
    model = convert.build(weights, num_classes=7, in_chans=1)
    assert model.num_classes == 7 and len(weights.notes) == 2
    for name, value in model.state_dict().items():
        known = weights.state_dict[name]
        same = value.shape == known.shape and torch.equal(value, known)
        assert same != (name.rpartition(".")[0] in classifier or value.dim() == 4
                        and value.shape[1] == 1 and known.shape[1] == 3), name


@pytest.mark.parametrize("arch", [
    "xiaolai2019_mobilenetv3_large", "xiaolai2019old_mobilenetv3_small",
    "xiaolai2023_mobilenetv3_small",
])
def test_xiaolais_files_are_told_apart(arch, tmp_path):
    state = {"module." + name: value for name, value in given(arch).state_dict.items()}
    torch.save({"state_dict": state}, str(tmp_path / "a.pth.tar"))
    weights = convert.read(tmp_path / "a.pth.tar")
    assert (weights.family, weights.config["arch"]) == ("xiaolai", arch)
    assert weights.config["num_classes"] == 1000
    convert.build(weights)


def test_a_file_that_describes_an_unknown_network_is_an_error():
    weights = fresh(given("mobilenetv2_035", num_classes=3))
    weights = weights._replace(config={**weights.config, "colour": "red"})
    with pytest.raises(ValueError, match="file.pth describes a network that is not known here"):
        convert.build(weights)


# --------------------------------------------------------------- what a small file may ask for


def own_file(path, model, **config):
    """A checkpoint of this package whose description of the network is changed."""
    checkpoint.save(path, {"model": {**model.config, **config}, "state_dict": model.state_dict()})
    return path


@pytest.mark.parametrize("config, told", [
    ({"num_classes": 10 ** 13}, "num_classes 10000000000000, and its tensors have 3"),
    ({"num_classes": 10 ** 8}, "num_classes 100000000, and its tensors have 3"),
    ({"in_chans": 10 ** 9}, "in_chans 1000000000, and its tensors have 3"),
    ({"arch": "mobilenetv3_small", "width_mult": 1e5}, "of width 100000, and has other tensors"),
    ({"arch": "mobilenetv3_small", "width_mult": 1e5, "features_only": True},
     "of width 100000, and has other tensors"),
    ({"arch": "mobilenetv3_small", "width_mult": float("inf")}, "has {'width_mult': inf"),
    ({"arch": "mobilenetv3_small", "width_mult": float("nan")}, "has {'width_mult': nan"),
    ({"arch": "mobilenetv3_small", "width_mult": 1e308}, "has {'width_mult': 1e[+]308"),
    ({"arch": "mobilenetv3_small", "width_mult": "1"}, "has {'width_mult': '1'"),
    ({"width_rule": "mine"}, "'width_rule': 'mine'"),
    ({"arch": "xiaolai2019_mobilenetv3_small"}, "_small, and is of a network from a table"),
])
def test_a_description_of_a_few_bytes_was_built_at_any_size(config, told, tmp_path):
    model = create_model("mobilenetv3_small_050", num_classes=3)
    with pytest.raises(ValueError, match=told):
        convert.read(own_file(tmp_path / "a.pth", model, **config))


@pytest.mark.parametrize("arch, options", [
    ("mobilenetv3_small_050", {"num_classes": 0}),
    ("mobilenetv3_large", {"width_mult": 0.6, "width_rule": "torchvision", "in_chans": 1}),
    ("mobilenetv2_035", {"features_only": True, "out_indices": (1, 2)}),
    ("mobilenetv2", {"width_mult": 1.3, "features_only": True, "out_indices": (0,)}),
    ("xiaolai2019_mobilenetv3_small", {"num_classes": 2, "in_chans": 1}),
    ("lraspp_mobilenetv3_small", {"num_classes": 2}),
])
def test_descriptions_of_this_packages_networks_agree_with_their_tensors(arch, options, tmp_path):
    model = create_model(arch, **options)
    weights = convert.read(own_file(tmp_path / "a.pth", model))
    assert weights.config["num_classes"] in (options.get("num_classes", 1000), 0)
    convert.build(weights)


def test_names_that_share_a_storage_were_each_copied_as_float32(tmp_path):
    # 1,000 names of one megabyte: 2 GB as float32.
    shared = torch.zeros(500_000, dtype=torch.float16)
    state = {f"layer{number}.weight": shared for number in range(1000)}
    path = tmp_path / "a.pth"
    torch.save(state, str(path))
    assert path.stat().st_size < 1_200_000
    with pytest.raises(ValueError, match="a.pth cannot be used: its tensors of half or double pre"):
        convert.read(path)
