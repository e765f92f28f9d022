"""Operators that PyTorch trains in a slower form than need be.

Each gives what the plain operator gives, up to the order of sums. They are for eager training:
where a network is scripted, traced or evaluated, the plain operators stand in it.
"""
import platform
from functools import partial
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

_IS_X86 = platform.machine().lower() in ("x86_64", "amd64")
_enabled = True

SMALL = 4
"""Width of the largest output map whose gradient oneDNN has faster in one piece (as on a Zen 5)."""

try:
    _convolution_backward = torch.ops.aten.convolution_backward
except (RuntimeError, AttributeError):  # before 1.11
    _convolution_backward = None


def set_fast_backward(enabled: bool) -> None:
    """Choose between the forms here (the default) and PyTorch's, for every model of the process."""
    global _enabled
    _enabled = enabled


def _is_traced() -> bool:
    return torch._C._get_tracing_state() is not None  # torch.jit.is_tracing, which 1.8 lacks


def spatial_mean(x: Tensor) -> Tensor:
    """Means of the channels: (N, C, H, W) -> (N, C, 1, 1).

    The gradient is divided before it is spread over the map, and is not written out: autograd adds
    it to the map's other gradients as it is.
    """
    if not _enabled or _is_traced():
        return x.mean((2, 3), keepdim=True)
    return _SpatialMean.apply(x)


class _SpatialMean(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.shape = x.shape
        return x.mean((2, 3), keepdim=True)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return (grad / (ctx.shape[2] * ctx.shape[3])).expand(ctx.shape)


def depthwise_5(x: Tensor, weight: Tensor, stride: Tuple[int, int],
                padding: Tuple[int, int]) -> Tensor:
    """Depthwise convolution, 5 weights wide: (N, C, H, W), (C, 1, K, 5) -> (N, C, H', W').

    On x86 oneDNN has fast kernels for the gradient of depthwise weights up to 3 wide; at 5 it takes
    10 to 25 times as long as at 3. Here that gradient is put together from two parts of 3, but on
    maps so small that this takes twice as long. On those of 2 x 2 only the inner 3 x 3 weights ever
    meet a pixel, and the others are left out.
    """
    if _sees_inner_3(x, weight, stride, padding):
        return F.conv2d(x, weight[..., 1:4, 1:4], None, 1, 1, 1, weight.shape[0])
    if not _splits(x, weight, stride):
        return F.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])
    return _Depthwise5.apply(x, weight, stride, padding)


def _is_for_x86(x: Tensor) -> bool:
    return _enabled and _IS_X86 and x.device.type == "cpu" and not _is_traced()


def _splits(x: Tensor, weight: Tensor, stride: Tuple[int, int]) -> bool:
    return (
        _is_for_x86(x) and _convolution_backward is not None and x.dtype == weight.dtype
        and not _autocasts()
        and x.shape[3] > SMALL * stride[1]  # last: a trace has no sizes
    )


def _sees_inner_3(x: Tensor, weight: Tensor, stride: Tuple[int, int],
                  padding: Tuple[int, int]) -> bool:
    return (
        _is_for_x86(x) and weight.shape[2] == 5
        and tuple(stride) == (1, 1) and tuple(padding) == (2, 2) and max(x.shape[2:]) <= 2
    )


def _autocasts() -> bool:
    """Whether the CPU computes in another type than that of its inputs."""
    try:
        return torch.is_autocast_enabled("cpu")
    except TypeError:  # before 2.4
        return torch.is_autocast_cpu_enabled()


def pooled_conv(x: Tensor, weight: Tensor, bias: Optional[Tensor]) -> Tensor:
    """1x1 convolution of maps of one pixel: (N, C, 1, 1), (O, C, 1, 1), (O,) -> (N, O, 1, 1).

    That is a product of matrices, for which oneDNN's convolution takes 1.5 to 5 times as long.
    Larger maps are convolved.
    """
    if not _is_for_x86(x) or x.shape[2:] != (1, 1):
        return F.conv2d(x, weight, bias)
    return F.linear(x.flatten(1), weight.flatten(1), bias)[:, :, None, None]


class _Depthwise5(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride, padding) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return F.conv2d(x, weight, None, stride, padding, 1, weight.shape[0])

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        for_x = for_weight = None
        if ctx.needs_input_grad[0]:
            for_x = _gradient(
                grad, x, weight, ctx.stride, ctx.padding, (True, False, False)
            )[0]
        if ctx.needs_input_grad[1]:
            # A kernel of 3 on the same padding sees more places: at the first of them its weights
            # stand where 0 to 2 of the 5 stood, and 2 / stride places on where 2 to 4 did. Zeros
            # are the gradient of the places that the 5 did not see.
            shift, part = 2 // ctx.stride[1], weight[..., :3]
            padded = _pad_width(x, ctx.padding[1])  # oneDNN's kernel pads by at most 1
            part_of = partial(_gradient, x=padded, weight=part, stride=ctx.stride,
                              padding=(ctx.padding[0], 0), mask=(False, True, False))
            left = part_of(F.pad(grad, (0, shift)))[1]
            right = part_of(F.pad(grad, (shift, 0)))[1]
            for_weight = torch.cat([left, right[..., 1:]], 3)
        return for_x, for_weight, None, None


def _gradient(grad: Tensor, x: Tensor, weight: Tensor, stride, padding, mask):
    return _convolution_backward(
        grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), weight.shape[0], mask
    )


def _pad_width(x: Tensor, padding: int) -> Tensor:
    return F.pad(x, (padding, padding)) if padding else x
