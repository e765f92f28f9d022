"""The safetensors format, read and written.

A file is the length of the header (uint64, little-endian), the header (JSON, padded with spaces to
a multiple of 8) and the data. The header gives for each name `dtype`, `shape` and `data_offsets`
(begin and end, from the start of the data), and may have `__metadata__`, texts by name. The data
is covered without holes or overlaps, and the header has at most 100 MB (the format's README and
its reference implementation, safetensors/src/tensor.rs).

The package of that name cannot be used with PyTorch 1.8.1 (it calls torch.frombuffer) and gives
bfloat16 to PyTorch only.
"""
import json
import struct
from typing import Any, Dict, List, Mapping, Tuple

import torch

from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.formats.tensorbytes import Refusal, bytes_of, dtype_named, size_of, tensor_of

_MAX_HEADER = 100_000_000
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "I64": "int64",
    "I32": "int32", "I16": "int16", "I8": "int8", "U64": "uint64", "U32": "uint32",
    "U16": "uint16", "U8": "uint8", "BOOL": "bool", "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` (9 bytes at least) can be one."""
    if len(head) < 9 or head[8:9] != b"{":
        return False
    return struct.unpack("<Q", head[:8])[0] <= min(size - 8, _MAX_HEADER)


def parse(content: Any) -> Tuple[Dict[str, torch.Tensor], Dict[str, str]]:
    """(tensors by name, metadata) of a file's content: bytes, or a memory map of the file.

    Raises:
        Refusal: a type that this PyTorch does not have.
        Exception: of several kinds, where the content is damaged.
    """
    length = struct.unpack("<Q", content[:8])[0]
    if not looks_like(content[:9], len(content)):
        raise ValueError("a header that is larger than the file")
    header = json.loads(
        content[8 : 8 + length].decode("utf-8"), object_pairs_hook=_unique, parse_int=_integer,
    )
    metadata = header.pop("__metadata__", {})
    if any(type(value) is not str for value in metadata.values()):
        raise ValueError("metadata that is not text")
    start = 8 + length
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        begin, stop = entry["data_offsets"]
        if begin != end or not begin <= stop <= len(content) - start:
            raise ValueError(f"the data of {name} is not where the header says")
        if entry["dtype"] not in _DTYPES:
            raise Refusal(f"holds values of type {entry['dtype']}, which cannot be kept here")
        dtype = dtype_named(_DTYPES[entry["dtype"]])
        tensors[name] = tensor_of(content[start + begin : start + stop], dtype, entry["shape"])
        end = stop
    if start + end != len(content):
        raise ValueError("data that no tensor has")
    return {name: tensors[name] for name in header}, metadata


def _unique(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("two tensors of one name")
    return dict(pairs)


def _integer(digits: str) -> int:
    if len(digits) > 20:  # converting takes time that grows with the square of the length
        raise ValueError("a number of more than 20 digits")
    return int(digits)


def save(
    path: PathLike, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a file atomically.

    Raises:
        ValueError: something is not a tensor, or metadata is not text.
    """
    for name, value in metadata.items():
        if not isinstance(value, str):
            raise ValueError(f"metadata in a safetensors file is text; {name} is {value!r}")
    names = {getattr(torch, there, None): name for name, there in _DTYPES.items()}
    for name, tensor in tensors.items():
        if not torch.is_tensor(tensor) or tensor.dtype not in names:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{path} cannot hold {name}: it is a {kind}")
    # The larger types come first, so that each is aligned to its size.
    order = sorted(tensors, key=lambda name: (-size_of(tensors[name].dtype), name))
    header: Dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for name in order:
        tensor = tensors[name]
        begin, end = end, end + tensor.numel() * size_of(tensor.dtype)
        header[name] = {
            "dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)

    def write(file):
        file.write(struct.pack("<Q", len(text)) + text)
        for name in order:
            file.write(bytes_of(tensors[name]))

    write_atomically(path, write)
