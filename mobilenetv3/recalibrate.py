"""Running statistics of batch norms, estimated anew for weights that are what they are.

The averages that training leaves are of weights that were still moving, of augmented images and of
the training resolution. Those of still weights, on images prepared as they will be scored, fit
better where the resolution is another one or the weights are an average (PyTorch's swa_utils and
"Fixing the train-test resolution discrepancy", arXiv 1906.06423, do the like).
"""
from typing import Iterable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenetv3 import replicas


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable, precision) -> int:
    """Replace the running statistics by their mean over some batches, each counting the same.

    Only the batch norms see batch statistics; dropout and drop-path stay off, as in scoring. Every
    rank must call it, with as many batches; then all have the mean over all ranks.

    Args:
        batches: (images, targets), no fewer than one, each of the same size.
        precision: how the model computes (`precision.Precision`).

    Returns:
        The number of batch norms.

    Raises:
        ValueError: the model has none.
    """
    norms = [norm for norm in model.modules()
             if isinstance(norm, _BatchNorm) and norm.track_running_stats]
    if not norms:
        raise ValueError("--recalibrate_bn: this network has no batch norms")
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # PyTorch's word for a cumulative average
        norm.train()
    for images, _ in batches:
        precision.forward(model, images)
    for norm, momentum in zip(norms, momenta):
        norm.momentum = momentum
        norm.eval()
    replicas.sync_buffers(model, "reduce")
    return len(norms)
