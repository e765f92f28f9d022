"""MindSpore's checkpoint format (.ckpt), read and written without MindSpore.

A file is one protobuf message (mindspore/ccsrc/utils/checkpoint.proto; field numbers as in the
descriptor of mindspore/train/checkpoint_pb2.py):

    Checkpoint      1 value: Value, repeated
    Value           1 tag: the parameter's name; 2 tensor: TensorProto; 3 maptensor
    TensorProto     1 dims: int64, repeated; 2 tensor_type: "Float32"; 3 tensor_content: bytes

On the wire a field is a varint (number * 8 + wire type) and its value: a varint for type 0; for
type 2 a varint of the length and that many bytes (protobuf.dev, "Encoding").

As mindspore/train/serialization.py writes it: a tensor of more than 512 MB is cut into several
values in a row with the same tag and the dims of the whole; a scalar has no dims (before 2.0: one
of 0); a text of `append_dict` has the type "str" and holds UTF-32. save_checkpoint(crc_check=True)
adds "crc_num" and the CRC-32 of all before it as 10 bytes, big-endian. An encrypted file begins
with one of the numbers in mindspore/core/utils/crypto.h.
"""
import binascii
import struct
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Tuple, Union

import torch

from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.formats.tensorbytes import Refusal, bytes_of, dtype_named, size_of, tensor_of

_DTYPES = {
    "Float16": "float16", "Float32": "float32", "Float64": "float64", "BFloat16": "bfloat16",
    "Int8": "int8", "Int16": "int16", "Int32": "int32", "Int64": "int64", "UInt8": "uint8",
    "UInt16": "uint16", "UInt32": "uint32", "UInt64": "uint64", "Bool": "bool",
}
_ENCRYPTED = {0x7F3A5ED8: "AES-GCM", 0x7F3A5ED9: "AES-CBC", 0x7F3A5EDA: "SM4-CBC"}
_CRC = b"crc_num"
_CRC_BYTES = 10
_SLICE = 512 * 1024 * 1024  # bytes; a protobuf message has to stay below 2 GB
_VARINT, _LENGTH = 0, 2  # wire types

Value = Union[torch.Tensor, str]


class _Part(NamedTuple):
    tag: str
    dims: List[int]
    kind: str
    content: bytes


def looks_like(head: bytes, size: int) -> bool:
    """Whether a file of `size` bytes that begins with `head` can be one, encrypted or not."""
    if len(head) >= 4 and struct.unpack("<I", head[:4])[0] in _ENCRYPTED:
        return True
    if head[:1] != b"\x0a":  # the first field of Checkpoint, a value
        return False
    try:
        length, at = _varint(head, 1)
    except IndexError:
        return False
    return at + length <= size and head[at : at + 1] == b"\x0a"  # the first field of Value, a tag


def parse(content: Any) -> Dict[str, Value]:
    """The values by MindSpore's own names, of a file's content: bytes, or a memory map of the file.

    A number in `append_dict` is a tensor of shape (), a text is a str. The format has no end: a
    file that was cut between two values and has no CRC reads as a whole one with fewer values.

    Raises:
        Refusal: encrypted, or a kind of value that is not read.
        Exception: of several kinds, where the content is damaged.
    """
    mode = _ENCRYPTED.get(struct.unpack("<I", content[:4])[0])
    if mode:
        raise Refusal(
            f"is a MindSpore checkpoint encrypted with {mode}, which is not read; load it in "
            "MindSpore with its key and save it without enc_key"
        )
    end = len(content)
    trailer = content[max(end - len(_CRC) - _CRC_BYTES, 0) :]
    if trailer.startswith(_CRC):
        end -= len(trailer)
        if binascii.crc32(content[:end]) != int.from_bytes(trailer[len(_CRC) :], "big"):
            raise ValueError("its CRC-32 is not the one it was saved with")
    values: Dict[str, Value] = {}
    parts: List[_Part] = []
    for number, body in _fields(content, 0, end):
        if number != 1 or not isinstance(body, tuple):
            raise ValueError("a field that no checkpoint has")
        part = _part(content, *body)
        if parts and part.tag != parts[0].tag:
            _add(values, parts)
            parts = []
        parts.append(part)
    if parts:
        _add(values, parts)
    return values


def _varint(content: Any, at: int) -> Tuple[int, int]:
    """(value, where it ends): seven bits a byte, the lowest first; the top bit says "more"."""
    value = 0
    for shift in range(0, 70, 7):  # 64 bits take ten bytes
        byte = content[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError("a number of more than 64 bits")


def _fields(
    content: Any, at: int, end: int
) -> Iterator[Tuple[int, Union[int, Tuple[int, int]]]]:
    """(number, value) of each field of a message: an int, or where its bytes begin and end."""
    while at < end:
        key, at = _varint(content, at)
        value, at = _varint(content, at)
        if key & 7 == _VARINT:
            yield key >> 3, value
        elif key & 7 == _LENGTH:
            if value > end - at:
                raise ValueError("it ends in the middle")
            yield key >> 3, (at, at + value)
            at += value
        else:
            raise ValueError("a field of a type that no checkpoint has")
    if at != end:
        raise ValueError("it ends in the middle")


def _part(content: Any, at: int, end: int) -> _Part:
    """One Value."""
    fields = dict(_fields(content, at, end))
    if 3 in fields:
        raise Refusal("holds a map parameter (an embedding table), which no network here has")
    begin, stop = fields[1]
    tag = content[begin:stop].decode("utf-8")
    dims: List[int] = []
    kind = data = None
    for number, body in _fields(content, *fields[2]):
        if number == 1 and isinstance(body, int):
            dims.append(body)
        elif number == 1:  # packed, as protobuf lets a writer do
            place = body[0]
            while place < body[1]:
                size, place = _varint(content, place)
                dims.append(size)
        elif number == 2:
            kind = content[slice(*body)].decode("utf-8")
        elif number == 3:
            data = content[slice(*body)]
    if kind is None or data is None:
        raise ValueError(f"{tag} has no type or no content")
    return _Part(tag, dims, kind, data)


def _add(values: Dict[str, Value], parts: List[_Part]) -> None:
    """Put the value that consecutive parts make together into `values`."""
    tag, dims, kind, content = parts[0]
    if tag in values:
        raise ValueError(f"{tag} is there twice")
    if any(part.dims != dims or part.kind != kind for part in parts):
        raise ValueError(f"the parts of {tag} differ in shape or type")
    if len(parts) > 1:
        content = b"".join(part.content for part in parts)
    if kind == "str":
        values[tag] = content.decode("utf-32-le")
        return
    if kind not in _DTYPES:
        raise Refusal(f"holds values of type {kind[:20]} ({tag}), which are not read")
    dtype = dtype_named(_DTYPES[kind])
    if dims == [0] and len(content) == size_of(dtype):
        dims = []
    values[tag] = tensor_of(content, dtype, dims)


def save(path: PathLike, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a file atomically, with the bytes that MindSpore itself would write.

    Raises:
        ValueError: something is not a tensor, or of a type that MindSpore has not.
    """
    names = {getattr(torch, there, None): name for name, there in _DTYPES.items()}
    for name, tensor in tensors.items():
        if not torch.is_tensor(tensor) or tensor.dtype not in names:
            kind = getattr(tensor, "dtype", type(tensor).__name__)
            raise ValueError(f"{path} cannot hold {name}: it is a {kind}")

    def write(file):
        for name, tensor in tensors.items():
            content = bytes_of(tensor)
            for start in range(0, max(len(content), 1), _SLICE):
                piece = content[start : start + _SLICE]
                dims = b"".join(b"\x08" + _to_varint(size) for size in tensor.shape)
                kind = _field(2, names[tensor.dtype].encode("utf-8"))
                inner = dims + kind + _head(3, len(piece))
                tag = _field(1, name.encode("utf-8"))
                lead = tag + _head(2, len(inner) + len(piece)) + inner
                file.write(_head(1, len(lead) + len(piece)) + lead)
                file.write(piece)

    write_atomically(path, write)


def _to_varint(value: int) -> bytes:
    result = bytearray()
    while value >= 0x80:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    result.append(value)
    return bytes(result)


def _head(number: int, length: int) -> bytes:
    """What stands before the bytes of a field."""
    return _to_varint(number << 3 | _LENGTH) + _to_varint(length)


def _field(number: int, content: bytes) -> bytes:
    return _head(number, len(content)) + content
