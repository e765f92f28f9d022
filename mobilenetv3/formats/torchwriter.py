"""What torch.load reads, written so that other threads go on meanwhile.

The file is the zip archive that torchfile.py describes. torch.save keeps Python's lock from the
first byte to the last, and a training beside it stands still; here checksums and writes are made
without the lock, and what is left can be interrupted. Every member has its CRC-32, whatever
torch.serialization.set_crc32_options says, and equal values make equal files.
"""
import collections
import io
import pickle
import zipfile
from typing import Any, BinaryIO, Dict, List, NamedTuple, Tuple

import numpy as np
import torch

from mobilenetv3.formats.tensorbytes import Refusal, values_of

_ALIGNMENT = 64  # of the values in the file, as torch.save has it: for those who map it into memory
_LOCAL_HEADER = 30  # bytes of a member's header, before its name
_FOLDER = "checkpoint/"
_STORAGES = {
    "float32": "FloatStorage", "float64": "DoubleStorage", "float16": "HalfStorage",
    "bfloat16": "BFloat16Storage", "int64": "LongStorage", "int32": "IntStorage",
    "int16": "ShortStorage", "int8": "CharStorage", "uint8": "ByteStorage", "bool": "BoolStorage",
    "complex64": "ComplexFloatStorage", "complex128": "ComplexDoubleStorage",
}


class _Storage(NamedTuple):
    """A tensor's values, which the pickle names by a persistent id."""

    kind: type
    key: str
    elements: int


def write_zip(file: BinaryIO, value: Any) -> None:
    """Write tensors and plain containers to a file that is open for writing and can seek.

    A tensor is written as what it holds, dense: not with the rest of a larger one that it is a part
    of, and without its gradient. Tensors that are one stay one. Whatever its device, the file says
    cpu.

    Raises:
        ValueError: a tensor is of a type that torch.load of PyTorch 1.8 does not know.
    """
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(value)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, file, "data.pkl", stream.getbuffer())
        _add(archive, file, "byteorder", b"little")
        for key, array in enumerate(pickler.arrays):
            _add(archive, file, f"data/{key}", array)
        _add(archive, file, "version", b"3\n")


def _add(archive: zipfile.ZipFile, file: BinaryIO, name: str, content: Any) -> None:
    member = zipfile.ZipInfo(_FOLDER + name)  # of 1980: a time would make equal values differ
    start = file.tell() + _LOCAL_HEADER + len(member.filename) + 4
    padding = -start % _ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding  # torch's own kind
    archive.writestr(member, memoryview(content).cast("B") if len(content) else b"")


class _Pickler(pickle.Pickler):
    """Protocol 2, as torch.save; tensors become calls of what torch.load rebuilds them by."""

    def __init__(self, stream: BinaryIO):
        super().__init__(stream, protocol=2)
        self.arrays: List[np.ndarray] = []  # values, by key; they keep the memory, too
        self._written: Dict[Tuple, _Storage] = {}

    def persistent_id(self, obj: Any) -> Any:
        if type(obj) is _Storage:
            return ("storage", obj.kind, obj.key, "cpu", obj.elements)
        return None

    def reducer_override(self, obj: Any) -> Any:
        if not isinstance(obj, torch.Tensor):
            return NotImplemented
        tensor = obj.detach().cpu()
        is_dense = tensor.is_contiguous() or (
            tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
        )
        tensor = tensor if is_dense else tensor.contiguous()
        shape, stride = tuple(tensor.shape), tensor.stride()
        return torch._utils._rebuild_tensor_v2, (
            self._storage(tensor, obj), 0, shape, stride, False, collections.OrderedDict(),
        )

    def _storage(self, tensor: torch.Tensor, owner: torch.Tensor) -> _Storage:
        """The storage of a dense tensor on the CPU that has the values of `owner`."""
        name = str(tensor.dtype).split(".")[-1]
        if name not in _STORAGES:
            raise Refusal(f"a checkpoint cannot hold values of type {name}")
        place = (owner.device, owner.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in self._written:
            found = _Storage(getattr(torch, _STORAGES[name]), str(len(self.arrays)), tensor.numel())
            self.arrays.append(values_of(tensor))
            self._written[place] = found
        return self._written[place]
