"""`width_rule="torchvision"` and V2 against torchvision's networks, tensor by tensor in order."""
import pytest
import torch

from mobilenetv3.models import create_model

tv = pytest.importorskip("torchvision.models", reason="the reference implementation is missing")


def torchvisions(name, width):
    """A network of torchvision's with random weights and batch-norm statistics."""
    torch.manual_seed(0)
    builder = getattr(tv, name)
    try:
        model = builder(width_mult=width)
    except TypeError:  # torchvision 0.9 has the option of V3 under a private name
        model = builder(_width_mult=width)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
    return model.eval()


def copied(source, model):
    """`model` with the tensors of `source`, which come in the same order in both."""
    ours, theirs = model.state_dict(), source.state_dict()
    assert len(ours) == len(theirs)
    state = {}
    for (key, tensor), value in zip(ours.items(), theirs.values()):
        # The head is a 1x1 convolution here and a linear layer there; all else has equal shapes.
        assert tensor.shape == value.shape or key == "conv_head.weight", key
        state[key] = value.reshape(tensor.shape)
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize(
    "family, width",
    [
        ("large", 0.75),
        ("large", 1.0),
        ("small", 0.5),
        ("small", 0.75),
        ("small", 1.0),
        ("small", 0.35),  # widths without a name in timm; here the last convolution tells the two
        ("large", 1.3),  # ways of scaling it apart
    ],
)
def test_v3_is_torchvisions(family, width):
    source = torchvisions(f"mobilenet_v3_{family}", width)
    model = create_model(
        f"mobilenetv3_{family}", width_mult=width, width_rule="torchvision", bn_eps=1e-3
    )
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = source(x)
        assert (copied(source, model)(x) - expected).abs().max() <= 1e-5
    assert expected.std() > 1e-3


@pytest.mark.parametrize("width", [0.35, 0.5, 0.75, 1.0, 1.4])
def test_v2_is_torchvisions(width):
    source = torchvisions("mobilenet_v2", width)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = source(x)
        model = copied(source, create_model("mobilenetv2", width_mult=width))
        assert (model(x) - expected).abs().max() <= 1e-5
    assert expected.std() > 1e-3


def test_bn_eps_is_part_of_what_weights_mean():
    source = torchvisions("mobilenet_v3_small", 1.0)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        wrong = copied(source, create_model("mobilenetv3_small_100"))  # eps 1e-5, not 1e-3
        assert (wrong(x) - source(x)).abs().max() > 1e-5
