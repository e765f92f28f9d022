"""The model on every rank: wrapped for training, and made one model again before it is scored."""
import inspect
from typing import Callable

import torch
import torch.distributed as td
from torch import nn

from mobilenetv3 import dist
from mobilenetv3.device import Device


def wrap(model: nn.Module, device: Device, who: dist.Ranks,
         gradients_stay: bool = False) -> nn.Module:
    """DistributedDataParallel around a model, or the model itself where there is one rank.

    Its settings are those that benchmarks/ddp.py found to help; smaller buckets and static_graph
    did not.

    Args:
        gradients_stay: gradients keep their memory from step to step, as torch_npu's fused
            optimizers want it; else they are views of DDP's buckets.
    """
    if who.world == 1:
        return model
    return nn.parallel.DistributedDataParallel(
        model, device_ids=None if device.module is None else [device.index],
        gradient_as_bucket_view=not gradients_stay, **without_buffers(),
    )


def settle(parallel: nn.Module, forward: Callable, images: torch.Tensor) -> None:
    """Make a step that changes nothing, where there are several ranks.

    After its first step DDP arranges gradients in other buckets, and from three ranks on it depends
    on the place in a bucket in which order the ranks are summed: the last bit of a gradient. The
    first step of a resumed run is not the first of the whole; without this one they would differ.

    Args:
        forward: as Precision.forward: (model, images) -> output.
        images: (N, 3, H, W), a few are enough.
    """
    if not dist.is_parallel():
        return
    model = dist.unwrap(parallel)
    kept = [buffer.clone() for buffer in model.buffers()]
    (forward(parallel, images).sum() * 0.0).backward()
    for buffer, value in zip(model.buffers(), kept):
        buffer.copy_(value)
    for parameter in model.parameters():
        parameter.grad = None


def without_buffers() -> dict:
    """The argument that keeps DDP from sending all buffers before every step.

    Running statistics are made equal once, before they are used: see sync_buffers.
    """
    known = inspect.signature(nn.parallel.DistributedDataParallel.__init__).parameters
    name = "forward_sync_buffers"  # since 2.15, where the older one is deprecated
    return {name if name in known else "broadcast_buffers": False}


def sync_buffers(model: nn.Module, how: str = "broadcast") -> None:
    """Give every rank the same buffers.

    Each rank updates BatchNorm's running statistics from its own batches, so before an evaluation
    that is split over the ranks they must be made one model: the one that rank 0 saves.

    Args:
        how: "broadcast" takes rank 0's, "reduce" the mean over the ranks.
    """
    if not dist.is_parallel():
        return
    for buffer in model.buffers():
        if how == "reduce" and buffer.is_floating_point():
            td.all_reduce(buffer)
            buffer.div_(td.get_world_size())
        else:
            td.broadcast(buffer, 0)


def sync_batchnorm(model: nn.Module, device: Device) -> nn.Module:
    """The model with BatchNorm over all ranks' images; parameters keep their identity.

    Raises:
        ValueError: on the CPU, for which PyTorch has no such BatchNorm.
    """
    if device.module is None:
        raise ValueError("--sync_bn needs cards: PyTorch has no SyncBatchNorm for the CPU")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)
