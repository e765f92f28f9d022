"""What users of timm set on a network that is built already: dropout, and time for memory."""
import inspect
from typing import Iterable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# The older of torch's two ways gives no gradients through hooks; the newer came with 1.11.
_NEWER = {"use_reentrant": False}
_OPTIONS = _NEWER if "use_reentrant" in inspect.signature(checkpoint).parameters else {}


class DropRate:
    """Gives `drop_rate` to a network with a `dropout`: it may be set at any time."""

    __jit_unused_properties__ = ["drop_rate"]

    @property
    def drop_rate(self) -> float:
        """Probability of dropout before the classifier."""
        return self.dropout.p

    @drop_rate.setter
    def drop_rate(self, rate: float) -> None:
        self._configure({**self.config, "drop_rate": rate})
        self.dropout.p = rate


class GradCheckpointing:
    """Gives `set_grad_checkpointing` to a network with `blocks`, a sequence of stages."""

    grad_checkpointing: bool

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute each stage anew in the backward pass, instead of keeping its activations.

        As in timm, a batch norm then takes a batch into its running statistics twice.
        """
        self.grad_checkpointing = enable

    def through(self, x: Tensor) -> Tensor:
        """The map behind all stages."""
        if not torch.jit.is_scripting() and self.grad_checkpointing:
            return recomputed(self.blocks, x)
        return self.blocks(x)


def recomputed(stages: Iterable[nn.Module], x: Tensor) -> Tensor:
    """What the stages make of a map, each of them computed anew in the backward pass."""
    for stage in stages:
        x = recompute(stage, x)
    return x


def recompute(stage: nn.Module, x: Tensor) -> Tensor:
    """What one stage makes of a map; it is computed anew in the backward pass.

    Without a gradient of its input, torch before 1.11 would give none to its weights.
    """
    return checkpoint(stage, x, **_OPTIONS) if x.requires_grad else stage(x)
