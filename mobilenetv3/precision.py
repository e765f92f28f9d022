"""Mixed precision O0 to O3, as Apex defines it, in objects that the loop calls alike.

    level  weights            BatchNorm  gradients  masters  loss scale
    O0     float32            float32    float32    -        1
    O1     float32, autocast  float32    float32    -        dynamic
    O2     half               float32    half       float32  dynamic
    O3     half               half       half       -        1

Half is float16 with loss scaling, or bfloat16, which needs none. Source: Apex's documentation and
its apex/amp/frontend.py and _initialize.py; the implementation here is our own, because Apex's amp
was removed from Apex in 2025. Input is cast to what the model computes in, output to float32.
"""
import contextlib
import copy
from collections import OrderedDict
from typing import Any, Dict, List, NamedTuple, Optional, Union

import torch
from timm.utils import dispatch_clip_grad
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mobilenetv3.device import TORCH_VERSION, Device
from mobilenetv3.gradients import FlatGradients, Trained, Undo, copy_all, written_by
from mobilenetv3.scaling import StaticScaler, create_scaler


class Level(NamedTuple):
    """What an opt level means."""

    casts_model: bool
    keeps_batchnorm: bool
    has_masters: bool
    autocasts: bool
    loss_scale: Union[str, float]


LEVELS = {
    "O0": Level(False, False, False, False, 1.0),
    "O1": Level(False, False, False, True, "dynamic"),
    "O2": Level(True, True, True, False, "dynamic"),
    "O3": Level(True, False, False, False, 1.0),
}


def cast_model(model: nn.Module, dtype: torch.dtype, keep_batchnorm: bool) -> nn.Module:
    """Cast parameters and floating buffers in place; Parameter objects keep their identity.

    Args:
        keep_batchnorm: leave affine BatchNorm in float32, weights and statistics. BatchNorm without
            weights, and every other normalisation, is cast, as with Apex.
    """
    for module in model.modules():
        if keep_batchnorm and isinstance(module, _BatchNorm) and module.affine:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(dtype)
        for buffer in module.buffers(recurse=False):
            if buffer.is_floating_point():
                buffer.data = buffer.data.to(dtype)
    return model


class Precision:
    """How a model computes, and how a loss becomes an update. Order: create, `prepare`, the rest.

    Args:
        dtype: of the half-precision parts.
        scaler: from `scaling`.
        clip_grad: largest gradient norm (or value, or adaptive factor), None for no clipping.
        clip_mode: "norm", "value" or "agc", as timm's dispatch_clip_grad takes it.
    """

    def __init__(self, name: str, device: Device, dtype: torch.dtype, scaler=None,
                 clip_grad: Optional[float] = None, clip_mode: str = "norm"):
        self.level, self.device, self.dtype = LEVELS[name], device, dtype
        self.scaler = scaler or StaticScaler()
        self.clip_grad, self.clip_mode = clip_grad, clip_mode
        is_half = self.level.casts_model or self.level.autocasts
        self.note = ""  # what whoever chose between backends should know
        self.amp_type = f"{name} {str(dtype if is_half else torch.float32).split('.')[-1]}"
        self._masters: Dict[str, nn.Parameter] = {}
        self._trained: List[Trained] = []
        self._gradients: Optional[FlatGradients] = None  # where they are cast or unscaled
        self._undo = Undo()
        self.gradients_stay = False
        """Whether gradients must keep their memory from step to step; known after `prepare`."""

    def prepare(self, model: nn.Module, optimizer: Optional[torch.optim.Optimizer] = None) -> None:
        """Cast the model in place, and give the optimizer the masters in its parameters' stead.

        Call it once, with the model on its device, before it is wrapped for parallel training.
        """
        frozen = self._frozen(model) if optimizer is not None else {}
        if self.level.casts_model:
            cast_model(model, self.dtype, self.level.keeps_batchnorm)
        if optimizer is None:
            return
        self._keep(frozen, model)
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for group in optimizer.param_groups:
            for index, parameter in enumerate(group["params"]):
                owner = self._master_of(names[id(parameter)], parameter)
                group["params"][index] = owner
                if parameter.requires_grad:
                    self._trained.append(Trained(names[id(parameter)], parameter, owner))
        # torch_npu's: they move parameters and gradients into buffers of their own, for good.
        self.gradients_stay = getattr(optimizer, "is_fused_optimizer", False)
        if self._masters or not self.scaler.is_idle:
            self._gradients = FlatGradients(self._trained, keeps_storage=self.gradients_stay)

    def _frozen(self, model: nn.Module) -> Dict[str, torch.Tensor]:
        """Copies of the parameters that do not train, before they are cast."""
        if not self.level.has_masters:
            return {}
        return {name: parameter.detach().clone() for name, parameter in model.named_parameters()
                if not parameter.requires_grad}

    def _keep(self, frozen: Dict[str, torch.Tensor], model: nn.Module) -> None:
        """Let checkpoints and averages have what does not train as it was, not rounded."""
        for name, parameter in model.named_parameters():
            if name in frozen and parameter.dtype == self.dtype:
                self._masters[name] = nn.Parameter(frozen[name].float(), requires_grad=False)

    def _master_of(self, name: str, parameter: nn.Parameter) -> nn.Parameter:
        """What the optimizer updates: a float32 copy where the parameter is half, else itself."""
        is_half = self.level.has_masters and parameter.dtype == self.dtype
        if not is_half or not parameter.requires_grad:
            return parameter
        self._masters[name] = nn.Parameter(parameter.detach().clone().float())
        return self._masters[name]

    def forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) in float32 from images (N, 3, H, W) in float32."""
        if self.level.casts_model:
            images = images.to(self.dtype)
        with self._autocast():
            output = model(images)
        return output.float()

    def _autocast(self):
        if not self.level.autocasts:
            return contextlib.nullcontext()
        if _autocasts_to_any(self.device):
            return torch.autocast(self.device.type, dtype=self.dtype)
        return self.device.module.amp.autocast()

    def backward(self, loss: torch.Tensor, is_update: bool = True) -> None:
        """Add this loss's scaled gradients to those of the micro-steps before it.

        Args:
            is_update: whether `step` comes next; else there are more micro-steps to come.
        """
        self.scaler.before_backward()
        self.scaler.scaled(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Unscale, clip, update the weights unless gradients overflowed, clear the gradients."""
        assert self._trained, "prepare() gives the optimizer what it updates"
        kept = None
        if self._gradients is not None:
            kept = self.scaler.unscale(self._gradients.gather())
            self._gradients.hand_over()
        if self.clip_grad is not None:
            owners = [item.owner for item in self._trained if self._clips(item.name)]
            dispatch_clip_grad(owners, self.clip_grad, mode=self.clip_mode)
        self._update(optimizer, kept)
        for _, parameter, owner in self._trained:
            if self.gradients_stay and owner.grad is not None:
                owner.grad.zero_()
            else:
                owner.grad = None
            if owner is not parameter:
                parameter.grad = None

    def _clips(self, name: str) -> bool:
        """The classifier is left out of adaptive clipping, as in timm (Brock et al. 2021, 4.1)."""
        return self.clip_mode != "agc" or not name.startswith("classifier.")

    def _update(self, optimizer: torch.optim.Optimizer, kept: Optional[torch.Tensor]) -> None:
        """Make the update, if it is to be kept (None: yes)."""
        # To wait for the CPU costs nothing; to wait for a card leaves it idle.
        waits = kept is None or self.device.module is None
        written = None if waits else written_by(optimizer)
        if written is not None:
            self._undo.step_if(kept, optimizer, written)
        elif kept is None or bool(kept):
            optimizer.step()
        else:
            return
        halves = [item for item in self._trained if item.owner is not item.parameter]
        copy_all([item.parameter for item in halves], [item.owner for item in halves])

    def check(self) -> float:
        """Look whether updates are being made at all. Waits for the device: not for every step.

        Returns:
            the loss scale.

        Raises:
            scaling.Overflow: all of the latest updates were skipped.
        """
        if self._gradients is None:
            return 1.0
        return self.scaler.check(self._gradients.name_at)

    def weights(self, model: nn.Module):
        """What an average of the weights is taken of: the masters, behind a state_dict()."""
        return _Weights(self, model) if self.level.casts_model else model

    def for_inference(self, model: nn.Module) -> nn.Module:
        """A float32 copy of the model, such as the average, as this level computes."""
        if not self.level.casts_model:
            return model
        return cast_model(copy.deepcopy(model), self.dtype, self.level.keeps_batchnorm)

    def model_state(self, model: nn.Module) -> Dict[str, torch.Tensor]:
        """The model's state in float32: the masters where there are any. Tensors are shared."""
        state = OrderedDict()
        for name, value in model.state_dict().items():
            if name in self._masters:
                value = self._masters[name].detach()
            state[name] = value.float() if value.is_floating_point() else value
        return state

    @torch.no_grad()
    def load_model_state(self, model: nn.Module, state: Dict[str, torch.Tensor]) -> None:
        """Put back what `model_state` gave: masters bit for bit, the model rounded from them."""
        model.load_state_dict(state)
        for name, master in self._masters.items():
            master.copy_(state[name])

    def state_dict(self) -> Dict[str, Any]:
        """What a resumed run needs beyond weights and optimizer: plain numbers."""
        return self.scaler.state_dict()

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Take over what `state_dict` gave, on any kind of device and at any level."""
        if state:
            self.scaler.load_state_dict(state)


def _autocasts_to_any(device: Device) -> bool:
    """Whether autocast takes a type: its common form came with PyTorch 1.10, but knows devices from
    outside PyTorch only from 2.1 on."""
    return TORCH_VERSION >= (2, 1) or (TORCH_VERSION >= (1, 10) and device.is_builtin)


class _Weights:
    """A model's float32 state behind the one method that an average asks for."""

    def __init__(self, precision: Precision, model: nn.Module):
        self.precision, self.model = precision, model

    def state_dict(self) -> Dict[str, torch.Tensor]:
        return self.precision.model_state(self.model)


def create_precision(level: str, device: Device, dtype: Optional[str] = None,
                     loss_scale: Union[str, float, None] = None,
                     clip_grad: Optional[float] = None, clip_mode: str = "norm",
                     overflow_flag=None) -> Precision:
    """The precision of a run.

    Args:
        level: Apex's opt level, "O0" to "O3".
        dtype: "float16" or "bfloat16"; None for the device's: bfloat16 on the CPU, else float16.
        loss_scale: "dynamic", a number, or None for the level's own (bfloat16: 1).
        overflow_flag: see `scaling.DynamicScaler`; for chips that saturate.

    Raises:
        ValueError: the level cannot run on this device with this version of PyTorch.
    """
    if dtype is None:
        dtype = "bfloat16" if device.module is None else "float16"
    if level != "O0" and device.module is None and TORCH_VERSION < (2, 1):
        raise ValueError(
            f"--apex-opt-level {level} on the CPU needs PyTorch 2.1 or newer (this is "
            f"{torch.__version__}); use O0"
        )
    if level == "O1" and dtype == "bfloat16" and not _autocasts_to_any(device):
        raise ValueError(
            f"--apex-opt-level O1 with --amp-dtype bfloat16 on {device.type} needs a newer PyTorch "
            f"(this is {torch.__version__}): here O1 computes in float16; use O2, or float16"
        )
    if loss_scale is None:
        loss_scale = LEVELS[level].loss_scale if dtype == "float16" else 1.0
    scaler = create_scaler(loss_scale, overflow_flag)
    return Precision(level, device, getattr(torch, dtype), scaler, clip_grad, clip_mode)
