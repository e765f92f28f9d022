"""Mixed precision O0 to O3 as objects the loop calls alike: forward, backward, step."""
from typing import Optional

import torch
from timm.utils import dispatch_clip_grad
from torch import nn

from mobilenetv3.device import Device


class Precision:
    """O0: everything in fp32. The other levels share this interface.

    Args:
        clip_grad: largest gradient norm (or value, or adaptive factor), None for no clipping.
        clip_mode: "norm", "value" or "agc", as timm's dispatch_clip_grad takes it.
    """

    amp_type = "O0 float32"

    def __init__(self, clip_grad: Optional[float] = None, clip_mode: str = "norm"):
        self.clip_grad, self.clip_mode = clip_grad, clip_mode

    def forward(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C) in float32 from images (N, 3, H, W) in float32."""
        return model(images)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this loss's gradients to those of the micro-steps before it."""
        loss.backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip, update the weights, and clear the gradients."""
        if self.clip_grad is not None:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            dispatch_clip_grad(parameters, self.clip_grad, mode=self.clip_mode)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def weights(self, model: nn.Module) -> nn.Module:
        """What an average of the weights is to be taken of: anything with a state_dict()."""
        return model

    def state_dict(self) -> dict:
        """What a resumed run needs beyond the weights and the optimizer."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Take over what `state_dict` gave."""


def create_precision(level: str, device: Device, loss_scale="dynamic",
                     clip_grad: Optional[float] = None, clip_mode: str = "norm") -> Precision:
    """The precision of a run.

    Args:
        level: Apex's opt level, "O0" to "O3".

    Raises:
        ValueError: the level is not available on this device.
    """
    if level == "O0":
        return Precision(clip_grad, clip_mode)
    raise ValueError(
        f"--apex-opt-level {level} is not available on {device.type} in this version; use O0"
    )
