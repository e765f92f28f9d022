"""Every name that a user of a peer types, and what is said about the others."""
import pytest

from mobilenetv3.models import canonical_name, create_model, list_models, resolve_name
from mobilenetv3.models.counts import count_params
from mobilenetv3.models.names import (
    ALIASES,
    MODELS,
    TORCHVISION_WIDTH_ALIASES,
    aliases_of,
    name_of,
    takes_any_width,
)


def test_canonical_names_are_timms_and_those_of_networks_that_timm_lacks():
    assert list_models("mobilenetv3*") == [
        "mobilenetv3_large_075",
        "mobilenetv3_large_100",
        "mobilenetv3_large_150d",
        "mobilenetv3_rw",
        "mobilenetv3_small_050",
        "mobilenetv3_small_075",
        "mobilenetv3_small_100",
        "mobilenetv3_small_1280",
    ]
    assert list_models("tf_*") == [
        "tf_mobilenetv3_large_075",
        "tf_mobilenetv3_large_100",
        "tf_mobilenetv3_large_minimal_100",
        "tf_mobilenetv3_small_075",
        "tf_mobilenetv3_small_100",
        "tf_mobilenetv3_small_minimal_100",
    ]
    assert list_models("mobilenetv2*") == [
        "mobilenetv2_035",
        "mobilenetv2_050",
        "mobilenetv2_075",
        "mobilenetv2_100",
        "mobilenetv2_110d",
        "mobilenetv2_120d",
        "mobilenetv2_140",
    ]
    assert list_models("dli14_*") == [
        "dli14_mobilenetv3_large_075",
        "dli14_mobilenetv3_large_100",
        "dli14_mobilenetv3_small_075",
        "dli14_mobilenetv3_small_100",
    ]
    others = {
        *(f"xiaolai{year}_mobilenetv3_{size}"
          for year in ("2019", "2019old", "2023") for size in ("large", "small")),
        "lraspp_mobilenetv3_large",
        "lraspp_mobilenetv3_small",
    }
    assert {*list_models("xiaolai*"), *list_models("lraspp*")} == others
    assert len(list_models()) == 8 + 6 + 7 + 4 + 6 + 2


@pytest.mark.parametrize("name", list_models())
def test_every_name_builds_a_network_that_bears_it(name):
    model = create_model(name, num_classes=2)
    assert model.config["arch"] == name
    assert model.default_cfg["architecture"] == name
    assert create_model(**model.config).config == model.config


@pytest.mark.parametrize(
    "alias, canonical",
    [
        ("mobilenet", "mobilenetv3_large_100"),  # the default of Ascend's script
        ("mobilenet_v3_large", "mobilenetv3_large_100"),
        ("mobilenet_v3_small", "mobilenetv3_small_100"),
        ("mobilenet_v3_large_100", "mobilenetv3_large_100"),
        ("mobilenet_v3_small_100", "mobilenetv3_small_100"),
        ("mobilenet_v2_075", "mobilenetv2_075"),
        ("mobilenet_v2_100", "mobilenetv2_100"),
        ("mobilenet_v2_140", "mobilenetv2_140"),
        ("mobilenet_v2", "mobilenetv2_100"),
        ("mobilenet-v3-small-050", "mobilenetv3_small_050"),
        ("mobilenet-v3-small-075", "mobilenetv3_small_075"),
        ("mobilenet-v3-small", "mobilenetv3_small_100"),
        ("mobilenet-v3-large", "mobilenetv3_large_100"),
        ("lraspp_mobilenet_v3_large", "lraspp_mobilenetv3_large"),  # torchvision's
        ("tf_mobilenetv3_small", "tf_mobilenetv3_small_100"),
        ("dli14_mobilenetv3_large", "dli14_mobilenetv3_large_100"),
    ],
)
def test_aliases_of_the_peers_follow_timms_width_rule(alias, canonical):
    assert canonical_name(alias) == canonical
    assert resolve_name(alias).width_rule == "timm"
    assert alias in aliases_of(canonical)


@pytest.mark.parametrize(
    "alias, params", [("mobilenet_v3_large_075", 3_377_576), ("mobilenet_v3_small_075", 1_653_920)]
)
def test_mindcvs_narrow_names_build_torchvisions_widths(alias, params):
    model = create_model(alias)
    assert count_params(model) == params
    assert model.config["width_rule"] == "torchvision"
    assert model.config["pad_type"] == "symmetric"  # the padding belongs to converted weights


def test_an_explicit_width_rule_wins_over_the_names():
    assert count_params(create_model("mobilenet_v3_small_075", width_rule="timm")) == 2_041_872


def test_a_dash_and_an_underscore_name_different_networks():
    dashed, underscored = "mobilenet-v3-small-075", "mobilenet_v3_small_075"
    assert resolve_name(dashed).width_rule != resolve_name(underscored).width_rule


def test_every_alias_leads_to_a_model():
    assert {*ALIASES.values(), *TORCHVISION_WIDTH_ALIASES.values()} <= set(MODELS)


@pytest.mark.parametrize(
    "typed, near",
    [
        ("mobilenetv3_larg_100", "near names: mobilenetv3_large_100"),
        ("mobilenet_v3_small_050", "near names: mobilenetv3_small_050"),
        ("MobileNetV2", "near names: .*mobilenet_v2"),
        ("resnet50", "known names: .*mobilenetv2_100"),
    ],
)
def test_an_unknown_name_lists_the_near_ones(typed, near):
    with pytest.raises(ValueError, match=f"{typed}'; {near}"):
        create_model(typed)


def test_list_models_takes_a_shell_pattern():
    assert list_models("*v2_0*") == ["mobilenetv2_035", "mobilenetv2_050", "mobilenetv2_075"]
    assert list_models("resnet*") == []


def test_a_width_without_a_name_is_named_by_its_family():
    assert name_of("mobilenetv3_small", 0.5) == "mobilenetv3_small_050"
    assert name_of("mobilenetv3_small", 0.6) == "mobilenetv3_small"


@pytest.mark.parametrize(
    "name, family",
    [
        ("mobilenetv3_large", True),
        ("tf_mobilenetv3_large_minimal", True),
        ("dli14_mobilenetv3_small", True),
        ("mobilenetv3_large_100", False),
        ("mobilenetv3_rw", False),  # a family with a single width
        ("mobilenet", False),  # an alias of a name with a width
        ("resnet50", False),
    ],
)
def test_a_name_without_a_width_takes_any(name, family):
    assert takes_any_width(name) is family
