"""torch_npu.npu.utils: overflow of chips that have no infinity.

NPU_STAND_IN_SATURATES=1 makes the stand-in such a chip (Ascend 910A): what overflows becomes the
type's largest number, NaN becomes 0, and this flag is how a program learns of it.
"""
from torch_npu import _C


def is_support_inf_nan() -> bool:
    """Whether an overflow becomes an infinity, as on Ascend 910B."""
    return not _C.saturates()


def get_npu_overflow_flag() -> bool:
    """Whether anything overflowed on the current card since the flag was cleared; waits for it."""
    _C.count_host_sync("overflow flag")
    return _C.get_overflow(_C.current_device())


def clear_npu_overflow_flag() -> None:
    """Clear the current card's flag."""
    _C.clear_overflow(_C.current_device())
