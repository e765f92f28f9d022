"""Renaming tensors by a family's table, to our names and back. Values are never touched."""
from typing import Dict, Sequence

import torch
from torch import Tensor

from .fit import OPTIONAL, Difference
from .layout import is_norm, shapes, tensors_of
from .source import TORCH_NORM, Names, Network, Source

COUNTER = "num_batches_tracked"  # absent in MindSpore's files, and in those of torch before 0.4.1
# Layers that are 1x1 convolutions here. (The classifier is a linear layer in all families.)
CONVOLUTIONS = ("conv_head", "conv_reduce", "conv_expand")


def to_ours(source: Source, network: Network, tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """A family's tensors by our names.

    Raises:
        ValueError: a tensor of the network is missing, or one is left over.
    """
    norm, names = source.norms(set(tensors)), source.names(network.plan)
    left, missing, ours = dict(tensors), [], {}
    for layer in shapes(network.plan):  # in our order
        theirs = names.get(layer, "")
        if not theirs or layer in OPTIONAL and f"{theirs}.weight" not in tensors:
            continue
        wanted = tensors_of(layer, network.plan)
        for end in TORCH_NORM if is_norm(layer) else wanted:
            name = f"{theirs}.{norm.get(end, end) if is_norm(layer) else end}"
            if name in left:
                ours[f"{layer}.{end}"] = _as_here(layer, left.pop(name))
            elif end == COUNTER:
                ours[f"{layer}.{end}"] = torch.tensor(0)
            else:
                missing.append(name)
    difference = Difference(missing, list(left), [])
    if difference.size:
        raise ValueError(
            f"it is {source.name}'s {network.arch}, but not all of it: {difference.told()}"
        )
    return ours


def to_theirs(
    table: Names, norm: Names, linear: Sequence[str], tensors: Dict[str, Tensor]
) -> Dict[str, Tensor]:
    """Our tensors by a family's names, in the family's order within a norm.

    Args:
        table: our layer -> theirs.
        norm: our names of a norm's tensors -> theirs.
        linear: the ends of our layers that are linear there, not 1x1 convolutions.
    """
    theirs = {}
    for layer in dict.fromkeys(name.rpartition(".")[0] for name in tensors):
        ends = norm if is_norm(layer) else {"weight": "weight", "bias": "bias"}
        for end, their_end in ends.items():
            value = tensors.get(f"{layer}.{end}")
            if value is None:
                continue
            if value.dim() == 4 and layer.endswith(tuple(linear)):
                value = value.flatten(1)
            theirs[f"{table[layer]}.{their_end}"] = value
    return theirs


def _as_here(layer: str, value: Tensor) -> Tensor:
    is_linear = value.dim() == 2 and layer.endswith(CONVOLUTIONS)
    return value[:, :, None, None] if is_linear else value
