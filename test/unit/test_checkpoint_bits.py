"""Damage of a checkpoint is found wherever it lies, or changes nothing that is read."""
import collections
import io
import zipfile

import pytest
import torch

from mobilenetv3 import checkpoint


def state():
    weights = collections.OrderedDict(
        a=torch.arange(5.0), b=torch.tensor([True, False]), c=torch.tensor(4))
    return {"epoch": 3, "step": 7, "state_dict": weights, "config": {"lr": 0.1, "name": "x"}}


def by_torch(file, value):
    torch.save(value, file)


@pytest.fixture(params=[checkpoint.write, by_torch], ids=["ours", "torch.save's"])
def content(request):
    file = io.BytesIO()
    request.param(file, state())
    return file.getvalue()


def is_same(a, b):
    if torch.is_tensor(a):
        return torch.is_tensor(b) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(is_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_a_flipped_bit_is_found_or_changes_nothing(content):
    """One bit of every byte; all bits of all bytes were tried once, with the same outcome."""
    assert is_same(checkpoint.loads(content), state())
    found = 0
    for index in range(len(content)):
        damaged = bytearray(content)
        damaged[index] ^= 1 << (index * 5 + 3) % 8
        try:
            read = checkpoint.loads(bytes(damaged))
        except ValueError:
            found += 1
        else:
            assert is_same(read, state()), f"byte {index}"
    # The rest is what zip keeps twice, times, and the padding before each tensor.
    assert found > len(content) / 4


def test_a_file_that_is_cut_anywhere_is_refused(content):
    for size in range(len(content)):
        with pytest.raises(ValueError, match="damaged"):
            checkpoint.loads(content[:size])


def test_every_member_of_our_files_has_its_checksum():
    """Also where torch.save was told to leave them out, which is no business of ours."""
    options = getattr(torch.serialization, "set_crc32_options", lambda compute: None)
    options(False)
    try:
        file = io.BytesIO()
        checkpoint.write(file, state())
    finally:
        options(True)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        assert all(member.CRC for member in archive.infolist())


def test_one_checksum_that_became_zero_is_not_taken_for_none(tmp_path):
    file = io.BytesIO()
    checkpoint.write(file, state())
    content = bytearray(file.getvalue())
    values = content.index(torch.arange(5.0).numpy().tobytes())
    content[values + 6] ^= 1
    with zipfile.ZipFile(file) as archive:
        crc = archive.getinfo("checkpoint/data/0").CRC.to_bytes(4, "little")
    assert content.count(crc) == 2  # beside the values, and in the list at the end
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.loads(bytes(content.replace(crc, bytes(4))))


def test_torch_reads_our_files(tmp_path):
    path = tmp_path / "a.pth"
    weight = torch.randn(3, 4, 2, 2).to(memory_format=torch.channels_last)
    value = {
        "kinds": [torch.tensor([1, 0]).to(kind) for kind in (
            torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32,
            torch.int16, torch.int8, torch.uint8, torch.bool, torch.complex64)],
        "weight": weight, "twin": weight.detach(), "part": weight[1:, ::2],
        "parameter": torch.nn.Parameter(torch.ones(2)), "empty": torch.empty(0, 3),
        "epoch": 2 ** 40, "names": ["\u00e9", None, 1.5, (True, b"\x00\xff")],
    }
    checkpoint.save(path, value)
    for found in (torch.load(str(path)), checkpoint.load(path)):
        assert list(found) == list(value)
        for mine, its in zip(value["kinds"], found["kinds"]):
            assert mine.dtype == its.dtype and torch.equal(mine, its)
        for name in ("weight", "twin", "part", "parameter", "empty"):
            assert torch.equal(found[name], value[name].detach()), name
        assert found["weight"].stride() == weight.stride()
        assert found["twin"].data_ptr() == found["weight"].data_ptr()
        assert (found["epoch"], found["names"]) == (value["epoch"], value["names"])


def test_the_same_state_makes_the_same_bytes():
    first, second = io.BytesIO(), io.BytesIO()
    checkpoint.write(first, state())
    checkpoint.write(second, state())
    assert first.getvalue() == second.getvalue()


def test_a_part_is_saved_without_the_rest_of_its_tensor():
    file = io.BytesIO()
    checkpoint.write(file, {"w": torch.zeros(1000, 1000)[:2, :3]})
    assert len(file.getvalue()) < 2000


def test_a_type_that_older_readers_do_not_know_is_an_error_that_names_it():
    kind = getattr(torch, "float8_e4m3fn", None)
    if kind is None:
        pytest.skip("this PyTorch has no such type")
    with pytest.raises(ValueError, match="float8_e4m3fn"):
        checkpoint.write(io.BytesIO(), {"w": torch.zeros(2).to(kind)})
