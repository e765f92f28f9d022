"""What torch.save writes, zip archives and the older streams, read without running any of it.

The two containers are those of torch/serialization.py (`_save` and `_legacy_save`):

- zip, since 1.6: one folder with `data.pkl` (the pickle), `data/KEY` (a storage's bytes) and, since
  2.1, `byteorder`; members are stored, not compressed. A TorchScript program has `constants.pkl`.
- legacy stream: pickles of a magic number, of the protocol 1001, of facts about the machine, of the
  object, of the list of storage keys; then for each key the number of elements (int64) and bytes.

In the pickle a storage is a persistent id ("storage", its class, key, device, number of elements),
in the stream with a sixth field: None, or (key, first element, number) where it is a part of one.
"""
import io
import struct
import zipfile
from typing import Any, BinaryIO, Dict, List

import torch

from mobilenetv3.formats import unpickle
from mobilenetv3.formats.tensorbytes import Refusal, canonical, count, size_of
from mobilenetv3.formats.torchpickle import SET_STATE, Storage, StorageClass, check_plain, find

ZIP_MAGIC = b"PK\x03\x04"
STREAM_MAGIC = 0x1950A86A20F9469CFC6C
STREAM_PROTOCOL = 1001


def _storage_id(saved: Any, fields: int) -> List[Any]:
    """(class, key, device, elements, ...) of a persistent id."""
    if type(saved) is not tuple or len(saved) != fields or saved[0] not in ("storage", b"storage"):
        raise Refusal("was refused: it refers to something else than a storage")
    kind, key, _, elements = saved[1:5]
    if type(kind) is not StorageClass or type(key) is not str:
        raise Refusal(f"was refused: it holds a storage whose type is a {type(kind).__name__}")
    count((elements,))
    return list(saved[1:])


def read_zip(file: BinaryIO, size: int) -> Any:
    """The object in a zip archive of `size` bytes."""
    archive = zipfile.ZipFile(file)
    members = archive.infolist()
    names = {member.filename: member for member in members}
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if any(name.endswith("/constants.pkl") for name in names):
        raise Refusal(
            "is a TorchScript program, which is not run here; save the model's state_dict() with "
            "torch.save instead"
        )
    if len(pickles) != 1:
        raise Refusal("is a zip archive that torch.save did not write: it has no data.pkl")
    _check_members(members, size)
    folder = pickles[0][: -len("data.pkl")]
    # torch.serialization.set_crc32_options(False) leaves out all of them.
    has_checksums = any(member.CRC for member in members)

    def content(name: str) -> bytes:
        member = names[folder + name]
        if not has_checksums:
            member.CRC = None
        return archive.read(member)

    if folder + "byteorder" in names and content("byteorder") != b"little":
        raise Refusal("was written on a big-endian machine, which is not supported")
    storages: Dict[str, Storage] = {}

    def storage(saved: Any) -> Storage:
        kind, key, _, elements = _storage_id(saved, fields=5)
        if key not in storages:
            buffer = bytearray(content("data/" + key))
            if elements * size_of(kind.dtype) > len(buffer):
                raise ValueError(f"storage {key} is shorter than {elements} values")
            if kind.dtype is torch.bool:
                canonical(buffer)
            storages[key] = Storage(buffer, kind.dtype, elements)
        return storages[key]  # of its first type and size, as torch does

    rules = unpickle.Rules(find, SET_STATE, storage)
    value = unpickle.load(io.BytesIO(content("data.pkl")), rules)
    check_plain(value)
    return value


def _check_members(members: List[zipfile.ZipInfo], size: int) -> None:
    """Sizes that the file can hold, so that nothing is allocated for what is not there."""
    if any(".." in member.filename.split("/") for member in members):
        raise Refusal("was refused: it has members outside of its own folder")
    if any(member.compress_type != zipfile.ZIP_STORED for member in members):
        raise Refusal("was refused: it is compressed, and torch.save stores")
    if len({member.filename for member in members}) != len(members):
        raise Refusal("was refused: its archive has two members of one name")
    if sum(max(member.file_size, member.compress_size) for member in members) > size:
        raise Refusal("was refused: its members claim more bytes than the file has")


def read_stream(stream: BinaryIO, size: int) -> Any:
    """The object in a legacy stream of `size` bytes."""
    storages: Dict[str, Storage] = {}
    claimed = 0

    def storage(saved: Any) -> Storage:
        nonlocal claimed
        kind, key, _, elements, view = _storage_id(saved, fields=6)
        if key not in storages:
            claimed += elements * size_of(kind.dtype)
            if claimed > size:
                raise ValueError("its storages are larger than the file")
            buffer = bytearray(elements * size_of(kind.dtype))
            storages[key] = Storage(buffer, kind.dtype, elements)
        return storages[key] if view is None else _part(storages[key], view)

    inert = unpickle.Rules(find, {}, lambda saved: None)
    if unpickle.load(stream, inert) != STREAM_MAGIC:
        raise Refusal("is a pickle, but not one that torch.save wrote")
    protocol, machine = unpickle.load(stream, inert), unpickle.load(stream, inert)
    if protocol != STREAM_PROTOCOL or not machine["little_endian"]:
        raise Refusal("was written on a big-endian machine or by an unknown torch.save")
    value = unpickle.load(stream, unpickle.Rules(find, SET_STATE, storage))
    check_plain(value)
    keys = unpickle.load(stream, inert)
    if sorted(keys) != sorted(storages):
        raise ValueError("its storages are not those that its tensors use")
    for key in keys:
        _fill(storages[key], stream)
    return value


def _part(whole: Storage, view: Any) -> Storage:
    """The part of a storage that is described as (key, first element, number of elements)."""
    _, first, elements = view
    count((first, elements))
    if first + elements > whole.elements:
        raise Refusal("was refused: a part of a storage reaches beyond it")
    return Storage(whole.buffer, whole.dtype, elements, first * size_of(whole.dtype))


def _fill(storage: Storage, stream: BinaryIO) -> None:
    elements = struct.unpack("<q", stream.read(8))[0]
    content = stream.read(len(storage.buffer))
    if elements != storage.elements or len(content) != len(storage.buffer):
        raise EOFError("it ends in the middle")
    storage.buffer[:] = content
    if storage.dtype is torch.bool:
        canonical(storage.buffer)
