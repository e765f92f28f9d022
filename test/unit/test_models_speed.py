"""What makes the networks faster, against the plain form of the same."""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilenetv3.models import backward, create_model, fuse_conv_bn, set_fast_backward

LAYOUTS = [torch.contiguous_format, torch.channels_last]


@pytest.fixture(autouse=True)
def fast_afterwards():
    yield
    set_fast_backward(True)


def gradients(function, *inputs):
    """The output of a function, and what an uneven loss of it gives each input as gradient."""
    inputs = [each.detach().clone().requires_grad_() for each in inputs]
    output = function(*inputs)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad((output * weights).sum(), inputs)]


def both_ways(function, *inputs):
    found = []
    for fast in (True, False):
        set_fast_backward(fast)
        found.append(gradients(function, *inputs))
    return zip(*found)


@pytest.mark.parametrize("size", [(7, 7), (8, 8), (14, 9), (5, 1), (3, 4)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("padding", [0, 2])
def test_gradients_of_a_depthwise_convolution_are_those_of_pytorch(size, stride, padding):
    if min(size) + 2 * padding < 5:
        return  # PyTorch refuses it
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size, dtype=torch.float64)
    weight = torch.randn(4, 1, 5, 5, dtype=torch.float64)

    def convolve(x, weight):
        return backward.depthwise_5(x, weight, (stride, stride), (padding, padding))
    for fast, plain in both_ways(convolve, x, weight):
        assert (fast - plain).abs().max() <= 1e-12  # double: sums in another order


@pytest.mark.parametrize("width, stride, is_split", [(4, 1, False), (5, 1, True), (8, 2, False),
                                                     (9, 2, True)])
def test_small_maps_keep_the_plain_form_which_is_faster_there(width, stride, is_split):
    x = torch.randn(1, 2, width, width)
    weight = torch.randn(2, 1, 5, 5, requires_grad=True)
    output = backward.depthwise_5(x, weight, (stride, stride), (2, 2))
    could_split = backward._convolution_backward is not None and backward._IS_X86
    assert ("Depthwise5" in type(output.grad_fn).__name__) == (is_split and could_split)


def test_gradients_of_a_depthwise_convolution_have_gradients():
    torch.manual_seed(0)
    x = torch.randn(1, 2, 6, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(
        lambda *given: backward.depthwise_5(*given, (2, 2), (2, 2)), (x, weight)
    )


@pytest.mark.parametrize("size, is_cropped", [((2, 2), True), ((1, 2), True), ((3, 2), False)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_on_the_smallest_maps_the_weights_that_meet_no_pixel_are_left_out(size, is_cropped, layout):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *size, dtype=torch.float64).contiguous(memory_format=layout)
    weight = torch.randn(4, 1, 5, 5, dtype=torch.float64)

    def convolve(x, weight):
        return backward.depthwise_5(x, weight, (1, 1), (2, 2))
    for fast, plain in both_ways(convolve, x, weight):
        assert (fast - plain).abs().max() <= 1e-12  # double: sums in another order
    if backward._IS_X86:
        set_fast_backward(True)
        assert backward._sees_inner_3(x, weight, (1, 1), (2, 2)) == is_cropped


@pytest.mark.parametrize("size, is_product", [((1, 1), True), ((2, 1), False)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_a_convolution_of_one_pixel_is_a_product_of_matrices(size, is_product, has_bias):
    torch.manual_seed(0)
    x = torch.randn(5, 6, *size, dtype=torch.float64)
    weight = torch.randn(7, 6, 1, 1, dtype=torch.float64)
    bias = [torch.randn(7, dtype=torch.float64)] if has_bias else []

    def convolve(x, weight, bias=None):
        return backward.pooled_conv(x, weight, bias)
    for fast, plain in both_ways(convolve, x, weight, *bias):
        assert fast.shape == plain.shape
        assert (fast - plain).abs().max() <= 1e-12  # double: sums in another order
    set_fast_backward(True)
    output = backward.pooled_conv(x, weight.requires_grad_(), None)
    is_convolved = "onv" in type(output.grad_fn).__name__
    assert is_convolved != (is_product and backward._IS_X86)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_means_of_channels_have_the_gradient_of_a_mean(layout):
    x = torch.randn(3, 6, 5, 4).contiguous(memory_format=layout)
    for fast, plain in both_ways(backward.spatial_mean, x):
        assert (fast - plain).abs().max() <= 1e-7  # one rounding


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "tf_mobilenetv3_small_075",
                                  "mobilenetv2_050"])
def test_turning_the_faster_forms_off_gives_the_same_losses(name):
    torch.manual_seed(0)
    start = create_model(name, num_classes=5)
    images, targets = torch.randn(6, 3, 48, 48), torch.arange(6) % 5
    losses = []
    for fast in (True, False):
        set_fast_backward(fast)
        model = copy.deepcopy(start).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        losses.append([])
        for _ in range(3):
            loss = F.cross_entropy(model(images), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses[-1].append(loss.item())
    # V2 has no layers after pooling but the classifier; those of V3 sum in another order.
    first = losses[1][0] if "v2" in name else pytest.approx(losses[1][0], rel=1e-6)
    assert losses[0][0] == first
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)  # as above, over 3 steps


def test_a_network_in_training_is_traced_scripted_and_taken_apart_with_plain_operators():
    model = create_model("mobilenetv3_small_050", num_classes=5).train()
    images = torch.randn(2, 3, 64, 64)
    twins = [copy.deepcopy(model) for _ in range(4)]
    forms = [torch.jit.script(twins[0]), torch.jit.trace(twins[1], images, check_trace=False),
             torch.fx.symbolic_trace(twins[2])]
    twins[1].load_state_dict(model.state_dict())  # tracing moved its running statistics
    expected = twins[3](images)
    for form in forms:
        assert (form.train()(images) - expected).abs().max() <= 1e-5


@pytest.mark.parametrize("layer", [nn.Hardswish(), nn.ReLU6()])
def test_activations_leave_their_input_alone_in_training(layer):
    from mobilenetv3.models.layers import ACTIVATIONS

    name = {"Hardswish": "hard_swish", "ReLU6": "relu6"}[type(layer).__name__]
    ours, x = ACTIVATIONS[name](), torch.linspace(-8, 8, 65)
    before = x.clone()
    assert torch.equal(ours.train()(x), layer(x))
    assert torch.equal(x, before)
    assert torch.equal(ours.eval()(x), x)  # in place: nothing keeps the input
    assert torch.equal(x, layer(before))


@pytest.mark.parametrize("name", [
    "mobilenetv3_large_100", "mobilenetv2_100", "tf_mobilenetv3_small_minimal_100",
    "lraspp_mobilenetv3_large", "xiaolai_mobilenetv3_large_2019",
])
def test_folded_batch_norms_give_the_same_output(name):
    from mobilenetv3.models import list_models

    if name not in list_models():
        name = next(known for known in list_models() if known.startswith("xiaolai"))
    torch.manual_seed(0)
    model = create_model(name)
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.train()
        for _ in range(3):
            model(torch.randn(4, 3, 64, 64) * 2 + 1)  # statistics that are not 0 and 1
        expected = model.eval()(images)
        fused = fuse_conv_bn(model)
        found = fused(images)
    if isinstance(expected, dict):
        expected, found = expected["out"], found["out"]
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fused.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in model.modules())  # a copy
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
