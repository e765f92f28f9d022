"""Optimizer, learning-rate schedule and EMA: timm's, with the arguments train.py takes."""
import copy
import math
from typing import Any, Dict, List, Optional, Sequence

import torch
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.utils import ModelEmaV2
from torch import nn
from torch.optim import Optimizer

from mobilenetv3.device import Device

# Name -> its plain twin, torch_npu's class, and what timm gives the twin besides.
FUSED = {
    "npufusedsgd": ("momentum", "NpuFusedSGD", {}),
    "npufusedrmsprop": ("rmsprop", "NpuFusedRMSprop", {"alpha": 0.9}),
    "npufusedrmsproptf": ("rmsproptf", "NpuFusedRMSpropTF", {"alpha": 0.9}),
}


def fused_note(name: str, fused: Any) -> str:
    """What the log says of an optimizer that is not to be had as such; "" where all is well."""
    if name not in FUSED or hasattr(fused, FUSED[name][1]):
        return ""
    return f"--opt {name} needs torch_npu's optimizers, which are not here: {FUSED[name][0]} it is"


def create_optimizer(model: nn.Module, name: str, lr: float, momentum: float, weight_decay: float,
                     eps: Optional[float] = None, betas: Optional[Sequence[float]] = None,
                     filter_bias_and_bn: bool = False,
                     lr_scales: Optional[Dict[str, float]] = None, fused: Any = None) -> Optimizer:
    """timm's optimizer of that name, or torch_npu's.

    timm's names keep their meaning: "sgd" is SGD with Nesterov momentum, "momentum" without;
    "rmsprop" is PyTorch's (eps outside the root), "rmsproptf" TensorFlow's (inside).

    Args:
        lr: for the global batch.
        filter_bias_and_bn: no weight decay on biases and normalisation weights.
        lr_scales: factors of the learning rate by the parameters' names (see `finetune`); 1 for
            those it leaves out. The schedules keep to them.
        fused: torch_npu.optim (`Device.fused_optimizers`); without it the names that begin with
            npufused stand for their plain twins.
    """
    optional = {}
    if eps is not None:
        optional["eps"] = eps
    if betas is not None:
        optional["betas"] = tuple(betas)
    groups = param_groups(model, weight_decay, filter_bias_and_bn, lr_scales or {})
    if name in FUSED:
        twin, class_name, options = FUSED[name]
        if hasattr(fused, class_name):
            return getattr(fused, class_name)(
                groups, lr=lr, momentum=momentum, weight_decay=weight_decay, **options, **optional
            )
        name = twin
    return create_optimizer_v2(
        groups, opt=name, lr=lr, momentum=momentum, weight_decay=weight_decay, **optional
    )


FORMS = ("auto", "plain")


def set_form(optimizer: Optimizer, form: str, device: Device) -> None:
    """Choose how an optimizer goes over its parameters: all in a few kernels, or one by one.

    Both compute the same but for the last digit. A checkpoint's choice gives way to this one,
    because it may have been made for another device or version.

    Args:
        form: "auto" takes for SGD the fused form where PyTorch has one for the device, and leaves
            others as PyTorch and timm have them (`foreach` on cards they know, else one by one);
            "plain" is one by one.
    """
    _set_form(optimizer, form, device)
    if hasattr(optimizer, "register_load_state_dict_post_hook"):
        optimizer.register_load_state_dict_post_hook(
            lambda loaded: _set_form(loaded, form, device)
        )


def _set_form(optimizer: Optimizer, form: str, device: Device) -> None:
    fused = form == "auto" and type(optimizer) is torch.optim.SGD and _fuses(device)
    for group in optimizer.param_groups:
        if "foreach" in group:
            group["foreach"] = False if form == "plain" or fused else None
        if "fused" in group:
            group["fused"] = fused


def _fuses(device: Device) -> bool:
    """Whether PyTorch's fused SGD runs on a device: asked of PyTorch, as versions differ."""
    if not device.is_builtin:
        return False  # PyTorch takes the form for any device from outside, whether it has it or not
    weight = torch.zeros(1, device=device.torch_device, requires_grad=True)
    weight.grad = torch.zeros_like(weight)
    try:
        torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=True).step()
    except (TypeError, RuntimeError):  # a version without it
        return False
    return True


def param_groups(model: nn.Module, weight_decay: float, filter_bias_and_bn: bool,
                 lr_scales: Dict[str, float]) -> List[Dict[str, Any]]:
    """The parameters that train, one group for each pair of rate and weight decay.

    The group at the full rate comes first, the others follow by falling rate, and of two at one
    rate the one without weight decay, as timm orders them. timm's schedules multiply a group's rate
    by its "lr_scale" at any moment of the run, the warm-up included; PyTorch keeps the key in the
    optimizer's state.
    """
    members: Dict[tuple, list] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        spared = filter_bias_and_bn and (parameter.ndim <= 1 or name.endswith(".bias"))
        key = lr_scales.get(name, 1.0), 0.0 if spared else weight_decay
        members.setdefault(key, []).append(parameter)
    return [
        {"params": members[scale, decay], "weight_decay": decay,
         **({"lr_scale": scale} if lr_scales else {})}
        for scale, decay in sorted(members, key=lambda key: (key[0] != 1.0, -key[0], key[1]))
    ]


def create_criterion(smoothing: float, soft_targets: bool) -> nn.Module:
    """Cross entropy, mean over the batch.

    Args:
        smoothing: label smoothing; with soft targets Mixup has smoothed them already.
        soft_targets: targets are probabilities (N, C), as Mixup and CutMix make them.
    """
    if soft_targets:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


class Schedule:
    """timm's learning-rate schedule as a function of where the run is.

    `at(epoch, update)` sets the rate for any moment of the run, so a resumed run needs no state:
    it asks for the moment it resumes at. With `on_updates` the rate moves with every optimizer
    update, otherwise at the start of each epoch, as timm and torchvision do. From the first to the
    second of the two shares of the epochs in `noise`, timm's noise is added to it, which depends on
    the moment, too.
    """

    def __init__(self, optimizer: Optimizer, name: str, epochs: int, updates_per_epoch: int,
                 decay_epochs: float = 30.0, decay_rate: float = 0.1, warmup_epochs: int = 0,
                 warmup_lr: float = 1e-5, min_lr: float = 0.0, cooldown_epochs: int = 0,
                 on_updates: bool = False, noise: Optional[Sequence[float]] = None):
        self.optimizer, self.on_updates = optimizer, on_updates
        self.updates_per_epoch = updates_per_epoch
        self._timm, self.epochs = create_scheduler_v2(
            optimizer, sched=name, num_epochs=epochs, decay_epochs=decay_epochs,
            decay_rate=decay_rate, warmup_epochs=warmup_epochs, warmup_lr=warmup_lr, min_lr=min_lr,
            cooldown_epochs=cooldown_epochs, step_on_epochs=not on_updates,
            updates_per_epoch=updates_per_epoch, noise=noise,
        )

    def at(self, epoch: int, update: int = 0) -> None:
        """Set the rate for update number `update` (from 0) of an epoch (from 0)."""
        if self.on_updates:
            self._timm.step_update(epoch * self.updates_per_epoch + update)
        elif update == 0:
            self._timm.step(epoch)

    @property
    def lr(self) -> float:
        """The rate in force (of the first parameter group, which has the full one)."""
        return self.optimizer.param_groups[0]["lr"]


def updates_per_epoch(steps: int, accumulate: int) -> int:
    """Optimizer updates in an epoch; a last group of fewer steps makes an update, too."""
    return math.ceil(steps / accumulate)


def ema_decay(update: int, decay: float, warms_up: bool) -> float:
    """Share of the old average that an update keeps.

    With a warm-up it is 1 - n ** (-2 / 3) of update n, but never above `decay`, as in timm's
    ModelEmaV3: the first update takes the weights as they are, and the random ones that a run
    begins with are forgotten at once, not after 1 / (1 - decay) updates. 0.99 is reached at update
    1,000, 0.999 at 31,623, 0.9998 at 353,554, 0.9999 at 1,000,000.

    Args:
        update: its number in the run, from 1.
    """
    return min(decay, 1.0 - update ** (-2 / 3)) if warms_up else decay


LONG_AGO = 10 ** 9
"""Number of updates of an average whose checkpoint does not count them: older than the warm-up."""


class NoEma:
    """Stands where no average is kept."""

    module = None
    updates = 0

    def update(self, model: nn.Module) -> None:
        """Nothing to do."""

    def state_dict(self) -> None:
        """Nothing to save."""


class Ema:
    """Exponential moving average of weights and BatchNorm statistics.

    `module` is the averaged copy of the model, in eval mode; `updates` how many it is made of,
    which is to be saved with it.
    """

    def __init__(self, model: nn.Module, decay: float, warms_up: bool = False):
        self.decay, self.warms_up, self.updates = decay, warms_up, 0
        self.module = copy.deepcopy(model).eval()

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Move the average towards the model; call after each optimizer update."""
        self.updates += 1
        self._move(model, ema_decay(self.updates, self.decay, self.warms_up))

    def _move(self, model: nn.Module, decay: float) -> None:
        averages, latest = [], []
        for average, value in zip(self.module.state_dict().values(), model.state_dict().values()):
            if average.is_floating_point():
                averages.append(average)
                latest.append(value)
            else:
                average.copy_(value)
        torch._foreach_lerp_(averages, latest, 1.0 - decay)

    def state_dict(self) -> dict:
        """The averaged model's state."""
        return self.module.state_dict()


class PlainEma(Ema):
    """timm's ModelEmaV2: the same tensor by tensor, in several kernels each.

    It also averages BatchNorm's count of batches, which enters no formula here.
    """

    def __init__(self, model: nn.Module, decay: float, warms_up: bool = False):
        self.decay, self.warms_up, self.updates = decay, warms_up, 0
        self._timm = ModelEmaV2(model, decay=decay)
        self.module = self._timm.module

    def _move(self, model: nn.Module, decay: float) -> None:
        self._timm.decay = decay
        self._timm.update(model)


def create_ema(model: nn.Module, enabled: bool, decay: float, form: str = "auto",
               warms_up: bool = False):
    """The average, or the object that does nothing. `form` is as in `set_form`."""
    if not enabled:
        return NoEma()
    # Versions before 2.0 have no such kernel.
    is_plain = form == "plain" or not hasattr(torch, "_foreach_lerp_")
    return (PlainEma if is_plain else Ema)(model, decay, warms_up)
