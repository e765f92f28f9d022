"""Checkpoints as no writer makes them, for the tests of what reads them."""
import argparse
import collections
import io
import pickle
import struct
import tracemalloc
import zipfile
from contextlib import contextmanager

import numpy as np
import pytest
import torch

from mobilenetv3 import checkpoint


@contextmanager
def refused(path, *words, peak=50_000_000):
    """A ValueError that begins with the file's name, says `words`, and took little memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:
            yield
        assert tracemalloc.get_traced_memory()[1] < peak
    finally:
        tracemalloc.stop()
    text = str(error.value)
    assert text.startswith(str(path)) and "\n" not in text
    for word in words:
        assert word in text


class Ref:
    """Saved as the persistent id of a storage."""

    def __init__(self, *fields):
        self.fields = fields


class Call:
    """Saved as a call of `function`, and with a state where one is given."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) + (() if state is None else (state,))

    def __reduce__(self):
        return self.reduced


def pickled(value):
    class Pickler(pickle.Pickler):
        def persistent_id(self, thing):
            return thing.fields if isinstance(thing, Ref) else None

    file = io.BytesIO()
    Pickler(file, protocol=2).dump(value)
    return file.getvalue()


def write_zip(path, pickle_bytes, storages=None, **options):
    with zipfile.ZipFile(str(path), "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", pickle_bytes, **options)
        for key, content in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", content, **options)
        archive.writestr("archive/version", "3\n")


def write_stream(path, pickle_bytes, storages=None):
    facts = {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}
    content = b"".join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, facts))
    content += pickle_bytes + pickle.dumps(list(storages or {}), 2)
    for data in (storages or {}).values():
        content += struct.pack("<q", len(data) // 4) + data
    path.write_bytes(content)


def write_bare(path, pickle_bytes):
    path.write_bytes(pickle_bytes)


WRITERS = {"zip": write_zip, "legacy": write_stream, "bare pickle": write_bare}


def tensor(offset, size, stride, kind=torch.FloatStorage, elements=6):
    return Call(
        torch._utils._rebuild_tensor_v2, Ref("storage", kind, "0", "cpu", elements), offset, size,
        stride, False, collections.OrderedDict(),
    )


def stream_ids(value):
    """The same tensor with the sixth field that the stream's ids have."""
    for part in value.reduced[1]:
        if isinstance(part, Ref):
            part.fields += (None,)
    return value


def state():
    generator = torch.Generator().manual_seed(0)
    return collections.OrderedDict(
        (f"layer{i}.weight", torch.randn(3, i + 1, generator=generator)) for i in range(8)
    )


FORMATS = {
    "zip": lambda path: torch.save({"epoch": 1, "state_dict": state()}, str(path)),
    "legacy": lambda path: torch.save(
        {"epoch": 1, "state_dict": state()}, str(path), _use_new_zipfile_serialization=False
    ),
    "safetensors": lambda path: checkpoint.save_safetensors(path, state(), {"format": "pt"}),
    "mindspore": lambda path: checkpoint.save_mindspore(path, state()),
}


def tensors_of(found):
    """The tensors in what was read, which has to be made of plain values."""
    if torch.is_tensor(found):
        return [found]
    if isinstance(found, (dict, argparse.Namespace)):
        found = list((found if isinstance(found, dict) else vars(found)).values())
    if isinstance(found, (list, tuple, set)):
        return [t for item in found for t in tensors_of(item)]
    plain = (
        str, bytes, bytearray, int, float, complex, torch.dtype, torch.device, np.ndarray,
    )
    assert found is None or isinstance(found, plain)
    return []


def read_or_refused(path):
    """Whether a damaged file was read. What was read is used, so that a bad address would show."""
    try:
        found = checkpoint.load(path)
    except ValueError as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return False
    for tensor in tensors_of(found):
        tensor.clone()
    return True
