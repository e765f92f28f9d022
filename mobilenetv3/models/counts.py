"""Parameters and multiply-adds, counted from the modules themselves."""
from typing import List

import torch
from torch import Tensor, nn


def count_params(model: nn.Module) -> int:
    """Trained numbers; the running statistics of batch norms are not among them."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, img_size: int = 224) -> int:
    """Multiply-adds of the convolutions and linear layers for one square image, as papers count.

    Args:
        model: a network with `config["in_chans"]`; it runs once, in evaluation mode.
        img_size: side of the image, in pixels.
    """
    macs: List[int] = []

    def add(module: nn.Module, _inputs: Tensor, output: Tensor) -> None:
        # An output element takes one product for each weight of its output channel.
        macs.append(output.numel() * module.weight[0].numel())

    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    handles = [layer.register_forward_hook(add) for layer in layers]
    was_training = model.training
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(1, model.config["in_chans"], img_size, img_size))
    finally:
        model.train(was_training)
        for handle in handles:
            handle.remove()
    return sum(macs)
