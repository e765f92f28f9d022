"""torch.npu: the functions of torch_npu that the package, PyTorch and timm call.

Names and arguments are torch_npu's; what tunes the real runtime is left out.
"""
import contextlib
from typing import Any, Dict

import torch

from torch_npu import _C
from torch_npu.npu import amp, utils
from torch_npu.npu.utils import (
    clear_npu_overflow_flag,
    get_npu_overflow_flag,
    is_support_inf_nan,
)

__all__ = ["amp", "utils", "clear_npu_overflow_flag", "get_npu_overflow_flag",
           "is_support_inf_nan"]


def _index(device: Any = None) -> int:
    """Card of a number, a name or a device; the current one for None."""
    if isinstance(device, int):
        return device
    device = torch.device("npu" if device is None else device)
    if device.type != "npu":
        raise ValueError(f"expected an npu device, got {device}")
    return _C.current_device() if device.index is None else device.index


# ---- Cards ----

def is_available() -> bool:
    """Whether there is a card."""
    return _C.device_count() > 0


def device_count() -> int:
    """Number of cards of this host: NPU_STAND_IN_DEVICES, or 8."""
    return _C.device_count()


def current_device() -> int:
    """Card of this thread."""
    return _C.current_device()


def set_device(device) -> None:
    """Choose this thread's card."""
    _C.set_device(_index(device))


def synchronize(device=None) -> None:
    """Wait for the card. Work is always done here, so only the wait is counted."""
    _index(device)
    _C.count_host_sync("synchronize")


def get_device_name(device=None) -> str:
    """Says that it is none of Ascend's."""
    return "stand-in NPU (host memory)"


def is_initialized() -> bool:
    """Nothing needs initialising."""
    return True


def _lazy_init() -> None:
    pass


def _is_in_bad_fork() -> bool:
    """A forked child must not use the device; torch.manual_seed asks before it seeds."""
    return _C.is_in_bad_fork()


class device:  # noqa: N801
    """with torch.npu.device(2): ..."""

    def __init__(self, device):
        self.index = _index(device)

    def __enter__(self):
        self.before = _C.exchange_device(self.index)

    def __exit__(self, *exception):
        _C.exchange_device(self.before)


def _exchange_device(index: int) -> int:
    return _C.exchange_device(index)


_maybe_exchange_device = _exchange_device


# ---- Host syncs: the stand-in's own, torch_npu has nothing like it ----

def host_syncs() -> Dict[str, int]:
    """How often the host would have waited for the device since the last reset, by reason."""
    return _C.host_syncs()


def host_sync_count() -> int:
    """The sum of `host_syncs`."""
    return sum(_C.host_syncs().values())


def reset_host_syncs() -> None:
    """Count from 0 again."""
    _C.reset_host_syncs()


# ---- Memory ----

def empty_cache() -> None:
    """There is no cache."""


def memory_allocated(device=None) -> int:
    """Bytes in use."""
    return _C.memory_allocated(_index(device))


def max_memory_allocated(device=None) -> int:
    """Most bytes in use since the last reset."""
    return _C.max_memory_allocated(_index(device))


def reset_peak_memory_stats(device=None) -> None:
    """Let `max_memory_allocated` start from now."""
    _C.reset_max_memory_allocated(_index(device))


def memory_stats(device=None) -> Dict[str, int]:
    """The two numbers above under PyTorch's names."""
    return {"allocated_bytes.all.current": memory_allocated(device),
            "allocated_bytes.all.peak": max_memory_allocated(device)}


memory_reserved, max_memory_reserved = memory_allocated, max_memory_allocated


# ---- Random numbers ----

def manual_seed(seed: int) -> None:
    """Seed the current card's generator."""
    _C.default_generator(_C.current_device()).manual_seed(seed)


def manual_seed_all(seed: int) -> None:
    """Seed every card's generator."""
    for index in range(device_count()):
        _C.default_generator(index).manual_seed(seed)


def initial_seed() -> int:
    """Seed of the current card's generator."""
    return _C.default_generator(_C.current_device()).initial_seed()


def get_rng_state(device="npu") -> torch.Tensor:
    """State of a card's generator, a CPU tensor."""
    return _C.default_generator(_index(device)).get_state()


def set_rng_state(state: torch.Tensor, device="npu") -> None:
    """Put a card's generator back."""
    _C.default_generator(_index(device)).set_state(state)


# ---- Streams and events ----

class Stream(torch.Stream):
    """The one stream of a card."""

    def __new__(cls, device=None, priority=0, **given):
        if "stream_id" in given:  # PyTorch hands an existing one over
            return super().__new__(cls, **given)
        return super().__new__(cls, device=torch.device("npu", _index(device)), priority=priority)


class Event:
    """A moment. Wraps torch.Event, whose elapsed_time refuses subclasses."""

    def __init__(self, enable_timing=False, blocking=False, interprocess=False):
        self._event = torch.Event(
            device=torch.device("npu", _C.current_device()), enable_timing=enable_timing,
            blocking=blocking, interprocess=interprocess,
        )

    def record(self, stream=None) -> None:
        self._event.record(current_stream() if stream is None else stream)

    def wait(self, stream=None) -> None:
        pass

    def query(self) -> bool:
        return self._event.query()

    def synchronize(self) -> None:
        self._event.synchronize()

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds from here to `end`."""
        return self._event.elapsed_time(end._event)


def current_stream(device=None) -> Stream:
    """The stream of a card."""
    return Stream(device)


default_stream = current_stream


@contextlib.contextmanager
def stream(stream):
    """with torch.npu.stream(stream): ..."""
    yield stream


def set_stream(stream) -> None:
    """There is one stream."""


# ---- Mixed precision ----

def get_amp_supported_dtype():
    """What torch.autocast("npu") may cast to."""
    return [torch.float16, torch.bfloat16]


def is_bf16_supported() -> bool:
    """As on Ascend 910B; 910A has no bfloat16."""
    return not _C.saturates()
