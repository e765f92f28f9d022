"""A real apex.amp, where one is installed, behind the interface of `precision.Precision`.

NVIDIA removed amp from Apex in May 2025, and Ascend's patched Apex ends at PyTorch 2.0.1; older
installations still have it. What Apex leaves to its user is done here: checkpoints hold the float32
masters, an average is kept of those masters, gradients of micro-steps stay scaled until the last.
"""
import contextlib
import importlib
from typing import Any, Dict, Optional, Union

import torch
from timm.utils import dispatch_clip_grad
from torch import nn

from mobilenetv3.device import Device
from mobilenetv3.precision import Precision
from mobilenetv3.scaling import MIN_SCALE


def find(device: Device, dtype: Optional[str]):
    """apex.amp, ready for a device.

    Raises:
        ValueError: there is none, or it cannot compute so.
    """
    if device.module is None:
        raise ValueError("Apex knows no CPU")
    if dtype == "bfloat16":
        raise ValueError("Apex knows float16 only, not bfloat16")
    try:
        amp = importlib.import_module("apex.amp")
    except Exception as error:  # noqa: BLE001  (an Apex built for another PyTorch fails anyhow)
        raise ValueError(f"apex.amp does not import ({error})") from error
    missing = [name for name in ("initialize", "scale_loss", "master_params")
               if not hasattr(amp, name)]
    if missing:
        raise ValueError(f"the installed apex.amp has no {missing[0]}")
    return amp


class ApexPrecision(Precision):
    """Computes and updates by apex.amp. It checks overflow on the host, once an update.

    Args:
        amp: the module, from `find`.
        loss_scale: "dynamic", a number, or None for the level's own.
        clip_grad, clip_mode: see Precision.
    """

    def __init__(self, amp, level: str, device: Device,
                 loss_scale: Union[str, float, None] = None,
                 clip_grad: Optional[float] = None, clip_mode: str = "norm"):
        super().__init__(level, device, torch.float16, None, clip_grad, clip_mode)
        self.amp, self.loss_scale, self.opt_level = amp, loss_scale, level
        self.note = "mixed precision by the installed Apex"
        self._optimizer: Optional[torch.optim.Optimizer] = None  # scale_loss asks for it
        self._names: Dict[int, str] = {}
        """Of the parameters that the optimizer updates, by identity."""

    def prepare(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        """amp.initialize; it casts the model in place and patches model and optimizer."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        frozen = self._frozen(model)
        self.amp.initialize(
            model, optimizer, opt_level=self.opt_level, loss_scale=self.loss_scale, verbosity=0,
            min_loss_scale=MIN_SCALE,  # Apex has no floor of its own
        )
        self._optimizer = optimizer
        if self.level.has_masters:
            # Apex makes the masters in the first backward; a resumed run needs them before.
            optimizer._amp_lazy_init()
            stash = optimizer._amp_stash
            pairs = zip(stash.all_fp16_params, stash.all_fp32_from_fp16_params)
            self._masters = {names[id(half)]: master for half, master in pairs}
            names.update((id(master), name) for name, master in self._masters.items())
        self._keep(frozen, model)
        self._names = names

    def _autocast(self):
        return contextlib.nullcontext()  # in O1 Apex has patched PyTorch's functions

    def backward(self, loss: torch.Tensor, is_update: bool = True) -> None:
        """Scaled by Apex; unscaled in the last micro-step, when all ranks' gradients are in."""
        with self.amp.scale_loss(loss, self._optimizer, delay_unscale=not is_update) as scaled:
            scaled.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip the masters' gradients, update (Apex skips it after an overflow), clear."""
        if self.clip_grad is not None:
            owners = [owner for owner in self.amp.master_params(optimizer)
                      if self._clips(self._names[id(owner)])]
            dispatch_clip_grad(owners, self.clip_grad, mode=self.clip_mode)
        optimizer.step()
        optimizer.zero_grad()

    def check(self) -> float:
        """The loss scale. Apex keeps no count of skipped updates; its scale stops at its floor."""
        return float(self.state_dict()["loss_scale"])

    def state_dict(self) -> Dict[str, Any]:
        """As the native scaler's, so that either goes on from the other's checkpoint."""
        return dict(self.amp.state_dict()["loss_scaler0"])

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what either backend saved."""
        if state:
            self.amp.load_state_dict({"loss_scaler0": dict(state)})
