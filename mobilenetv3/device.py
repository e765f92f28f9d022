"""Devices as data: what "npu", "cuda" and "cpu" mean is written here and nowhere else.

Everything else asks a `Device` for its module (torch.npu or torch.cuda), its collective backend and
its synchronisation, so the same program text runs on all three.
"""
import os
import re
from typing import Any, NamedTuple, Optional, Tuple

import torch

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}


def version(text: str) -> Tuple[int, ...]:
    """"2.15.0+cpu" -> (2, 15, 0), so that 1.11 > 1.8 (as strings it is not)."""
    return tuple(int(part) for part in re.match(r"\d+(\.\d+)*", text).group().split("."))


TORCH_VERSION = version(torch.__version__)


class Device(NamedTuple):
    """One accelerator (or the CPU) as this process uses it."""

    type: str
    """"npu", "cuda" or "cpu"."""
    index: int
    """Number of the card on this host; 0 on the CPU."""
    module: Any
    """torch.npu, torch.cuda, or None on the CPU."""
    backend: str
    """Name of the collective library for torch.distributed."""

    @property
    def torch_device(self) -> torch.device:
        # Always an explicit torch.device: a bare int means CUDA to most of PyTorch.
        return torch.device("cpu") if self.module is None else torch.device(self.type, self.index)

    @property
    def has_fused_activations(self) -> bool:
        """Whether Hardswish and Hardsigmoid run on the device itself.

        On Ascend NPUs Hardsigmoid may fall back to the host's CPU; relu6 does not.
        """
        return self.type != "npu"

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work (nothing to wait for on the CPU)."""
        if self.module is not None:
            self.module.synchronize()

    def seed(self, seed: int) -> None:
        """Seed torch's generators, the CPU's and every card's."""
        torch.manual_seed(seed)
        if self.module is not None:
            self.module.manual_seed_all(seed)

    def loader_options(self) -> dict:
        """Keyword arguments for DataLoader that make copies to this device asynchronous."""
        if self.module is None:
            return {}
        options = {"pin_memory": True}
        # Before 2.8 the pinning thread asks torch.cuda unless it is told the device's name.
        if self.type == "npu" and (1, 12) <= TORCH_VERSION < (2, 8):
            options["pin_memory_device"] = self.type
        return options


def _module(kind: str) -> Any:
    """The torch.<kind> module where such a card is usable, else None."""
    if kind == "npu" and not hasattr(torch, "npu"):
        try:
            import torch_npu  # noqa: F401  (registers torch.npu)
        except Exception as error:  # noqa: BLE001  (without CANN it fails in many ways)
            _module.why_no_npu = f"{type(error).__name__}: {error}"
            return None
    module = getattr(torch, kind, None)
    return module if module is not None and module.is_available() else None


_module.why_no_npu = ""


def available() -> Tuple[str, ...]:
    """Kinds usable here, best first; "cpu" always is."""
    return tuple(kind for kind in ("npu", "cuda") if _module(kind) is not None) + ("cpu",)


def count(kind: str) -> int:
    """Number of cards of a kind on this host; 0 where the kind is not usable."""
    module = _module(kind) if kind != "cpu" else None
    return module.device_count() if module is not None else 0


def card_index(device_id: Optional[int], local_rank: Optional[int]) -> Tuple[int, str]:
    """Which card this process takes, and a note where two sources disagree.

    With several ranks it is the local rank. Otherwise the --device_id flag wins over the variable
    ASCEND_DEVICE_ID, which wins over 0.
    """
    if local_rank is not None:
        return local_rank, ""
    from_env = os.environ.get("ASCEND_DEVICE_ID", "")
    if from_env and not from_env.isdigit():
        raise ValueError(
            f"ASCEND_DEVICE_ID is {from_env!r}; expected the number of a card, such as 0"
        )
    if device_id is None:
        return int(from_env or 0), ""
    note = ""
    if from_env and int(from_env) != device_id:
        note = f"--device_id {device_id} is used; ASCEND_DEVICE_ID={from_env} is ignored"
    return device_id, note


def select(kind: str = "auto", index: int = 0) -> Device:
    """Bind this process to a device and return it.

    Args:
        kind: "auto" takes npu, then cuda, then cpu.
        index: number of the card on this host (see `card_index`).

    Raises:
        ValueError: the kind is not usable on this host, or it has no card of that number.
    """
    if kind == "auto":
        kind = available()[0]
    if kind == "cpu":
        return Device("cpu", 0, None, BACKENDS["cpu"])
    module = _module(kind)
    if module is None:
        reason = _module.why_no_npu if kind == "npu" else ""
        raise ValueError(
            f"--device {kind} was asked for, but PyTorch {torch.__version__} sees none here"
            f"{f' ({reason})' if reason else ''}; usable: {', '.join(available())}"
        )
    if not 0 <= index < module.device_count():
        raise ValueError(
            f"card {index} was asked for, but this host has {module.device_count()} of kind {kind} "
            "(numbered from 0)"
        )
    module.set_device(index)
    return Device(kind, index, module, BACKENDS[kind])
