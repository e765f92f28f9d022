"""SyncBatchNorm's five primitives: accelerators have kernels for them, the CPU has none.

x is (N, C, ...); statistics are (C,) in float32; `counts` and the gathered statistics have one row
a rank.
"""
import torch

_library = torch.library.Library("aten", "IMPL")


def register() -> None:
    """Register the primitives for the device."""
    for function in (batch_norm_stats, batch_norm_gather_stats_with_counts, batch_norm_elemt,
                     batch_norm_backward_reduce, batch_norm_backward_elemt):
        _library.impl(function.__name__, function, "PrivateUse1")


def _axes(x):
    return [axis for axis in range(x.dim()) if axis != 1]


def _per_channel(values, x):
    return values.view([1, -1] + [1] * (x.dim() - 2))


def batch_norm_stats(x, eps):
    """Mean and inverse deviation of this rank's batch."""
    var, mean = torch.var_mean(x.float(), _axes(x), correction=0)
    return mean, torch.rsqrt(var + eps)


def batch_norm_gather_stats_with_counts(x, mean, invstd, running_mean, running_var, momentum, eps,
                                        counts):
    """Statistics of all ranks' batches together; moves the running statistics towards them."""
    weight = counts.to(mean.dtype).view(-1, 1)
    total = weight.sum()
    joint = (mean * weight).sum(0) / total
    var = ((invstd.pow(-2) - eps + (mean - joint).square()) * weight).sum(0) / total
    if running_mean is not None:
        running_mean.mul_(1 - momentum).add_(joint * momentum)
    if running_var is not None:
        running_var.mul_(1 - momentum).add_(var * (total / (total - 1)) * momentum)
    return joint, torch.rsqrt(var + eps)


def batch_norm_elemt(x, weight, bias, mean, invstd, eps):
    """The normalised batch, in the type and memory format of x."""
    y = (x.float() - _per_channel(mean, x)) * _per_channel(invstd, x)
    if weight is not None:
        y = y * _per_channel(weight.float(), x)
    if bias is not None:
        y = y + _per_channel(bias.float(), x)
    return y.to(x.dtype)


def batch_norm_backward_reduce(dy, x, mean, invstd, weight, input_g, weight_g, bias_g):
    """This rank's sums of the gradient, and the gradients of weight and bias."""
    dy, axes = dy.float(), _axes(x)
    sum_dy = dy.sum(axes)
    sum_dy_xmu = (dy * (x.float() - _per_channel(mean, x))).sum(axes)
    dtype = weight.dtype if weight is not None else torch.float32
    return (sum_dy, sum_dy_xmu, (sum_dy_xmu * invstd).to(dtype) if weight_g else None,
            sum_dy.to(dtype) if bias_g else None)


def batch_norm_backward_elemt(dy, x, mean, invstd, weight, sum_dy, sum_dy_xmu, counts):
    """Gradient of x, from the sums over all ranks."""
    total = counts.sum()
    centred = x.float() - _per_channel(mean, x)
    grad = (dy.float() - _per_channel(sum_dy / total, x)
            - centred * _per_channel(invstd.square() * sum_dy_xmu / total, x))
    scale = invstd if weight is None else invstd * weight.float()
    return (grad * _per_channel(scale, x)).to(dy.dtype)
