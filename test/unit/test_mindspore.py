"""MindSpore's checkpoint format, against bytes that MindSpore 2.7.1 wrote."""
import base64
import binascii
import os

import pytest
import torch
from checkpoint_files import refused

from mobilenetv3 import checkpoint
from mobilenetv3.formats import mindspore

# mindspore.save_checkpoint of seven parameters with
# append_dict={"epoch": 3, "note": "hello \xe9", "lr": 0.5, "flag": True}.
WRITTEN = base64.b64decode(
    "Ci4KA2EudxInCAIIAxIHRmxvYXQzMhoYAAAAAAAAgD8AAABAAABAQAAAgEAAAKBAChYKAWgSEQgCEgdGbG9hdDE2Gg"
    "QAPgDAChEKAWISDAgCEgRCb29sGgIBAAoUCgFzEg8SB0Zsb2F0MzIaBAAAQEAKEgoBaRINEgVJbnQzMhoEBwAAAAoY"
    "CgJiZhISCAISCEJGbG9hdDE2GgTAPyBACigKAWwSIwgDEgVJbnQ2NBoYAAAAAAAAAAABAAAAAAAAAAIAAAAAAAAACh"
    "oKBWVwb2NoEhESBUludDY0GggDAAAAAAAAAAotCgRub3RlEiUIABIDc3RyGhxoAAAAZQAAAGwAAABsAAAAbwAAACAA"
    "AADpAAAAChUKAmxyEg8SB0Zsb2F0MzIaBAAAAD8KEQoEZmxhZxIJEgRCb29sGgEB"
)
VALUES = {
    "a.w": torch.arange(6.0).view(2, 3),
    "h": torch.tensor([1.5, -2], dtype=torch.float16),
    "b": torch.tensor([True, False]),
    "s": torch.tensor(3.0),
    "i": torch.tensor(7, dtype=torch.int32),
    "bf": torch.tensor([1.5, 2.5], dtype=torch.bfloat16),
    "l": torch.arange(3),
}
APPENDED = {
    "epoch": torch.tensor(3), "note": "hello \xe9", "lr": torch.tensor(0.5),
    "flag": torch.tensor(True),
}


def same(found, wanted):
    if isinstance(wanted, str):
        return found == wanted
    return (found.dtype, found.shape) == (wanted.dtype, wanted.shape) and torch.equal(found, wanted)


def check(found, wanted):
    assert list(found) == list(wanted)
    for name in wanted:
        assert same(found[name], wanted[name]), name


@pytest.mark.parametrize("name", ["a.ckpt", "a.pth"])
def test_what_mindspore_wrote_is_read_with_its_own_names(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(WRITTEN)
    check(checkpoint.load(path), {**VALUES, **APPENDED})


def test_the_bytes_that_are_written_are_mindspores_own(tmp_path):
    path = tmp_path / "a.ckpt"
    checkpoint.save_mindspore(path, VALUES)
    assert path.read_bytes() == WRITTEN[: WRITTEN.index(b"\x0a\x1a\x0a\x05epoch")]
    assert os.listdir(str(tmp_path)) == ["a.ckpt"]


def test_the_checksum_of_crc_check_is_checked(tmp_path):
    path = tmp_path / "a.ckpt"
    trailer = b"crc_num" + binascii.crc32(WRITTEN).to_bytes(10, "big")
    path.write_bytes(WRITTEN + trailer)
    check(checkpoint.load(path), {**VALUES, **APPENDED})
    changed = bytearray(WRITTEN)
    changed[40] ^= 1  # inside the values of a.w
    path.write_bytes(bytes(changed) + trailer)
    with refused(path, "CRC-32"):
        checkpoint.load(path)


@pytest.mark.parametrize("number, mode", [
    (0x7F3A5ED8, "AES-GCM"), (0x7F3A5ED9, "AES-CBC"), (0x7F3A5EDA, "SM4-CBC"),
])
def test_an_encrypted_file_is_named_as_such(tmp_path, number, mode):
    path = tmp_path / "a.ckpt"
    path.write_bytes(number.to_bytes(4, "little") + bytes(range(200)))
    with refused(path, f"encrypted with {mode}", "without enc_key"):
        checkpoint.load(path)


def test_a_large_tensor_is_cut_and_put_together(tmp_path, monkeypatch):
    monkeypatch.setattr(mindspore, "_SLICE", 100)
    path = tmp_path / "a.ckpt"
    tensors = {"a": torch.randn(7, 13), "b": torch.randn(4), "c": torch.randn(25)}
    checkpoint.save_mindspore(path, tensors)
    # 364 bytes in four parts, 16 in one, 100 in one.
    assert path.read_bytes().count(b"Float32") == 6
    check(checkpoint.load(path), tensors)


def test_every_type_makes_the_round_trip_bit_for_bit(tmp_path):
    path = tmp_path / "a.ckpt"
    tensors = {"empty": torch.zeros(0, 3), "turned": torch.randn(3, 5).t(), "nan": torch.tensor(
        [float("nan"), float("inf"), -0.0, 1e-45])}
    for name in mindspore._DTYPES.values():
        if hasattr(torch, name):  # unsigned ones came with 2.3
            tensors[name] = torch.tensor([0, 1, 100, 1]).to(getattr(torch, name))
    checkpoint.save_mindspore(path, tensors)
    found = checkpoint.load(path)
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert found[name].numpy().tobytes() == tensor.contiguous().numpy().tobytes() if (
            tensor.dtype != torch.bfloat16
        ) else torch.equal(found[name], tensor)


def test_what_mindspore_has_no_type_for_is_refused_by_name(tmp_path):
    for value, kind in ((torch.zeros(1, dtype=torch.complex64), "complex64"), (3, "int")):
        with pytest.raises(ValueError, match=f"a.ckpt cannot hold w: it is a .*{kind}"):
            checkpoint.save_mindspore(tmp_path / "a.ckpt", {"w": value})
    assert not os.listdir(str(tmp_path))


def test_older_scalars_and_packed_dims_are_read(tmp_path):
    path = tmp_path / "a.ckpt"
    scalar = value(dims=(0,), content=bytes(4), tag=b"scale_sense")
    packed = field(1, field(1, b"w") + field(
        2, field(1, b"\x02\x03") + field(2, b"Float32") + field(3, bytes(24))
    ))
    path.write_bytes(scalar + packed)
    check(checkpoint.load(path), {"scale_sense": torch.tensor(0.0), "w": torch.zeros(2, 3)})


def field(number, content):
    return mindspore._field(number, content)


def value(dims=(2, 3), kind=b"Float32", content=bytes(24), tag=b"w", extra=b""):
    inner = b"".join(b"\x08" + mindspore._to_varint(size) for size in dims)
    inner += b"" if kind is None else field(2, kind)
    inner += b"" if content is None else field(3, content)
    return field(1, field(1, tag) + field(2, inner) + extra)


@pytest.mark.parametrize("content", [
    value(dims=(2, 4)), value(dims=(2 ** 40, 2 ** 20)), value(dims=(2 ** 64 - 2,)),
    value(dims=(1,) * 100), value(kind=b"Float33"), value(kind=b"Int4"), value(kind=None),
    value(content=None), value(content=bytes(23)), value(kind=b"\xff\xfe"),
    value() + value(dims=(3, 2)), value() + value(),
    value() + value(tag=b"v") + value(),
    field(1, field(1, b"w")), field(1, field(2, b"\x08\x02")), field(1, b""),
    field(1, field(1, b"w") + field(3, field(1, b""))),
    value() + field(2, b"x"), value() + b"\x08\x01", value() + b"\x0d\x00\x00\x00\x00",
    value() + b"\x0a", value() + b"\x0a\xff\xff\xff\xff\x0f", value() + b"\x0a" + b"\xff" * 20,
    value() + b"crc_num" + (12345).to_bytes(10, "big"),
    value(kind=b"str", content=b"abc"), value(kind=b"str", content=b"\xff\xff\xff\xff"),
], ids=lambda content: repr(content[:24]))
def test_a_mindspore_file_that_does_not_fit_is_refused(tmp_path, content):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with refused(path):
        checkpoint.load(path)


def test_the_mindspore_value_of_these_tests_is_read_where_it_fits(tmp_path):
    path = tmp_path / "a.ckpt"
    path.write_bytes(value())
    assert torch.equal(checkpoint.load(path)["w"], torch.zeros(2, 3))
