"""The layers one by one, against plain arithmetic."""
import pytest
import torch
from torch import nn

from mobilenetv3.models.layers import (
    Conv2dSame,
    DropPath,
    HardSigmoid,
    HardSwish,
    SqueezeExcite,
    conv2d,
    depthwise_conv2d,
    same_padding,
    set_fused_activations,
)


def with_gradient(function, x):
    x = x.clone().requires_grad_()
    y = function(x * 1.0)  # hard-swish overwrites its input, which must not be a leaf
    (gradient,) = torch.autograd.grad(y.sum(), x)
    return y.detach(), gradient


@pytest.fixture(autouse=True)
def fused_afterwards():
    yield
    set_fused_activations(True)


@pytest.mark.parametrize("kind", [HardSwish, HardSigmoid])
def test_both_forms_of_a_hard_activation_agree(kind):
    # Every 1/256 from -5 to 5, but for the two points without a derivative.
    x = torch.arange(-1280, 1281, dtype=torch.float32) / 256
    x = x[x.abs() != 3]
    layer = kind()
    fused = with_gradient(layer, x)
    set_fused_activations(False)  # holds for the layer that is there already
    for one, other in zip(fused, with_gradient(layer, x)):
        assert (one - other).abs().max() <= 1e-6


@pytest.mark.parametrize("fused", [True, False])
def test_hard_activations_at_their_corners(fused):
    set_fused_activations(fused)
    x = torch.tensor([-4.0, -3.0, 0.0, 3.0, 5.0])
    assert HardSigmoid()(x.clone()).tolist() == [0, 0, 0.5, 1, 1]
    assert HardSwish()(x.clone()).tolist() == [0, 0, 0, 3, 5]


def test_a_scripted_layer_has_the_form_chosen_before():
    set_fused_activations(False)
    scripted = torch.jit.script(HardSwish())
    assert "hardswish" not in str(scripted.inlined_graph)
    set_fused_activations(True)
    assert "hardswish" in str(torch.jit.script(HardSwish()).inlined_graph)


@pytest.mark.parametrize(
    "size, kernel, stride, expected",
    # An even side at stride 2 has one pixel less in front; an odd one is padded evenly.
    [
        (224, 3, 2, (0, 1)),
        (225, 3, 2, (1, 1)),
        (112, 5, 2, (1, 2)),
        (7, 5, 2, (2, 2)),
        (7, 5, 1, (2, 2)),
    ],
)
def test_same_padding_is_tensorflows(size, kernel, stride, expected):
    assert same_padding(size, kernel, stride) == expected
    assert (size + sum(expected) - kernel) // stride + 1 == -(-size // stride)


@pytest.mark.parametrize("size", [(6, 6), (7, 7), (6, 9), (1, 1)])
def test_same_convolution_puts_the_extra_pixel_after(size):
    conv = depthwise_conv2d(1, 3, 2, "same_depthwise")
    assert isinstance(conv, Conv2dSame)
    x = torch.randn(1, 1, *size)
    padded = torch.zeros(1, 1, size[0] + 3, size[1] + 3)
    top, left = (0 if side % 2 == 0 else 1 for side in size)
    padded[:, :, top : top + size[0], left : left + size[1]] = x
    rows, columns = -(-size[0] // 2), -(-size[1] // 2)
    expected = nn.functional.conv2d(padded, conv.weight, stride=2)[:, :, :rows, :columns]
    assert torch.allclose(conv(x), expected, atol=1e-6)


def test_pad_types_choose_which_convolutions_pad_as_tensorflow():
    assert type(depthwise_conv2d(8, 3, 2, "symmetric")) is nn.Conv2d
    assert type(depthwise_conv2d(8, 3, 2, "same")) is Conv2dSame
    assert type(depthwise_conv2d(8, 3, 1, "same")) is nn.Conv2d  # the two rules agree at stride 1
    assert conv2d(8, 8, 5).padding == (2, 2)


def test_squeeze_excite_multiplies_each_channel_by_its_gate():
    torch.manual_seed(0)
    layer, x = SqueezeExcite(6, 2), torch.randn(3, 6, 4, 5)
    means = x.reshape(3, 6, 20).sum(2) / 20
    hidden = torch.relu(means @ layer.conv_reduce.weight[:, :, 0, 0].T + layer.conv_reduce.bias)
    gate = hidden @ layer.conv_expand.weight[:, :, 0, 0].T + layer.conv_expand.bias
    gate = ((gate + 3) / 6).clamp(0, 1)
    assert torch.allclose(layer(x), x * gate[:, :, None, None], atol=1e-6)


def test_drop_path_drops_whole_samples_and_keeps_the_mean():
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(4000, 2, 1, 1)
    y = layer.train()(x)
    assert sorted(y.unique().tolist()) == pytest.approx([0.0, 4 / 3])  # dropped, or kept / 0.75
    assert torch.equal(y[:, 0], y[:, 1])
    # Three standard errors: 3 * 0.58 / sqrt(4000).
    assert y.mean().item() == pytest.approx(1.0, abs=0.03)
    assert torch.equal(layer.eval()(x), x)
