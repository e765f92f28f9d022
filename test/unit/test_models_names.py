"""Every name that a user of a peer types, and what is said about the others."""
import pytest

from mobilenetv3.models import canonical_name, create_model, list_models, resolve_name
from mobilenetv3.models.counts import count_params
from mobilenetv3.models.names import ALIASES, MODELS, TORCHVISION_WIDTH_ALIASES, aliases_of, name_of


def test_canonical_names_are_timms():
    assert list_models() == [
        "mobilenetv3_large_075",
        "mobilenetv3_large_100",
        "mobilenetv3_small_050",
        "mobilenetv3_small_075",
        "mobilenetv3_small_100",
        "mobilenetv2_035",
        "mobilenetv2_050",
        "mobilenetv2_075",
        "mobilenetv2_100",
        "mobilenetv2_140",
    ]


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
