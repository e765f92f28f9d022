"""Weights from timm by name; timm's download is replaced by its random weights."""
import pytest
import torch

from mobilenetv3 import api
from mobilenetv3.models import create_model, load_timm_weights, pretrained

timm = pytest.importorskip("timm", reason="the weights are timm's")


@pytest.fixture(name="asked")
def published_weights_are_random(monkeypatch):
    """The calls that would have fetched something."""
    calls, build = [], timm.create_model

    def fake(name, pretrained, **options):
        calls.append((name, pretrained, options))
        torch.manual_seed(0)
        return build(name, **options)

    monkeypatch.setattr(timm, "create_model", fake)
    monkeypatch.setattr(pretrained, "read_for_timm", lambda arch: {})  # else from the hub
    return calls


def published(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, pretrained=False, **options).state_dict()


def test_the_weights_of_the_models_name_are_loaded(asked):
    model = create_model("tf_mobilenetv3_small_minimal_100", num_classes=5, in_chans=1)
    assert load_timm_weights(model) == []
    options = {"num_classes": 5, "in_chans": 1}
    assert asked == [("tf_mobilenetv3_small_minimal_100", True, options)]
    expected = published("tf_mobilenetv3_small_minimal_100", **options)
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


def test_options_that_the_weights_were_not_trained_with_are_told(asked):
    model = create_model("tf_mobilenetv3_small_075", bn_eps=1e-5, pad_type="symmetric")
    assert load_timm_weights(model) == [
        "the model has bn_eps 1e-05, timm's weights for tf_mobilenetv3_small_075 were trained "
        "with 0.001",
        "the model has pad_type symmetric, timm's weights for tf_mobilenetv3_small_075 were "
        "trained with same",
    ]


def test_a_backbone_takes_its_part_of_the_weights(asked):
    model = create_model("mobilenetv3_small_050", features_only=True, out_indices=(2, 3))
    load_timm_weights(model)
    expected = published("mobilenetv3_small_050")
    assert all(torch.equal(tensor, expected[key]) for key, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "name", ["dli14_mobilenetv3_small_100", "xiaolai2023_mobilenetv3_small", "mobilenetv2"]
)
def test_a_name_that_timm_does_not_have_is_refused_without_asking(asked, name):
    width = {"width_mult": 0.6} if name == "mobilenetv2" else {}
    with pytest.raises(ValueError, match=f"timm has no weights for {name}; give a file"):
        load_timm_weights(create_model(name, **width))
    assert asked == []


def test_another_width_rule_is_told(asked):
    model = create_model("mobilenetv3_small_075", width_rule="torchvision")
    with pytest.raises(ValueError, match="another network than the one asked for .*torchvision"):
        load_timm_weights(model)


def test_weights_out_of_reach_are_one_sentence(monkeypatch):
    def unreachable(*_args, **_options):
        raise OSError("no route to the hub\nand a long explanation")

    monkeypatch.setattr(timm, "create_model", unreachable)
    monkeypatch.setattr(pretrained, "read_for_timm", lambda arch: {})
    with pytest.raises(ValueError, match=r"mobilenetv2_050 could not be had \(no route to the hub"):
        load_timm_weights(create_model("mobilenetv2_050"))


def test_create_model_did_not_know_timms_pretrained(asked):
    model = create_model("mobilenetv3_small_050", pretrained=True)
    assert [name for name, *_ in asked] == ["mobilenetv3_small_050"]
    expected = published("mobilenetv3_small_050")["conv_stem.weight"]
    assert torch.equal(model.conv_stem.weight, expected)
    with pytest.warns(UserWarning, match="the model has bn_eps 0.001, timm's weights for"):
        create_model("mobilenetv3_small_050", bn_eps=1e-3, pretrained=True)
    asked.clear()
    model = create_model("mobilenetv3_small_050", pretrained=False)
    assert asked == [] and "pretrained" not in model.config
    with pytest.raises(ValueError, match="^timm has no weights for lraspp_.*; give a file of weig"):
        create_model("lraspp_mobilenetv3_small", pretrained=True)


def test_a_file_or_a_dict_cannot_ask_for_timms_weights(asked, tmp_path):
    model = create_model("mobilenetv3_small_050", num_classes=3)
    config = {**model.config, "pretrained": True}
    torch.save({"model": config, "state_dict": model.state_dict()}, str(tmp_path / "a.pth"))
    with pytest.raises(ValueError, match="its description of the network has pretrained"):
        api.init_model(None, tmp_path / "a.pth", "cpu")
    with pytest.raises(ValueError, match="'pretrained', which is an argument of init_model itself"):
        api.init_model(config, None, "cpu")
    assert asked == []
