"""Gradients in one buffer, and updates that the device can take back: no step waits for the host.

Loss scaling must know whether any gradient overflowed, and must then leave weights and optimizer
as they were. Asked of the host, that is one wait an update, in which the device runs dry. Here the
answer stays on the device: one buffer holds all gradients, so one reduction finds an overflow, and
an update that was made on overflowed gradients is undone by arithmetic.
"""
from typing import List, NamedTuple, Optional

import torch
from torch import nn


class Trained(NamedTuple):
    """A parameter that is trained."""

    name: str
    parameter: nn.Parameter
    """The model's."""
    owner: nn.Parameter
    """What the optimizer updates: a float32 master, or the parameter itself."""


class FlatGradients:
    """The gradients of all trained parameters, one behind the other in one buffer.

    Attributes:
        flat: (number of trained elements,), of the owners' type and on their device.
    """

    def __init__(self, trained: List[Trained], keeps_storage: bool = False):
        """
        Args:
            keeps_storage: each gradient stays a tensor with a storage of its own, as torch_npu's
                fused optimizers want it, and is not a view of the buffer.
        """
        self.trained, self.keeps_storage = trained, keeps_storage
        sizes = [item.owner.numel() for item in trained]
        like = trained[0].owner  # float32, but in O3, which has half weights and no masters
        self.flat = torch.zeros(sum(sizes), dtype=like.dtype, device=like.device)
        # As dense as the owner and in its memory order, or the optimizer would be slower.
        self._views = [
            part.as_strided(item.owner.shape, item.owner.stride())
            for item, part in zip(trained, self.flat.split(sizes))
        ]

    def gather(self) -> torch.Tensor:
        """Copy the parameters' gradients into the buffer, in its type; returns the buffer.

        Cast first, unscale after: in float16 small gradients would become zero by unscaling.
        """
        views, gradients = [], []
        for view, (_, parameter, _) in zip(self._views, self.trained):
            if parameter.grad is None:
                view.zero_()
            else:
                views.append(view)
                gradients.append(parameter.grad)
        copy_all(views, gradients)
        return self.flat

    def hand_over(self) -> None:
        """Give the buffer's values to the owners as their gradients."""
        for view, (_, parameter, owner) in zip(self._views, self.trained):
            if parameter.grad is None and owner.grad is None:
                continue
            if not self.keeps_storage:
                owner.grad = view
            elif owner.grad is None:
                owner.grad = view.clone()
            else:
                owner.grad.copy_(view)

    def name_at(self, index: int) -> str:
        """Name of the parameter whose gradient has this element of the buffer."""
        for name, _, owner in self.trained:
            if index < owner.numel():
                return name
            index -= owner.numel()
        raise AssertionError("beyond the buffer")


class Undo:
    """Makes an optimizer's update depend on a flag that only the device knows."""

    def __init__(self):
        self._saved: List[torch.Tensor] = []

    def step_if(self, kept: torch.Tensor, optimizer: torch.optim.Optimizer,
                written: List[torch.Tensor]) -> None:
        """`optimizer.step()`, without effect unless `kept`.

        Args:
            kept: bool, 0-dim, on the device.
            written: from `written_by`; all finite, before and after.
        """
        if len(self._saved) != len(written):
            self._saved = [torch.empty_like(tensor) for tensor in written]
        copy_all(self._saved, written)
        optimizer.step()
        # new x 1 + old x 0, or new x 0 + old x 1: exact, as all of it is finite.
        with torch.no_grad():
            torch._foreach_mul_(written, kept.float())
            torch._foreach_mul_(self._saved, (~kept).float())
            torch._foreach_add_(written, self._saved)


# What these write is their parameters and the tensors of their state; the count of updates that
# some keep enters no formula. LAMB's and Adam's counts do, and the host keeps them.
_UNDOABLE = ("SGD", "RMSprop", "RMSpropTF", "NpuFusedSGD", "NpuFusedRMSprop", "NpuFusedRMSpropTF")


def written_by(optimizer: torch.optim.Optimizer) -> Optional[List[torch.Tensor]]:
    """All tensors that the next update writes; None where not all that it writes is known.

    Not known is what the first update makes, and what an optimizer keeps elsewhere.
    """
    # Before 2.1 the arithmetic of lists takes no factor from the device.
    if type(optimizer).__name__ not in _UNDOABLE or not hasattr(torch, "_foreach_copy_"):
        return None
    written = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            state = optimizer.state.get(parameter)
            if not state:
                return None
            written.append(parameter)
            written += [value for value in state.values()
                        if torch.is_tensor(value) and value.device == parameter.device]
    return written


def copy_all(targets: List[torch.Tensor], sources: List[torch.Tensor]) -> None:
    """Copy tensors pairwise, in as few launches as the version allows."""
    with torch.no_grad():
        if hasattr(torch, "_foreach_copy_") and targets:
            torch._foreach_copy_(targets, sources)
        else:
            for target, source in zip(targets, sources):
                target.copy_(source)
