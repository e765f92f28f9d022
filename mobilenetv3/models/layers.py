"""The layers of MobileNets that torch lacks, or has in a form that does not fit."""
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .backward import depthwise_5, pooled_conv, spatial_mean

fx.wrap("depthwise_5")  # a tracer that has no values, such as torchvision's, takes them as they are
fx.wrap("pooled_conv")
fx.wrap("spatial_mean")

# "symmetric" pads k // 2 on every side. "same" is TensorFlow's rule, which at stride 2 and an even
# size pads the bottom and the right only, so weights trained with one need that one.
PAD_TYPES = ("symmetric", "same_depthwise", "same")


def same_padding(size: int, kernel: int, stride: int) -> Tuple[int, int]:
    """TensorFlow's SAME padding (before, after) along one side; the output is ceil(size / stride).

    For kernel >= stride, as everywhere here; a smaller kernel would need none.
    """
    total = ((size + stride - 1) // stride - 1) * stride + kernel - size
    return total // 2, total - total // 2


class Conv2dSame(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, worked out for each input.

    (N, C, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).
    """

    def forward(self, x: Tensor) -> Tensor:
        top, bottom = same_padding(x.shape[2], self.kernel_size[0], self.stride[0])
        left, right = same_padding(x.shape[3], self.kernel_size[1], self.stride[1])
        x = F.pad(x, [left, right, top, bottom])
        return F.conv2d(x, self.weight, self.bias, self.stride, groups=self.groups)


class Depthwise5(nn.Conv2d):
    """Depthwise convolution 5 wide without dilation, whose training is faster: see `depthwise_5`.

    (N, C, H, W) -> (N, C, H', W').
    """

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.training and self.bias is None:
            return depthwise_5(x, self.weight, self.stride, self.padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, groups=self.groups)


class PooledConv2d(nn.Conv2d):
    """1x1 convolution of pooled maps, whose training is faster: see `pooled_conv`.

    (N, C, 1, 1) -> (N, out_channels, 1, 1); larger maps are convolved as they are.
    """

    def __init__(self, in_chs: int, out_chs: int, bias: bool = True):
        super().__init__(in_chs, out_chs, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.training:
            return pooled_conv(x, self.weight, self.bias)
        return F.conv2d(x, self.weight, self.bias)


class GlobalAvgPool(nn.AdaptiveAvgPool2d):
    """Means of the channels, whose training is faster: (N, C, H, W) -> (N, C, 1, 1)."""

    def __init__(self) -> None:
        super().__init__(1)

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.training:
            return spatial_mean(x)
        return F.adaptive_avg_pool2d(x, 1)


def conv2d(
    in_chs: int,
    out_chs: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    same: bool = False,
    dilation: int = 1,
) -> nn.Conv2d:
    """Convolution without bias; `same` pads by TensorFlow's rule."""
    assert stride == 1 or dilation == 1  # dilation takes the place of strides
    if same and stride > 1:  # at stride 1 the SAME padding of an odd kernel is the symmetric one
        return Conv2dSame(in_chs, out_chs, kernel, stride, groups=groups, bias=False)
    padding = dilation * (kernel // 2)
    if groups == in_chs == out_chs and kernel == 5 and dilation == 1:
        return Depthwise5(in_chs, out_chs, 5, stride, padding, groups=groups, bias=False)
    return nn.Conv2d(in_chs, out_chs, kernel, stride, padding, dilation, groups, bias=False)


def depthwise_conv2d(
    channels: int, kernel: int, stride: int, pad_type: str, dilation: int = 1
) -> nn.Conv2d:
    """Convolution of each channel by itself, without bias, padded as one of PAD_TYPES says."""
    same = pad_type != "symmetric"
    return conv2d(channels, channels, kernel, stride, channels, same, dilation)


class HardSwish(nn.Module):
    """x * relu6(x + 3) / 6, element by element (Howard et al. 2019, section 5.2)."""

    __constants__ = ["fused"]
    fused = True

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            # The backward pass needs the input, so in place a copy of it would be made first.
            return F.hardswish(x, inplace=not self.training)
        return x * (F.relu6(x + 3.0) / 6.0)


class ReLU6(nn.ReLU6):
    """min(max(x, 0), 6), element by element; in place but in training, for HardSwish's reason."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x, inplace=not self.training)


class HardSigmoid(nn.Module):
    """relu6(x + 3) / 6, element by element (Howard et al. 2019, section 5.2)."""

    __constants__ = ["fused"]
    fused = True

    def forward(self, x: Tensor) -> Tensor:
        if self.fused:
            return F.hardsigmoid(x, inplace=True)
        return F.relu6(x + 3.0) / 6.0


def set_fused_activations(fused: bool) -> None:
    """Choose between torch's kernels (the default) and relu6, for every model of this process.

    torch's take a third of the time on a CPU, forward and backward. Turn them off on Ascend NPUs,
    where Hardsigmoid may run on the host's CPU and Hardswish has no bfloat16 form. A scripted or
    traced model keeps the choice it was made with.
    """
    HardSwish.fused = HardSigmoid.fused = fused


ACTIVATIONS = {
    "relu": lambda: nn.ReLU(inplace=True),
    "relu6": ReLU6,
    "hard_swish": HardSwish,
}


class SqueezeExcite(nn.Module):
    """Scales each channel by a gate in [0, 1] computed from the means of all of them.

    (N, C, H, W) -> (N, C, H, W). Hu et al. 2018, with the gate of Howard et al. 2019, section 5.3.
    """

    def __init__(self, channels: int, reduced: int, act: str = "relu"):
        super().__init__()
        self.conv_reduce = PooledConv2d(channels, reduced)
        self.act1 = ACTIVATIONS[act]()
        self.conv_expand = PooledConv2d(reduced, channels)
        self.gate = HardSigmoid()

    def forward(self, x: Tensor) -> Tensor:
        if not torch.jit.is_scripting() and self.training:
            gate = spatial_mean(x)  # (N, C, 1, 1)
        else:
            gate = x.mean((2, 3), keepdim=True)
        gate = self.conv_expand(self.act1(self.conv_reduce(gate)))
        return x * self.gate(gate)


class DropPath(nn.Module):
    """In training, zeroes the whole branch for a sample with probability `rate`.

    (N, C, H, W) -> (N, C, H, W). Huang et al. 2016, "Deep Networks with Stochastic Depth"; what is
    kept is scaled by 1 / (1 - rate) so that evaluation needs no change.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        keep = 1.0 - self.rate
        return x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"
