"""Tensors from bytes and bytes from tensors: what the readers and writers of files share.

Bytes are little-endian and dense, as every format here keeps them. Where a size comes from a file,
it is held against the bytes that are there before anything is allocated.
"""
from typing import Any, Sequence, Tuple

import numpy as np
import torch

# What numpy has no type for (or would not read as torch does) travels as integers of that size.
_CARRIERS = {
    "bool": "u1", "bfloat16": "i2", "float8_e4m3fn": "u1", "float8_e5m2": "u1",
    "float8_e4m3fnuz": "u1", "float8_e5m2fnuz": "u1",
}


class Refusal(ValueError):
    """Why a file is not read, as the rest of a sentence that begins with the file's name."""


def dtype_named(name: str) -> torch.dtype:
    """torch's type of that name ("float32").

    Raises:
        Refusal: this PyTorch has no such type (a newer one may).
    """
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise Refusal(f"holds values of type {name}, which PyTorch {torch.__version__} cannot hold")
    return dtype


def size_of(dtype: torch.dtype) -> int:
    """Bytes of one element."""
    return _carrier(dtype)[0].itemsize


def count(shape: Sequence[Any]) -> int:
    """How many elements a shape from a file has.

    Raises:
        ValueError: it is not a shape: something else than numbers from 0 up, or too many of them.
    """
    if len(shape) > 64:  # torch's own limit in most operators
        raise ValueError(f"a tensor with {len(shape)} dimensions")
    elements = 1
    for size in shape:
        if type(size) is not int or not 0 <= size < 2 ** 63:
            raise ValueError("a tensor with a size, stride or offset that is none")
        elements *= size
    return elements


def flat(buffer: Any, dtype: torch.dtype, elements: int, start: int = 0) -> torch.Tensor:
    """A tensor of shape (elements,) over a writable buffer, sharing its memory.

    Args:
        start: where it begins, in bytes.
    """
    carrier, differs = _carrier(dtype)
    array = np.frombuffer(buffer, carrier, elements, start) if elements else np.empty(0, carrier)
    return torch.from_numpy(array).view(dtype) if differs else torch.from_numpy(array)


def tensor_of(content: Any, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A tensor of its own memory, with the values in `content` (bytes or a view of them).

    Raises:
        ValueError: the shape takes more or fewer bytes than there are.
    """
    needed = count(shape) * size_of(dtype)
    if needed != len(content):
        raise ValueError(
            f"a tensor of shape {tuple(shape)} takes {needed} bytes and has {len(content)}"
        )
    content = bytearray(content)
    if dtype is torch.bool:
        canonical(content)
    return flat(content, dtype, count(shape)).reshape(tuple(shape))


def canonical(content: bytearray) -> None:
    """Make every true byte of a boolean tensor 1, in place: torch counts on it."""
    values = np.frombuffer(content, "u1")
    np.minimum(values, 1, out=values)


def bytes_of(tensor: torch.Tensor) -> bytes:
    """The values of a tensor in row-major order."""
    return values_of(tensor.detach().cpu().contiguous()).tobytes()


def values_of(tensor: torch.Tensor) -> np.ndarray:
    """The values of a dense tensor on the CPU in the order they lie in, sharing its memory.

    Returns:
        An array of shape (elements,), of a type of the same size where numpy lacks the tensor's.
    """
    tensor = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    carrier, differs = _carrier(tensor.dtype)
    if differs:
        tensor = tensor.view({"u1": torch.uint8, "i2": torch.int16}[carrier.str.lstrip("<|")])
    return tensor.numpy()


def _carrier(dtype: torch.dtype) -> Tuple[np.dtype, bool]:
    """The numpy type whose bytes hold a torch type's, and whether it is another type."""
    name = str(dtype).split(".")[-1]
    if name in _CARRIERS:
        return np.dtype("<" + _CARRIERS[name]), True
    try:
        return np.dtype(name).newbyteorder("<"), False
    except TypeError:
        raise Refusal(f"holds values of type {name}, which cannot be kept here") from None
