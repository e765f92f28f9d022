"""The formats that are read and written, whatever a file is called."""
import argparse
import collections
import enum
import json
import struct
import subprocess
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from checkpoint_files import FORMATS, Call, pickled, refused, state, write_zip

from mobilenetv3 import checkpoint

TYPES = (
    "float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32", "int64", "bool",
    "complex64", "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2",
)
CONTAINERS = {"zip": True, "legacy": False}


def write(value, path, container="zip", protocol=2):
    torch.save(
        value, str(path), pickle_protocol=protocol,
        _use_new_zipfile_serialization=CONTAINERS[container],
    )


@pytest.mark.parametrize("name", ["a.pth", "a.pth.tar", "a.pt", "a.safetensors", "a.ckpt", "a"])
@pytest.mark.parametrize("form", FORMATS)
def test_the_content_says_what_a_file_is(tmp_path, form, name):
    path = tmp_path / name
    FORMATS[form](path)
    found = checkpoint.load(path)
    found = found.get("state_dict", found)
    assert set(found) == set(state())
    assert all(torch.equal(found[key], value) for key, value in state().items())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_every_type_shape_and_view_is_read_as_torch_reads_it(tmp_path, container, protocol):
    base = torch.arange(10.0)
    tensors = {
        "base": base, "part": base[2:8:2], "turned": base.view(2, 5).t(), "one": torch.tensor(2.5),
        "empty": torch.zeros(0, 3), "parameter": torch.nn.Parameter(base.clone()),
        "true": torch.tensor([True, False]),
    }
    for name in TYPES:
        if hasattr(torch, name):  # several came after 1.8.1
            tensors[name] = torch.tensor([0, 1, 100]).to(getattr(torch, name))
    path = tmp_path / "a.pth"
    write(tensors, path, container, protocol)
    found = checkpoint.load(path)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert not found[name].requires_grad
        assert found[name].tolist() == tensor.tolist(), name
    found["base"][2] = 99  # views share memory as they did
    assert found["part"][0] == 99 and found["turned"][2, 0] == 99


@pytest.mark.parametrize("container", CONTAINERS)
def test_what_training_scripts_keep_beside_the_weights_is_read(tmp_path, container):
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2])
    kept = {
        "args": argparse.Namespace(
            model="x", lr=0.1, device=torch.device("cuda:0"), dtype=torch.float16, nested={"a": 1},
        ),
        "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(),
        "plain": [None, True, -1, 2 ** 70, 1.5, "\xe9", b"\x00\xff", (1, (2,)), {3}, 1j],
        "size": torch.Size([2, 3]), "counts": collections.Counter(a=2),
    }
    path = tmp_path / "a.pth.tar"
    write(dict(kept, state_dict=model.state_dict()), path, container)
    found = checkpoint.load(path)
    assert torch.equal(found.pop("state_dict")["weight"], model.weight)
    momentum = found["optimizer"]["state"].pop(0)["momentum_buffer"]
    assert torch.equal(momentum, kept["optimizer"]["state"].pop(0)["momentum_buffer"])
    found["optimizer"]["state"].clear()
    kept["optimizer"]["state"].clear()
    assert found == kept
    assert type(found["args"]) is argparse.Namespace


@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_numbers_become_pythons_and_arrays_stay(tmp_path, protocol):
    path = tmp_path / "a.pth"
    write({
        "best": np.float64(0.5), "seed": np.int64(3), "flag": np.bool_(True),
        "history": np.arange(6, dtype=np.float32).reshape(2, 3), "turned": np.eye(2, 3).T,
        "swapped": np.arange(3, dtype=">i4"),
    }, path, protocol=protocol)
    found = checkpoint.load(path)
    assert (found["best"], found["seed"], found["flag"]) == (0.5, 3, True)
    assert (type(found["best"]), type(found["seed"])) == (float, int)
    assert found["history"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert found["turned"].tolist() == [[1, 0], [0, 1], [0, 0]]
    assert found["swapped"].tolist() == [0, 1, 2]
    write({"objects": np.array([argparse], dtype=object).astype(str).astype(object)}, path)
    with refused(path, "numpy array of type O"):
        checkpoint.load(path)


def stand_in(monkeypatch, module, **members):
    """A module that only a writer has, and its parents."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        name = ".".join(parts[:end])
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    for name, member in members.items():
        member.__module__, member.__qualname__ = module, name
        setattr(sys.modules[module], name, member)
    return sys.modules[module]


@pytest.mark.parametrize("protocol", [2, 4])
def test_mmengines_training_logs_are_left_out(tmp_path, monkeypatch, protocol):
    """Its HistoryBuffer holds arrays and references to its own methods."""
    class HistoryBuffer:
        def __init__(self):
            self._log_history = np.arange(3.0)
            self._statistics_methods = {"min": HistoryBuffer.min}

        def min(self):
            raise AssertionError("called")

    name = "mmengine.logging.history_buffer"
    stand_in(monkeypatch, name, HistoryBuffer=HistoryBuffer)
    HistoryBuffer.min.__module__, HistoryBuffer.min.__qualname__ = name, "HistoryBuffer.min"
    path = tmp_path / "a.pth"
    logs = {"log_scalars": collections.OrderedDict(loss=HistoryBuffer()), "runtime_info": {"i": 1}}
    write({"message_hub": logs, "state_dict": {"w": torch.ones(2)}}, path, protocol=protocol)
    found = checkpoint.load(path)
    assert torch.equal(found["state_dict"]["w"], torch.ones(2))
    assert found["message_hub"]["runtime_info"] == {"i": 1}
    assert not isinstance(found["message_hub"]["log_scalars"]["loss"], HistoryBuffer)


def by_value(member, protocol):
    """How most Pythons pickle a member of an enum."""
    return type(member), (member.value,)


def by_name(member, protocol):
    """How Python 3.11.0 to 3.11.3 do."""
    return getattr, (type(member), member.name)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("reduce", [by_value, by_name])
def test_tensors_that_were_on_an_npu_are_read_without_one(tmp_path, monkeypatch, container, reduce):
    """torch_npu saves them under a function of its own, with the layout they had there."""
    def _rebuild_npu_tensor(*arguments):
        raise AssertionError("called")

    class Format(enum.IntEnum):
        NC1HWC0 = 3

        __reduce_ex__ = reduce

    class OnNpu:
        def __reduce__(self):
            with warnings.catch_warnings():  # storages have become a thing of torch's own
                warnings.simplefilter("ignore")
                storage = tensor.storage()
            return _rebuild_npu_tensor, (
                storage, 0, (2, 3), (3, 1), False, collections.OrderedDict(), self.layout,
            )

    stand_in(monkeypatch, "torch_npu.utils.storage", _rebuild_npu_tensor=_rebuild_npu_tensor)
    stand_in(monkeypatch, "torch_npu.npu._format", Format=Format)
    tensor = torch.arange(6.0).view(2, 3)
    for layout in (Format.NC1HWC0, 3, True):
        OnNpu.layout = layout
        path = tmp_path / "a.pth"
        write({"state_dict": {"w": OnNpu()}}, path, container)
        assert torch.equal(checkpoint.load(path)["state_dict"]["w"], tensor)


def test_a_file_without_checksums_is_read(tmp_path):
    """torch.serialization.set_crc32_options(False) leaves zeros in their place."""
    if not hasattr(torch.serialization, "set_crc32_options"):
        pytest.skip("this PyTorch always writes checksums")
    path = tmp_path / "a.pth"
    torch.serialization.set_crc32_options(False)
    try:
        write({"w": torch.arange(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert checkpoint.load(path)["w"].tolist() == [0, 1, 2]


@pytest.mark.parametrize("content, told", [
    (b"", "is empty"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    (b"<!DOCTYPE html><html></html>", "web page"),
    (b"\x1f\x8b\x08\x00" + bytes(30), "compressed"),
    (b"hello " * 20, "begins like no format"),
    (b"\n" + b"x" * 100, "begins like no format"),
])
def test_what_is_no_checkpoint_is_told(tmp_path, content, told):
    path = tmp_path / "a.pth"
    path.write_bytes(content)
    with refused(path, told):
        checkpoint.load(path)


def test_a_tar_archive_is_told(tmp_path):
    (tmp_path / "w").write_bytes(b"1")
    path = tmp_path / "a.pth.tar"
    subprocess.run(["tar", "-cf", str(path), "-C", str(tmp_path), "w"], check=True)
    with refused(path, "is a tar archive"):
        checkpoint.load(path)


# --- safetensors ---

def test_safetensors_make_the_round_trip_bit_for_bit(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"scalar": torch.tensor(1.5), "empty": torch.zeros(0, 3), "\xe9": torch.ones(1)}
    for name in TYPES:
        if hasattr(torch, name):  # several came after 1.8.1
            tensors[name] = torch.tensor([0, 1, 100]).to(getattr(torch, name))
    checkpoint.save_safetensors(path, tensors, {"format": "pt", "note": "\xe9"})
    found = checkpoint.load(path)
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].tolist() == tensor.tolist()
    assert checkpoint.metadata_of(path) == {"format": "pt", "note": "\xe9"}
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    assert length % 8 == 0  # so that the data is aligned


def test_a_header_of_any_length_is_told_from_a_pickle(tmp_path):
    """The length comes first: one of 128 or 384 bytes begins as a pickle does, with 0x80."""
    path = tmp_path / "a.safetensors"
    begins = set()
    for pad in range(0, 600, 8):
        checkpoint.save_safetensors(path, {"w": torch.ones(1)}, {"pad": "x" * pad})
        begins.add(path.read_bytes()[:1])
        assert checkpoint.load(path)["w"].tolist() == [1]
    assert b"\x80" in begins


def test_metadata_is_text_and_other_formats_have_none(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match="epoch is 3"):
        checkpoint.save_safetensors(path, {}, {"epoch": 3})
    with pytest.raises(ValueError, match="cannot hold w: it is a list"):
        checkpoint.save_safetensors(path, {"w": [1]})
    assert not path.exists()
    checkpoint.save_safetensors(path, {"w": torch.ones(1)})
    assert checkpoint.metadata_of(path) == {}
    checkpoint.save(path, {"w": torch.ones(1)})
    assert checkpoint.metadata_of(path) == {}
    with pytest.raises(FileNotFoundError, match="nowhere"):
        checkpoint.metadata_of(tmp_path / "nowhere")


def test_the_safetensors_package_reads_and_writes_the_same(tmp_path):
    package = pytest.importorskip("safetensors.numpy")
    arrays = {
        "w": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(3), "h": np.ones(3, "f2"),
        "b": np.array([True, False]),
    }
    path = tmp_path / "a.safetensors"
    package.save_file(arrays, str(path), {"format": "pt"})
    found = checkpoint.load(path)
    assert {name: tensor.tolist() for name, tensor in found.items()} == {
        name: array.tolist() for name, array in arrays.items()
    }
    assert checkpoint.metadata_of(path) == {"format": "pt"}
    checkpoint.save_safetensors(path, found, {"format": "pt"})
    again = package.load_file(str(path))
    assert set(again) == set(arrays)
    for name, array in arrays.items():
        assert (again[name].dtype, again[name].tolist()) == (array.dtype, array.tolist())


def write_safetensors(path, header, data=bytes(24), length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(**changes):
    return {**{"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, **changes}


@pytest.mark.parametrize("header", [
    {"w": entry(shape=[2, 4])},
    {"w": entry(shape=[2 ** 40, 2 ** 40])},
    {"w": entry(shape=[-2, -3])},
    {"w": entry(shape=[2.0, 3.0])},
    {"w": entry(shape="23")},
    {"w": entry(data_offsets=[0, 2 ** 40], shape=[2 ** 38])},
    {"w": entry(data_offsets=[24, 0])},
    {"w": entry(data_offsets=[0, 24, 24])},
    {"w": entry(data_offsets=None)},
    {"w": entry(shape=[1], data_offsets=[0, 4])},                       # bytes that nobody has
    {"w": entry(), "v": entry()},                                       # one upon the other
    {"w": entry(shape=[1], data_offsets=[0, 4]), "v": entry(shape=[4], data_offsets=[8, 24])},
    {"w": entry(dtype="F33")}, {"w": entry(dtype=["F32"])}, {"w": []}, {"w": {}},
    {"w": entry(), "__metadata__": {"a": 1}}, {"w": entry(), "__metadata__": 3},
    b'{"w":' + json.dumps(entry()).encode() + b',"w":' + json.dumps(entry()).encode() + b"}",
    b'{"w":{"dtype":"F32","shape":[' + b"9" * 100_000 + b'],"data_offsets":[0,24]}}',
    b'{"a":' + b"[" * 100_000, b"{", b"{" + b"\xff" * 20, b"{}",
], ids=lambda header: str(header)[:60])
def test_a_safetensors_header_that_does_not_fit_is_refused(tmp_path, header):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, header)
    with refused(path):
        checkpoint.load(path)


@pytest.mark.parametrize("length", [0, 5, 10 ** 6, 2 ** 63, 2 ** 64 - 1])
def test_a_safetensors_header_of_another_length_is_refused(tmp_path, length):
    path = tmp_path / "a.safetensors"
    write_safetensors(path, {"w": entry()}, length=length)
    with refused(path):
        checkpoint.load(path)


def test_booleans_of_safetensors_are_made_of_zeros_and_ones_only(tmp_path):
    path = tmp_path / "a.safetensors"
    header = {"w": entry(dtype="BOOL", shape=[4], data_offsets=[0, 4])}
    write_safetensors(path, header, bytes([0, 1, 2, 255]))
    assert checkpoint.load(path)["w"].view(torch.uint8).tolist() == [0, 1, 1, 1]


def test_a_device_that_this_pytorch_lacks_made_the_file_damaged(tmp_path):
    # As torch_npu pickles one; "npux" is a kind that no PyTorch has, so that it is text everywhere.
    path = tmp_path / "a.pth"
    write_zip(path, pickled({"device": Call(torch.device, "npux", 1)}))
    assert checkpoint.load(path) == {"device": "npux:1"}
