"""The memory that the C library hands back, and asks for again in the next step."""
import ctypes
import os

# malloc.h's numbers of what mallopt sets.
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_LARGEST = 32 << 20  # of the thresholds that glibc adapts by itself


def keep_freed() -> bool:
    """Let this process keep the memory it frees, for tensors on the CPU; returns whether it does.

    glibc maps every block over 32 MB anew and unmaps it when it is freed, so that each step of
    training waits for the kernel to fill some hundred thousand pages with zeros. The process then
    stays as large as it has once been. Nothing is done where a variable of glibc's, such as
    MALLOC_TRIM_THRESHOLD_, says how it is to be, and with another C library.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    # -1 is the largest size there is: nothing is handed back.
    return _set((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))


def give_back() -> bool:
    """Undo `keep_freed`, for comparisons, up to the thresholds that glibc comes to by itself."""
    return _set((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, _LARGEST), (_TRIM_THRESHOLD, 2 * _LARGEST))


def _set(*settings) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return all(mallopt(what, value) for what, value in settings)
