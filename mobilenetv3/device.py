"""Devices as data: what "npu", "cuda" and "cpu" mean is written here and nowhere else.

    python -m mobilenetv3.device      # says what this host has, and what is wrong with it

Everything else asks a `Device` for its module (torch.npu or torch.cuda), its collective backend and
its synchronisation, so the same program text runs on all three.
"""
import contextlib
import functools
import importlib.util
import os
import re
import runpy
import sys
import warnings
from typing import Any, Callable, NamedTuple, Optional, Tuple

from mobilenetv3 import host
from mobilenetv3.host import Fault

if __name__ == "__main__":  # before torch, which may be what is wrong
    runpy.run_module("mobilenetv3.doctor", run_name="__main__")
    sys.exit()

import torch  # noqa: E402  (the command above comes first)

BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
VISIBLE = {"npu": "ASCEND_RT_VISIBLE_DEVICES", "cuda": "CUDA_VISIBLE_DEVICES"}
"""Variables that hide cards; the others are numbered anew."""
MONITORS = {"npu": "npu-smi info", "cuda": "nvidia-smi"}
"""Commands that show the cards' state."""


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
    note: str = ""
    """What whoever chose "auto" should know: why a better kind was passed over."""

    @property
    def torch_device(self) -> torch.device:
        # Always an explicit torch.device: a bare int means CUDA to most of PyTorch.
        return torch.device("cpu") if self.module is None else torch.device(self.type, self.index)

    @property
    def is_builtin(self) -> bool:
        """Whether PyTorch itself brings the device, and not an extension."""
        return self.type != "npu"

    @property
    def has_fused_activations(self) -> bool:
        """Whether Hardswish and Hardsigmoid run on the device itself.

        On Ascend NPUs Hardsigmoid may fall back to the host's CPU; relu6 does not.
        """
        return self.type != "npu"

    def is_faster_in_nhwc(self, is_half: bool) -> bool:
        """Whether these models are faster with images and weights in NHWC order, by measurement.

        Args:
            is_half: convolutions compute in half precision, for which cards have NHWC kernels.
        """
        if self.module is None:
            return TORCH_VERSION >= (2, 0)  # in 1.8 neither order is
        return self.is_builtin and is_half

    def tune(self) -> None:
        """Try convolution kernels out and keep the fastest; for inputs of one size."""
        if self.type == "cuda":
            torch.backends.cudnn.benchmark = True

    @property
    def has_inf_nan(self) -> bool:
        """Whether float16 overflow makes inf and NaN; Ascend 910A and 310P saturate at 65504."""
        if self.type != "npu":
            return True
        # Versions that do not know the question are of the time of the saturating chips.
        ask = getattr(getattr(self.module, "utils", None), "is_support_inf_nan", None)
        return bool(ask()) if ask is not None else not hasattr(self.module, "get_npu_overflow_flag")

    @property
    def fused_optimizers(self) -> Any:
        """The module with torch_npu's fused optimizers, None where there is none."""
        if self.type != "npu":
            return None
        with contextlib.suppress(ImportError):  # versions for PyTorch before 1.11 lack it
            return importlib.import_module("torch_npu.optim")
        return None

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


class OverflowFlag:
    """Overflow as a saturating chip tells it: one flag a card, set by any float16 overflow.

    It is what `scaling.DynamicScaler` asks for. With gradient accumulation the first `clear`
    after a `read` counts, so the overflows of all micro-steps are seen.

    Args:
        device: an NPU without inf and NaN.
        all_reduce_sum: sums a tensor over all ranks, in place, and returns it. Saturated gradients
            look healthy to the other ranks, so these must be told.
    """

    def __init__(self, device: Device, all_reduce_sum: Callable[[torch.Tensor], torch.Tensor]):
        self.device, self.all_reduce_sum = device, all_reduce_sum
        self.is_watching = False

    def clear(self) -> None:
        """Start watching, if that has not been done since the last `read`."""
        if not self.is_watching:
            self.device.module.clear_npu_overflow_flag()
            self.is_watching = True

    def read(self) -> bool:
        """Whether anything overflowed on any rank; every rank must ask."""
        self.is_watching = False
        flag = float(self.device.module.get_npu_overflow_flag())
        return self.all_reduce_sum(torch.tensor([flag], device=self.device.torch_device)).item() > 0


def overflow_flag(device: Device, all_reduce_sum: Callable[[torch.Tensor], torch.Tensor]
                  ) -> Optional[OverflowFlag]:
    """The flag of a chip that saturates; None where inf and NaN tell of an overflow."""
    return None if device.has_inf_nan else OverflowFlag(device, all_reduce_sum)


@functools.lru_cache(maxsize=None)
def _open(kind: str) -> Tuple[Any, Optional[Fault]]:
    """torch.<kind> where such a card is usable, else None and what is in the way."""
    if kind == "npu":
        fault = _load_torch_npu()
        if fault is not None:
            return None, fault
    module, error = getattr(torch, kind), None
    with warnings.catch_warnings(record=True) as told:  # a driver that is too old is a warning
        warnings.simplefilter("always")
        try:
            if module.is_available() and module.device_count() > 0:
                return module, None
        except Exception as raised:  # noqa: BLE001  (whatever it is, there is no card to use)
            error = raised
    if kind == "npu":
        return None, host.no_ascend_card_fault(error)
    reason = error or next((warning.message for warning in told), "")
    is_cuda_build = torch.version.cuda or getattr(torch.version, "hip", None)
    return None, host.no_cuda_card_fault(torch.__version__, bool(is_cuda_build), str(reason))


def _load_torch_npu() -> Optional[Fault]:
    """Make torch.npu be there, or say why it cannot."""
    if hasattr(torch, "npu"):  # PyTorch may have loaded it by itself
        return None
    if "torch_npu" not in sys.modules and importlib.util.find_spec("torch_npu") is None:
        return Fault("torch_npu is not installed", "install the torch_npu of PyTorch's version, "
                     f"{torch.__version__}", host.has_ascend_cards())
    try:
        importlib.import_module("torch_npu")
    except Exception as error:  # noqa: BLE001  (without CANN it fails in many ways)
        return host.torch_npu_fault(error, torch.__version__)
    if not hasattr(torch, "npu"):
        return host.torch_npu_fault(ImportError("No module named 'torch_npu.npu'"),
                                    torch.__version__)
    return None


def fault(kind: str) -> Optional[Fault]:
    """What is in the way of using a kind of device here; None where it is usable."""
    return None if kind == "cpu" else _open(kind)[1]


def available() -> Tuple[str, ...]:
    """Kinds usable here, best first; "cpu" always is."""
    return tuple(kind for kind in BACKENDS if fault(kind) is None)


def count(kind: str) -> int:
    """Number of cards of a kind on this host; 0 where the kind is not usable."""
    module = None if kind == "cpu" else _open(kind)[0]
    return module.device_count() if module is not None else 0


def card_index(device_id: Optional[int], local_rank: Optional[int]) -> Tuple[int, str]:
    """Which card this process takes, and a note where two sources disagree.

    A rank that a launcher started takes the card of its local rank. Otherwise the --device_id flag
    wins over the variable ASCEND_DEVICE_ID, which wins over 0.

    Args:
        local_rank: None for a single rank, and for one started by hand.

    Raises:
        ValueError: ASCEND_DEVICE_ID is not a number.
    """
    if local_rank is not None:
        note = ""
        if device_id not in (None, local_rank):
            note = f"--device_id {device_id} is ignored: each rank takes the card of its local rank"
        return local_rank, note
    from_env = os.environ.get("ASCEND_DEVICE_ID", "").strip()
    if from_env and not re.fullmatch("[0-9]+", from_env):
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
        ValueError: the kind is not usable on this host, or it has no card of that number, or the
            card does not open.
    """
    note = ""
    if kind == "auto":
        kind = available()[0]
        better = [fault(other) for other in list(BACKENDS)[:list(BACKENDS).index(kind)]]
        reasons = [str(found) for found in better if found.is_meant]
        note = f"--device auto takes {kind}: {'; '.join(reasons)}" if reasons else ""
    if kind == "cpu":
        return Device("cpu", 0, None, BACKENDS["cpu"], note)
    module, found = _open(kind)
    if module is None:
        raise ValueError(
            f"--device {kind} cannot be used: {found} (usable here: {', '.join(available())})"
        )
    _check_index(kind, index, module.device_count())
    try:
        module.set_device(index)
    except RuntimeError as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"card {index} of kind {kind} does not open ({reason}); another process may hold it: "
            f"try another with --device_id, and see `{MONITORS[kind]}`"
        ) from error
    return Device(kind, index, module, BACKENDS[kind], note)


def _check_index(kind: str, index: int, cards: int) -> None:
    if 0 <= index < cards:
        return
    has = f"this host has {cards} of kind {kind}, numbered from 0"
    hidden = os.environ.get(VISIBLE[kind])
    if hidden is not None:
        has += f" ({VISIBLE[kind]}={hidden} hides the others)"
    if os.environ.get("LOCAL_RANK") == str(index):
        raise ValueError(
            f"LOCAL_RANK {index} has no card of its own: {has}; start at most {cards} ranks on it"
        )
    raise ValueError(f"card {index} was asked for, but {has}")
