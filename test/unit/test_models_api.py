"""What a user does with a model: options, configuration, heads, saving, scripting."""
import copy
import io
import json

import pytest
import torch

from mobilenetv3.models import (
    MobileNetV2,
    MobileNetV3_Large,
    MobileNetV3_Small,
    create_model,
)

SMALL, V2 = "mobilenetv3_small_050", "mobilenetv2_035"


def image(channels=3, side=64):
    return torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(0))


# Construction -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "cls, name",
    [
        (MobileNetV3_Large, "mobilenetv3_large_100"),
        (MobileNetV3_Small, "mobilenetv3_small_100"),
        (MobileNetV2, "mobilenetv2_100"),
    ],
)
def test_the_classes_are_what_the_names_build(cls, name):
    model = cls(num_classes=10)
    assert model.config == create_model(name, num_classes=10).config
    assert type(create_model(name)) is cls
    assert model.eval()(image()).shape == (2, 10)


def test_a_class_takes_any_width():
    model = MobileNetV3_Small(width_mult=0.6)
    assert model.config["arch"] == "mobilenetv3_small"
    again = create_model(**model.config)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


def test_another_width_than_the_names_is_refused():
    with pytest.raises(ValueError, match="width 0.75, not 0.6; for any width name mobilenetv3_s"):
        create_model("mobilenetv3_small_075", width_mult=0.6)


@pytest.mark.parametrize("name", ["mobilenetv3_rw", "mobilenetv3_large_150d"])
def test_a_network_of_a_single_width_has_no_other(name):
    with pytest.raises(ValueError, match=rf"{name} has width 1\.[05], not 0.75\.$"):
        create_model(name, width_mult=0.75)


def test_a_family_of_weights_from_tensorflow_takes_any_width_too():
    model = create_model("tf_mobilenetv3_small", width_mult=0.6)
    assert model.config["arch"] == "tf_mobilenetv3_small"
    assert (model.config["bn_eps"], model.config["pad_type"]) == (1e-3, "same")
    assert create_model(**model.config).config == model.config


@pytest.mark.parametrize(
    "name, bn_eps, pad_type",
    [
        ("mobilenetv3_large_100", 1e-5, "symmetric"),
        ("mobilenet_v3_small_075", 1e-5, "symmetric"),
        ("mobilenetv2_110d", 1e-5, "symmetric"),
        ("mobilenetv3_rw", 1e-3, "symmetric"),
        ("tf_mobilenetv3_small_minimal_100", 1e-3, "same"),
        ("dli14_mobilenetv3_small_075", 1e-5, "symmetric"),
    ],
)
def test_a_name_implies_epsilon_and_padding_unless_they_are_given(name, bn_eps, pad_type):
    config = create_model(name).config
    assert (config["bn_eps"], config["pad_type"]) == (bn_eps, pad_type)
    config = create_model(name, bn_eps=0.5, pad_type="same_depthwise").config
    assert (config["bn_eps"], config["pad_type"]) == (0.5, "same_depthwise")


def test_a_class_builds_the_families_of_its_own_kind_only():
    assert MobileNetV3_Small(family="tf_mobilenetv3_small").config["pad_type"] == "same"
    for family in ("mobilenetv3_large", "mobilenetv2", "resnet"):
        with pytest.raises(ValueError, match=f"'{family}', which is no MobileNetV3_Small"):
            MobileNetV3_Small(family=family)


@pytest.mark.parametrize("name", ["xiaolai2023_mobilenetv3_small", "lraspp_mobilenetv3_small"])
@pytest.mark.parametrize(
    "option, value",
    [("features_only", True), ("width_rule", "timm"), ("output_stride", 8), ("stem_stride", 1)],
)
def test_an_option_that_a_graph_does_not_have_is_refused(name, option, value):
    with pytest.raises(ValueError, match=f"{name} has no option {option}; it was given {value!r}"):
        create_model(name, **{option: value})


@pytest.mark.parametrize("build", [lambda **o: create_model(SMALL, **o), MobileNetV3_Small])
def test_a_misspelt_option_is_an_error_that_names_it(build):
    with pytest.raises(TypeError, match="drop_ratio"):
        build(drop_ratio=0.2)


@pytest.mark.parametrize(
    "option, value",
    [
        ("num_classes", -1),
        ("num_classes", 10.0),
        ("in_chans", 0),
        ("width_mult", 0.0),
        ("width_rule", "mindcv"),
        ("global_pool", "max"),
        ("drop_rate", 1.0),
        ("drop_rate", float("nan")),
        ("drop_path_rate", -0.1),
        ("bn_eps", 0.0),
        ("bn_momentum", 1.5),
        ("pad_type", "valid"),
        ("output_stride", 4),
        ("dilation_rule", "mindcv"),
        ("stem_stride", 4),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_both(option, value):
    with pytest.raises(ValueError, match=f"{option} is {value!r}, expected"):
        create_model("mobilenetv3_small", **{option: value})


def test_batch_norm_options_reach_every_batch_norm():
    model = create_model(SMALL, bn_eps=1e-3, bn_momentum=0.01)
    norms = {(m.eps, m.momentum) for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)}
    assert norms == {(1e-3, 0.01)}


def test_pad_type_reaches_the_strided_convolutions_it_names():
    same = {}
    for pad_type in ("symmetric", "same_depthwise", "same"):
        model = create_model(SMALL, pad_type=pad_type)
        same[pad_type] = [k for k, m in model.named_modules() if type(m).__name__ == "Conv2dSame"]
    depthwise = [f"blocks.{stage}.0.conv_dw" for stage in (0, 1, 2, 4)]  # the four of stride 2
    assert same == {
        "symmetric": [],
        "same_depthwise": depthwise,
        "same": ["conv_stem", *depthwise],
    }


def test_drop_path_grows_with_the_depth_and_spares_blocks_without_a_skip():
    model = create_model("mobilenetv3_large_100", drop_path_rate=0.32)
    rates = {
        key.rsplit(".", 1)[0]: module.rate
        for key, module in model.named_modules()
        if type(module).__name__ == "DropPath" and dict(model.named_modules())[key[:-10]].has_skip
    }
    # Sixteen blocks: 0.02 more for each. The last of them, blocks.6.0, is no residual.
    assert rates["blocks.1.1"] == pytest.approx(0.04)
    assert rates["blocks.5.2"] == pytest.approx(0.28)
    assert len(rates) == 9  # blocks.0.0 has a skip too, and a rate of 0


# Configuration ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_classes": 0, "global_pool": "", "in_chans": 1},
        {"width_rule": "torchvision", "bn_eps": 1e-3, "bn_momentum": 0.01},
        {"drop_rate": 0.2, "drop_path_rate": 0.1, "pad_type": "same_depthwise"},
        {"features_only": True, "out_indices": (1, 3), "pad_type": "same"},
        {"stem_stride": 1, "num_classes": 10},
        {"output_stride": 16, "dilation_rule": "torchvision", "features_only": True},
    ],
)
def test_the_configuration_survives_json_and_builds_the_same_network(options):
    model = create_model("mobilenetv3_small_075", **options).eval()
    again = create_model(**json.loads(json.dumps(model.config))).eval()
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    assert repr(again) == repr(model)
    for name, value in options.items():
        assert model.config[name] == (list(value) if isinstance(value, tuple) else value)


def test_the_configuration_of_an_alias_has_the_canonical_name_and_the_rule():
    config = create_model("mobilenet_v3_small_075").config
    assert (config["arch"], config["width_rule"]) == ("mobilenetv3_small_075", "torchvision")


@pytest.mark.parametrize("name", [SMALL, V2, "xiaolai2019_mobilenetv3_small"])
def test_channels_and_dropout_are_attributes_as_in_timm(name):
    model = create_model(name, in_chans=1, drop_rate=0.25)
    assert (model.in_chans, model.drop_rate, model.dropout.p) == (1, 0.25, 0.25)
    model.drop_rate = 0.5
    assert (model.dropout.p, model.config["drop_rate"]) == (0.5, 0.5)
    assert copy.deepcopy(model).drop_rate == 0.5


def test_image_preparation_follows_the_options():
    cfg = create_model(SMALL, num_classes=5, in_chans=1).default_cfg
    assert (cfg["num_classes"], cfg["input_size"]) == (5, (1, 224, 224))
    assert (cfg["mean"], cfg["std"]) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (cfg["interpolation"], cfg["crop_pct"]) == ("bicubic", 0.875)


@pytest.mark.parametrize("name", [SMALL, V2])
@pytest.mark.parametrize("pad_type", ["symmetric", "same"])
def test_a_stem_of_stride_1_halves_every_reduction_and_keeps_the_weights(name, pad_type):
    options = {"features_only": True, "pad_type": pad_type}
    usual, small = (create_model(name, stem_stride=n, **options).eval() for n in (2, 1))
    small.load_state_dict(usual.state_dict())
    assert small.feature_info.reduction() == [1, 2, 4, 8, 16]
    assert small.feature_info.channels() == usual.feature_info.channels()
    with torch.no_grad():
        assert [found.shape[-1] for found in small(image(side=32))] == [32, 16, 8, 4, 2]
        # As a network that sees twice the image: only the stem's stride is another.
        assert [found.shape[-1] for found in usual(image(side=64))] == [32, 16, 8, 4, 2]
    assert create_model(name, stem_stride=1).default_cfg["pool_size"] == (14, 14)


def test_a_stem_of_stride_1_is_dilated_from_its_own_reduction_on():
    model = create_model(SMALL, stem_stride=1, output_stride=8, features_only=True).eval()
    assert model.feature_info.reduction() == [1, 2, 4, 8, 8]
    with torch.no_grad():
        assert [found.shape[-1] for found in model(image(side=32))] == [32, 16, 8, 4, 4]


# Heads ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, features, hidden", [(SMALL, 288, 1024), (V2, 1280, 1280)])
def test_the_parts_of_the_forward_pass_make_the_whole(name, features, hidden):
    model = create_model(name, num_classes=7).eval()
    maps = model.forward_features(image())
    assert maps.shape == (2, features, 2, 2) and model.num_features == features
    pooled = model.forward_head(maps, pre_logits=True)
    assert pooled.shape == (2, hidden) and model.head_hidden_size == hidden
    assert torch.equal(model.get_classifier()(pooled), model(image()))
    assert torch.equal(model.forward_head(maps), model(image()))


@pytest.mark.parametrize("name", [SMALL, V2])
def test_without_a_classifier_the_pooled_features_come_out(name):
    model = create_model(name, num_classes=0).eval()
    assert isinstance(model.get_classifier(), torch.nn.Identity)
    assert model(image()).shape == (2, model.head_hidden_size)
    assert not any(key.startswith("classifier") for key in model.state_dict())


@pytest.mark.parametrize("name", [SMALL, V2])
def test_without_pooling_a_map_comes_out(name):
    model = create_model(name, num_classes=0, global_pool="").eval()
    assert model(image()).shape == (2, model.head_hidden_size, 2, 2)


def test_a_classifier_without_pooling_is_refused():
    with pytest.raises(ValueError, match="num_classes 0"):
        create_model(SMALL, global_pool="")


@pytest.mark.parametrize("name", [SMALL, V2])
def test_the_classifier_is_replaced_and_nothing_else(name):
    model = create_model(name).double().eval()
    trunk = {k: v.clone() for k, v in model.state_dict().items() if not k.startswith("classifier")}
    model.reset_classifier(4)
    assert model(image().double()).shape == (2, 4)  # the new layer has the type of the others
    assert model.num_classes == model.config["num_classes"] == model.default_cfg["num_classes"] == 4
    assert model.classifier.bias.abs().max() == 0
    assert 0 < model.classifier.weight.abs().max() <= 4**-0.5
    for key, value in trunk.items():
        assert torch.equal(model.state_dict()[key], value)
    model.reset_classifier(0, "")
    assert model(image().double()).dim() == 4
    with pytest.raises(ValueError, match="num_classes is -1"):
        model.reset_classifier(-1)
    assert model.config["num_classes"] == 0


# Saving, moving, scripting ----------------------------------------------------------------------


def test_a_copy_is_independent_and_pickles():
    model = create_model(SMALL).eval()
    twin = copy.deepcopy(model)
    twin.reset_classifier(3)
    assert (model.config["num_classes"], twin.config["num_classes"]) == (1000, 3)
    stream = io.BytesIO()
    torch.save(model.state_dict(), stream)
    stream.seek(0)
    other = create_model(SMALL).eval()
    other.load_state_dict(torch.load(stream))
    assert torch.equal(other(image()), model(image()))


@pytest.mark.parametrize("name", [SMALL, V2])
def test_channels_last_gives_the_same(name):
    model = create_model(name).eval()
    expected = model(image())
    model = model.to(memory_format=torch.channels_last)
    ours = model(image().contiguous(memory_format=torch.channels_last))
    assert torch.allclose(ours, expected, rtol=1e-4, atol=1e-5)


def test_batch_norms_become_synchronised_ones_without_losing_an_activation():
    model = create_model(SMALL)
    kinds = [type(m) for m in model.modules() if not isinstance(m, torch.nn.BatchNorm2d)]
    synced = torch.nn.SyncBatchNorm.convert_sync_batchnorm(create_model(SMALL))
    sync = torch.nn.SyncBatchNorm
    assert [type(m) for m in synced.modules() if not isinstance(m, sync)] == kinds
    assert sum(isinstance(m, sync) for m in synced.modules()) == 34  # batch norms of V3-Small


@pytest.mark.parametrize("name", [SMALL, V2])
@pytest.mark.parametrize("pad_type", ["symmetric", "same"])
def test_scripted_and_traced_networks_give_the_same_at_any_size(name, pad_type):
    model = create_model(name, pad_type=pad_type).eval()
    with torch.no_grad():
        forms = [torch.jit.script(model), torch.jit.trace(model, image(side=64))]
        for side in (64, 75):
            expected = model(image(side=side))
            for form in forms:
                assert (form(image(side=side)) - expected).abs().max() <= 1e-6


def test_a_scripted_network_trains_with_dropout_and_drop_path():
    model = create_model(SMALL, drop_rate=0.2, drop_path_rate=0.2).train()
    scripted = torch.jit.script(copy.deepcopy(model))
    outputs = []
    for form in (model, scripted):
        torch.manual_seed(0)
        outputs.append(form(image()))
        outputs[-1].sum().backward()
    assert torch.allclose(*outputs, rtol=1e-4, atol=1e-5)
