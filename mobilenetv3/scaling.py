"""Loss scaling: keeps small float16 gradients from becoming zero.

The path of the scale is Apex's (its apex/amp/scaler.py): start at 2**16; on overflow skip the
update and halve; after 2,000 updates without overflow double, up to 2**24. Beyond Apex there is a
floor, and an end to a run that only overflows.
"""
from typing import Callable, Dict, Optional, Union

import torch

INIT_SCALE, MAX_SCALE, MIN_SCALE = 2.0**16, 2.0**24, 1.0
GROWTH_INTERVAL = 2000
MAX_SKIPS = 50
"""Updates skipped in a row that end a run; 16 bring 2**16 down to the floor."""


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

    @property
    def is_idle(self) -> bool:
        """Whether gradients are left as they are."""
        return self.scale == 1.0

    def before_backward(self) -> None:
        """Nothing to watch."""

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to take the gradients of."""
        return loss if self.is_idle else loss * self.scale

    def unscale(self, gradients: torch.Tensor) -> None:
        """Divide float32 gradients by the scale, in place; None: go on with the update."""
        if not self.is_idle:
            gradients.mul_(1.0 / self.scale)

    def check(self, name_at: Callable[[int], str]) -> float:
        """The scale; nothing can be wrong with a constant."""
        return self.scale

    def state_dict(self) -> Dict[str, float]:
        """Apex's names."""
        return {"loss_scale": self.scale, "unskipped": 0}

    def load_state_dict(self, state: Dict[str, float]) -> None:
        """A constant is what the options say, not what another run used."""


class DynamicScaler:
    """Apex's dynamic loss scale, kept on the device: no update waits for the host.

    Args:
        overflow_flag: None on devices that make inf and NaN. A saturating device has a flag
            instead, which the host reads: an object with clear() and read() -> bool, true on all
            ranks if set on any.
    """

    is_idle = False

    def __init__(self, overflow_flag=None):
        self.overflow_flag = overflow_flag
        # Scale, clean updates since its last change, updates skipped in a row.
        self._state = torch.tensor([INIT_SCALE, 0.0, 0.0])
        self._first_bad = torch.tensor(-1)  # element of the latest gradients that overflowed

    @property
    def scale(self) -> float:
        """The factor of the loss (read from the device)."""
        return self._state[0].item()

    @property
    def unskipped(self) -> int:
        """Clean updates since the scale's last change (read from the device)."""
        return int(self._state[1].item())

    @property
    def skips(self) -> int:
        """Updates skipped in a row (read from the device)."""
        return int(self._state[2].item())

    def before_backward(self) -> None:
        """Start watching for overflow."""
        if self.overflow_flag is not None:
            self.overflow_flag.clear()

    def scaled(self, loss: torch.Tensor) -> torch.Tensor:
        """The loss to take the gradients of."""
        self._state = self._state.to(loss.device)
        return loss * self._state[0]

    def unscale(self, gradients: torch.Tensor) -> torch.Tensor:
        """Divide float32 gradients by the scale, in place, and move the scale.

        Args:
            gradients: (n,), all of them. They become zero where one of them overflowed.

        Returns:
            bool, 0-dim, on the device: whether the update is to be made; False: skip it.
        """
        self._state = self._state.to(gradients.device)
        self._first_bad = self._first_bad.to(gradients.device)
        bad = ~torch.isfinite(gradients)
        if self.overflow_flag is None:
            overflowed = bad.any()
        else:
            overflowed = torch.tensor(self.overflow_flag.read(), device=gradients.device)
        scale, unskipped, skips = self._state.unbind()
        gradients.mul_(1.0 / scale).masked_fill_(overflowed, 0.0)
        grows = unskipped + 1 >= GROWTH_INTERVAL  # more of them may come from a run with Apex
        grown = torch.where(grows, (scale * 2.0).clamp(max=MAX_SCALE), scale)
        none = torch.zeros_like(scale)
        self._state = torch.stack([
            torch.where(overflowed, (scale / 2.0).clamp(min=MIN_SCALE), grown),
            torch.where(overflowed | grows, none, unskipped + 1),
            torch.where(overflowed, skips + 1, none),
        ])
        first = torch.where(bad.any(), bad.float().argmax(), torch.full_like(self._first_bad, -1))
        self._first_bad = torch.where(overflowed, first, self._first_bad)
        return ~overflowed

    def check(self, name_at: Callable[[int], str]) -> float:
        """Give a run up that only overflows. Reads from the device: not for every step.

        Args:
            name_at: gives the name of the parameter that an element of the gradients belongs to.

        Returns:
            the scale.

        Raises:
            Overflow: no update could be made for MAX_SKIPS times in a row, or more.
        """
        scale, _, skips = self._state.tolist()  # one read
        if skips < MAX_SKIPS:
            return scale
        index = int(self._first_bad.item())
        raise Overflow(
            f"{int(skips)} updates in a row were skipped because gradients overflowed, the last at "
            f"loss scale {min(scale * 2.0, MAX_SCALE):g} or less; first parameter with a "
            f"gradient that is not finite: {name_at(index) if index >= 0 else 'none to be seen'}. "
            "A lower --lr, --clip-grad or --apex-opt-level O0 may help"
        )

    def state_dict(self) -> Dict[str, float]:
        """Plain numbers with Apex's names, the same on every kind of device."""
        return {"loss_scale": self.scale, "unskipped": self.unskipped}

    def load_state_dict(self, state: Dict[str, float]) -> None:
        """Take over a state, also one that a constant scale left; where there was none, begin."""
        if state["loss_scale"] == 1.0 and not state["unskipped"]:
            return  # from 1 it would take 16 times 2,000 updates to grow to where it begins
        self._state = torch.tensor([float(state["loss_scale"]), float(state["unskipped"]), 0.0])


def create_scaler(scale: Union[str, float], overflow_flag: Optional[object] = None):
    """A scaler from what --loss-scale-value takes: "dynamic" or a number."""
    return DynamicScaler(overflow_flag) if scale == "dynamic" else StaticScaler(float(scale))
