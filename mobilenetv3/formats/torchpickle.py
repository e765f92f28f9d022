"""What the names in a pickle of torch.save stand for here: tensors, numbers and containers.

A tensor is a call of `torch._utils._rebuild_tensor_v2` with a storage, an offset, sizes and
strides (in elements); the storage is a persistent id that torchfile.py resolves. Everything that
is not in the tables below is refused by name.
"""
import argparse
import collections
import re
from typing import Any, Collection, Dict

import numpy as np
import torch

from mobilenetv3.formats.tensorbytes import Refusal, count, dtype_named, flat, size_of
from mobilenetv3.formats.unpickle import Function, check_key

# torch's storage classes; those of quantized types are left out.
_STORAGES = {
    "FloatStorage": "float32", "DoubleStorage": "float64", "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16", "LongStorage": "int64", "IntStorage": "int32",
    "ShortStorage": "int16", "CharStorage": "int8", "ByteStorage": "uint8", "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64", "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}


class StorageClass:
    """A class of torch's that is named in a persistent id: it says the type of the values."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype


class Storage:
    """`elements` values of `dtype` from byte `start` on in a buffer, which may be filled later."""

    def __init__(self, buffer: bytearray, dtype: torch.dtype, elements: int, start: int = 0):
        self.buffer = buffer
        self.dtype = dtype
        self.elements = elements
        self.start = start


class _NumpyType:
    """A numpy type under construction: its name, and the byte order that its state adds."""

    def __init__(self, name: str, *_):
        if not re.fullmatch(r"[biufc]1?[0-9]", name):  # numbers: no objects, no records
            raise Refusal(f"was refused: it holds a numpy array of type {name[:20]}")
        self.name = name
        self.order = "="

    def set_state(self, state: Any) -> None:
        if state[1] not in ("<", ">", "=", "|"):
            raise ValueError("a numpy type without a byte order")
        self.order = state[1].replace("|", "=")

    def dtype(self) -> np.dtype:
        return np.dtype(self.order + self.name)


class _Skipped:
    """An object that is no part of the weights; what it holds is read and dropped."""


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *others: Any) -> torch.Tensor:
    """torch._utils._rebuild_tensor_v2, and _v3 whose seventh argument is the type.

    Whether it needs a gradient, its hooks and what torch_npu adds (the layout in the NPU's
    memory; the bytes are in the ordinary one) do not belong to its value.
    """
    if type(storage) is not Storage or type(size) is not tuple or type(stride) is not tuple:
        raise Refusal("was refused: it makes a tensor of something else than a storage")
    dtype = storage.dtype
    elements = storage.elements
    if len(others) > 2 and isinstance(others[2], torch.dtype):
        dtype = others[2]
        elements = elements * size_of(storage.dtype) // size_of(dtype)
        if dtype is torch.bool:  # has a storage class, whose bytes are made 0 and 1
            raise Refusal("was refused: it makes a boolean tensor of other bytes")
    numbers = count(size)
    count(stride + (offset,))
    if len(size) != len(stride):
        raise ValueError("a tensor with more sizes than strides")
    if numbers == 0:
        return torch.empty(size, dtype=dtype)
    if offset + sum((n - 1) * step for n, step in zip(size, stride)) >= elements:
        raise Refusal(
            f"was refused: a tensor of shape {size} reaches beyond its storage of {elements} values"
        )
    if numbers > elements:  # strides of 0: a copy of it could take any amount of memory
        raise Refusal(
            f"was refused: a tensor of shape {size} repeats a storage of {elements} values; save "
            "it contiguous"
        )
    return flat(storage.buffer, dtype, elements, storage.start).as_strided(size, stride, offset)


def _ordered(pairs: Any = ()) -> "collections.OrderedDict[Any, Any]":
    return collections.OrderedDict((check_key(key), value) for key, value in pairs)


def _set(items: Any = ()) -> set:
    return {check_key(item) for item in items}


def _counter(counts: Any) -> Dict:
    if type(counts) is not dict:
        raise ValueError("a Counter of something else than a dictionary")
    return collections.Counter(counts)


def _encode(text: str, encoding: str) -> bytes:
    """_codecs.encode: how protocol 2 writes bytes."""
    if type(text) is not str or encoding not in ("latin1", "latin-1"):
        raise Refusal("was refused: it encodes text")
    return text.encode("latin-1")


def _bytearray(content: Any = b"", encoding: str = "latin-1") -> bytearray:
    return bytearray(content if type(content) is bytes else _encode(content, encoding))


def _device(*named: Any) -> Any:
    """A torch.device; as text where this PyTorch lacks the kind: "npu:0" without torch_npu."""
    if not named or type(named[0]) is not str or any(type(part) is not int for part in named[1:]):
        raise ValueError("a device without a name")
    try:
        return torch.device(*named)
    except RuntimeError:
        return ":".join(map(str, named))


def _layout(value: Any) -> Any:
    """torch_npu's Format: the layout that a tensor had on the NPU, which _tensor leaves out."""
    return value


def _get_attribute(owner: Any, name: Any) -> _Skipped:
    """getattr, of the classes that are left out: nothing is looked up.

    Protocol 2 names so the methods that a skipped object refers to, and Python 3.11.0 to 3.11.3 the
    members of an enum.
    """
    if type(owner) is not Function or owner.call not in (_Skipped, _layout):
        raise Refusal("was refused: it holds a builtins.getattr")
    return _Skipped()


def _numpy_number(kind: _NumpyType, content: bytes) -> Any:
    values = np.frombuffer(content, kind.dtype())
    if len(values) != 1:
        raise ValueError("a numpy number of another size than its type's")
    return values[0].item()


def _set_array(array: np.ndarray, state: Any) -> None:
    """numpy's state of an array: (version, shape, type, whether column-major, bytes)."""
    _, shape, kind, fortran, content = state
    dtype = kind.dtype()
    if type(content) is not bytes or count(shape) * dtype.itemsize != len(content):
        raise ValueError("a numpy array of another size than its bytes")
    array.__setstate__((1, shape, dtype, bool(fortran), content))


def _set_namespace(namespace: argparse.Namespace, state: Any) -> None:
    if type(state) is not dict or any(
        type(name) is not str or hasattr(argparse.Namespace, name) for name in state
    ):
        raise Refusal("was refused: it changes what an argparse.Namespace does")
    vars(namespace).update(state)


SET_STATE = {
    argparse.Namespace: _set_namespace,
    collections.OrderedDict: lambda target, state: None,  # torch's _metadata: nothing reads it
    np.ndarray: _set_array,
    _NumpyType: _NumpyType.set_state,
    _Skipped: lambda target, state: None,
}
_NDARRAY = object()  # numpy.ndarray by name, which only _reconstruct takes

_ALLOWED = {
    "collections.OrderedDict": _ordered,
    "collections.Counter": _counter,
    "builtins.set": _set,
    "builtins.complex": complex,
    "builtins.bytearray": _bytearray,
    "builtins.getattr": _get_attribute,
    "_codecs.encode": _encode,
    "argparse.Namespace": argparse.Namespace,
    "torch.Size": torch.Size,
    "torch.device": _device,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, *_: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
    # Ascend's torch_npu saves a tensor that is on the NPU under this name; Format is its layout.
    "torch_npu.utils.storage._rebuild_npu_tensor": _tensor,
    "torch_npu.npu._format.Format": _layout,
    "numpy.dtype": _NumpyType,
}
# mmengine's training logs.
_SKIPPED = (
    "mmengine.logging.history_buffer.HistoryBuffer", "mmengine.logging.message_hub.MessageHub",
)
for _core in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ALLOWED[_core + ".scalar"] = _numpy_number
    _ALLOWED[_core + "._reconstruct"] = lambda *_: np.empty(0)


_LEAVES = (
    type(None), bool, int, float, complex, str, bytes, bytearray, torch.Tensor, torch.dtype,
    torch.device, np.ndarray, _Skipped,
)
_MAX_DEPTH = 64
_MAX_ITEMS = 10_000_000


def check_plain(value: Any) -> None:
    """Refuse what is not data, and containers that whoever walks through them would not survive.

    A container can hold itself, or the same two others at each of many levels; the items are
    counted as often as such a walk meets them.
    """
    level, items = [(value, 1)], 0
    for _ in range(_MAX_DEPTH):
        inner: Dict[int, Any] = {}
        for container, times in level:
            children = _children(container)
            items += len(children) * times
            for child in children:
                if type(child) not in _LEAVES:
                    inner[id(child)] = (child, inner.get(id(child), (child, 0))[1] + times)
        if not inner:
            return
        if items > _MAX_ITEMS:
            raise Refusal("was refused: its containers repeat each other too often")
        level = list(inner.values())
    raise Refusal("was refused: its containers are nested without end")


def _children(container: Any) -> Collection:
    kind = type(container)
    if kind in (dict, collections.OrderedDict, collections.Counter):
        return container.values()  # a key is a leaf
    if kind in (list, tuple, set, torch.Size):
        return container
    if kind is argparse.Namespace:
        return vars(container).values()
    if kind in _LEAVES:
        return ()
    name = container.name if kind is Function else kind.__name__
    raise Refusal(f"was refused: it holds a {name} as a value")


def find(module: str, name: str) -> Any:
    """What a name in the pickle stands for."""
    path = f"{module}.{name}"
    if path in _ALLOWED:
        return Function(path, _ALLOWED[path])
    if path in _SKIPPED:
        return Function(path, _Skipped)
    if path.rsplit(".", 1)[0] in _SKIPPED:  # a method of such a class
        return _Skipped()
    if path == "numpy.ndarray":
        return _NDARRAY
    if module in ("torch", "torch.storage") and name in _STORAGES:
        return StorageClass(dtype_named(_STORAGES[name]))
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    advice = ""
    if name[:1].isupper():  # a class: most often a network that was saved whole
        advice = "; of a whole model, save the state_dict() instead"
    raise Refusal(
        f"was refused: it holds a {path}, and a checkpoint may hold tensors, plain containers and "
        f"an argparse.Namespace only (nothing was run){advice}"
    )
