"""Loss scaling: keeps small float16 gradients from becoming zero.

The path of the scale is Apex's (its apex/amp/scaler.py): start at 2**16; on overflow skip the
update and halve; after 2,000 updates without overflow double, up to 2**24. Beyond Apex there is a
floor, and an end to a run that only overflows.
"""
import math
from typing import Callable, Dict, List, Optional, Union

import torch

INIT_SCALE, MAX_SCALE, MIN_SCALE = 2.0**16, 2.0**24, 1.0
GROWTH_INTERVAL = 2000
MAX_SKIPS = 50
"""Updates skipped in a row that end a run; 17 bring 2**16 down to the floor."""


class Overflow(RuntimeError):
    """The gradients stay infinite or NaN however small the loss scale."""

    is_theirs = True  # told in one sentence: the cause is the recipe, not the code


class StaticScaler:
    """A constant factor, as with Apex: nothing is checked and nothing is ever skipped.

    Args:
        scale: factor of the loss; 1 for none.
    """

    def __init__(self, scale: float = 1.0):
        self.scale = scale

    def before_backward(self) -> None:
        """Nothing to watch."""

    def unscale(self, gradients: List[torch.Tensor], names: Callable[[], List[str]]) -> bool:
        """Divide float32 gradients by the scale, in place; True: go on with the update."""
        if self.scale != 1.0:
            multiply(gradients, 1.0 / self.scale)
        return True

    def state_dict(self) -> Dict[str, float]:
        """Apex's names."""
        return {"loss_scale": self.scale, "unskipped": 0}

    def load_state_dict(self, state: Dict[str, float]) -> None:
        """A constant is what the options say, not what another run used."""


class DynamicScaler:
    """Apex's dynamic loss scale.

    The host reads one number an update, whatever the number of parameters, to know whether to skip.

    Args:
        overflow_flag: None on devices that make inf and NaN. A saturating device has a flag
            instead: an object with clear() and read() -> bool, true on all ranks if set on any.
    """

    def __init__(self, overflow_flag=None):
        self.scale, self.unskipped, self.skips = INIT_SCALE, 0, 0
        self.overflow_flag = overflow_flag

    def before_backward(self) -> None:
        """Start watching for overflow."""
        if self.overflow_flag is not None:
            self.overflow_flag.clear()

    def unscale(self, gradients: List[torch.Tensor], names: Callable[[], List[str]]) -> bool:
        """Divide float32 gradients by the scale, in place, and move the scale.

        Args:
            names: gives the parameters' names, in the order of the gradients, for an error.

        Returns:
            Whether the update is to be made; False: skip it.

        Raises:
            Overflow: no update could be made for MAX_SKIPS times in a row.
        """
        if self.overflow_flag is None:
            overflowed = not all_finite(gradients)
        else:
            overflowed = self.overflow_flag.read()
        if overflowed:
            self._shrink(gradients, names)
            return False
        multiply(gradients, 1.0 / self.scale)
        self.skips = 0
        self.unskipped += 1
        if self.unskipped == GROWTH_INTERVAL:
            self.scale, self.unskipped = min(MAX_SCALE, self.scale * 2.0), 0
        return True

    def _shrink(self, gradients, names) -> None:
        used = self.scale
        self.scale, self.unskipped = max(MIN_SCALE, self.scale / 2.0), 0
        self.skips += 1
        if self.skips < MAX_SKIPS:
            return
        bad = next((name for name, gradient in zip(names(), gradients)
                    if not math.isfinite(gradient.abs().max().item())), "none that can be named")
        raise Overflow(
            f"{self.skips} updates in a row were skipped because gradients overflowed, the last at "
            f"loss scale {used:g}; first parameter with a gradient that is not finite: {bad}. "
            "A lower --lr, --clip-grad or --apex-opt-level O0 may help"
        )

    def state_dict(self) -> Dict[str, float]:
        """Plain numbers with Apex's names, the same on every kind of device."""
        return {"loss_scale": self.scale, "unskipped": self.unskipped}

    def load_state_dict(self, state: Dict[str, float]) -> None:
        """Take over a state, also one that a constant scale left."""
        self.scale, self.unskipped = float(state["loss_scale"]), int(state["unskipped"])


def create_scaler(scale: Union[str, float], overflow_flag: Optional[object] = None):
    """A scaler from what --loss-scale-value takes: "dynamic" or a number."""
    return DynamicScaler(overflow_flag) if scale == "dynamic" else StaticScaler(float(scale))


def multiply(tensors: List[torch.Tensor], factor: float) -> None:
    """Multiply every tensor by a number, in place, in as few launches as the version allows."""
    if hasattr(torch, "_foreach_mul_"):
        torch._foreach_mul_(tensors, factor)
    else:
        for tensor in tensors:
            tensor.mul_(factor)


def all_finite(tensors: List[torch.Tensor]) -> bool:
    """Whether no element is inf or NaN. One number is read from the device, not one a tensor.

    The largest magnitude of a tensor with a NaN is NaN, and NaN and inf survive the maximum over
    all tensors.
    """
    if not tensors:
        return True
    if hasattr(torch, "_foreach_norm"):
        largest = torch._foreach_norm(tensors, math.inf)
    else:
        largest = [tensor.abs().max() for tensor in tensors]
    return math.isfinite(torch.stack(list(largest)).max().item())
