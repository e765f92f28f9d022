"""LR-ASPP against torchvision's, tensor by tensor in order."""
import inspect

import pytest
import torch
from torch import nn

from mobilenetv3.models import LRASPP, create_model

segmentation = pytest.importorskip(
    "torchvision.models.segmentation", reason="the reference implementation is missing"
)


def torchvisions(num_classes=21):
    """torchvision's network with random weights and batch-norm statistics."""
    torch.manual_seed(0)
    build = segmentation.lraspp_mobilenet_v3_large
    offline = {  # what keeps it from fetching weights has had two names
        name: value
        for name, value in (("weights_backbone", None), ("pretrained_backbone", False))
        if name == "pretrained_backbone" or "weights" in inspect.signature(build).parameters
    }
    if "weights_backbone" in offline:
        del offline["pretrained_backbone"]
    return randomised(build(num_classes=num_classes, **offline))


def torchvisions_small():
    """The same of V3-Small, for which torchvision has the parts but no name."""
    module = pytest.importorskip("torchvision.models.segmentation.lraspp")
    if not hasattr(module, "_lraspp_mobilenetv3"):
        pytest.skip("this torchvision puts LR-ASPP together for V3-Large only")
    torch.manual_seed(0)
    from torchvision.models import mobilenet_v3_small

    backbone = mobilenet_v3_small(weights=None, dilated=True)
    return randomised(module._lraspp_mobilenetv3(backbone, 21))


def randomised(model):
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def copied(source, model):
    """`model` with the tensors of `source`: equal shapes in an equal order."""
    ours, theirs = model.state_dict(), source.state_dict()
    assert [tuple(t.shape) for t in ours.values()] == [tuple(t.shape) for t in theirs.values()]
    model.load_state_dict(dict(zip(ours, theirs.values())))
    return model.eval()


@pytest.mark.parametrize("shape", [(64, 64), (97, 130)])
def test_the_output_is_torchvisions(shape):
    source = torchvisions()
    model = copied(source, create_model("lraspp_mobilenetv3_large", num_classes=21))
    x = torch.randn(2, 3, *shape)
    with torch.no_grad():
        output, expected = model(x), source(x)["out"]
    assert list(output) == ["out"] and output["out"].shape == (2, 21, *shape)
    assert (output["out"] - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())
    assert expected.std() > 0.05  # the images and the weights do matter


def test_the_small_one_is_made_in_the_same_way():
    source = torchvisions_small()
    model = copied(source, create_model("lraspp_mobilenetv3_small"))
    x = torch.randn(1, 3, 70, 64)
    with torch.no_grad():
        expected = source(x)["out"]
        assert (model(x)["out"] - expected).abs().max() <= 1e-5 * max(1.0, expected.abs().max())


def test_names_of_the_head_are_torchvisions():
    ours, theirs = (
        [key for key in model.state_dict() if key.startswith("classifier.")]
        for model in (create_model("lraspp_mobilenetv3_large"), torchvisions())
    )
    assert ours == theirs


def test_weights_of_a_classifier_load_as_the_backbone():
    model = create_model("lraspp_mobilenetv3_large")
    weights = create_model("mobilenetv3_large_100").state_dict()
    backbone = {key: weights[key] for key in model.backbone.state_dict()}
    model.backbone.load_state_dict(backbone)
    left = {key.split(".")[0] for key in weights if key not in backbone}
    assert left == {"conv_head", "classifier"}


def test_the_backbone_has_torchvisions_epsilon_and_the_head_torchs():
    model = create_model("lraspp_mobilenetv3_large", bn_momentum=0.01)
    norms = {
        part: {(m.eps, m.momentum) for m in getattr(model, part).modules()
               if isinstance(m, nn.BatchNorm2d)}
        for part in ("backbone", "classifier")
    }
    assert norms == {"backbone": {(1e-3, 0.01)}, "classifier": {(1e-5, 0.1)}}
    assert create_model("lraspp_mobilenetv3_large", bn_eps=1e-5).config["bn_eps"] == 1e-5


def test_the_configuration_builds_the_same_network():
    model = create_model(
        "lraspp_mobilenetv3_small", num_classes=3, in_chans=1, pad_type="same", drop_path_rate=0.1
    )
    again = create_model(**model.config)
    assert again.config == model.config and repr(again) == repr(model)
    assert again.eval()(torch.randn(1, 1, 40, 40))["out"].shape == (1, 3, 40, 40)


def test_the_number_of_classes_is_pascals_unless_given():
    assert create_model("lraspp_mobilenetv3_small").num_classes == LRASPP().num_classes == 21
    assert create_model("lraspp_mobilenetv3_small", num_classes=1000).num_classes == 1000


@pytest.mark.parametrize(
    "option, value, told",
    [
        ("num_classes", 0, "num_classes is 0, expected an integer of 1"),
        ("backbone", "mobilenetv2", "backbone is 'mobilenetv2', expected one of mobilenetv3_large"),
        ("in_chans", 0, "in_chans is 0"),
    ],
)
def test_a_value_out_of_range_is_an_error_that_names_it(option, value, told):
    with pytest.raises(ValueError, match=told):
        LRASPP(**{option: value})


def test_the_classifier_is_replaced_and_nothing_else():
    model = create_model("lraspp_mobilenetv3_small").double()
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    model.reset_classifier(4)
    assert model.num_classes == model.config["num_classes"] == model.default_cfg["num_classes"] == 4
    changed = {
        key for key, tensor in model.state_dict().items()
        if tensor.shape != before[key].shape or not torch.equal(tensor, before[key])
    }
    assert changed == {f"classifier.{level}_classifier.{kind}"
                       for level in ("low", "high") for kind in ("weight", "bias")}
    assert model.eval()(torch.randn(1, 3, 40, 40).double())["out"].shape[1] == 4


def test_it_trains_all_its_parameters():
    model = create_model("lraspp_mobilenetv3_small", num_classes=4).train()
    labels = torch.randint(4, (2, 64, 64), generator=torch.Generator().manual_seed(0))
    scores = model(torch.randn(2, 3, 64, 64))["out"]
    nn.functional.cross_entropy(scores, labels).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_scripted_and_traced_networks_give_the_same_at_any_size():
    model = create_model("lraspp_mobilenetv3_small").eval()
    forms = [torch.jit.script(model),
             torch.jit.trace(model, torch.randn(1, 3, 64, 64), strict=False)]
    x = torch.randn(2, 3, 75, 50)
    with torch.no_grad():
        for form in forms:
            assert (form(x)["out"] - model(x)["out"]).abs().max() <= 1e-6
