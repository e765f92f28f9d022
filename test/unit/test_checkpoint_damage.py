"""Archives that claim what they do not hold, and files that are cut or damaged."""
import random
import struct
import warnings
import zipfile

import pytest
import torch
from checkpoint_files import (
    FORMATS,
    pickled,
    read_or_refused,
    refused,
    state,
    tensor,
    write_zip,
)

from mobilenetv3 import checkpoint


def test_a_zip_bomb_is_refused(tmp_path):
    path = tmp_path / "a.pth"
    content = {"0": bytes(200_000_000)}
    value = pickled({"w": tensor(0, (6,), (1,), elements=50_000_000)})
    write_zip(path, value, content, compress_type=zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000
    with refused(path, "compressed"):
        checkpoint.load(path)


def test_members_that_claim_more_than_the_file_has_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, pickled({"w": tensor(0, (6,), (1,), elements=2 ** 29)}), {"0": bytes(24)})
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.index(b"archive/data/0", len(content) // 2))
    content[entry + 20 : entry + 28] = struct.pack("<II", 2 ** 31, 2 ** 31)  # both sizes
    path.write_bytes(bytes(content))
    with refused(path, "more bytes than the file has"):
        checkpoint.load(path)


@pytest.mark.parametrize("name", ["../data/0", "archive/../../x", "/etc/passwd/.."])
def test_members_outside_the_archive_are_refused(tmp_path, name):
    path = tmp_path / "a.pth"
    write_zip(path, pickled({}), {})
    with zipfile.ZipFile(str(path), "a") as archive:
        archive.writestr(name, b"x")
    with refused(path, "outside"):
        checkpoint.load(path)


def test_a_storage_is_looked_for_in_the_archive_only(tmp_path):
    (tmp_path / "secret").write_bytes(bytes(24))
    path = tmp_path / "a.pth"
    for key in ("../../secret", str(tmp_path / "secret"), "0"):
        value = tensor(0, (6,), (1,))
        value.reduced[1][0].fields = ("storage", torch.FloatStorage, key, "cpu", 6)
        write_zip(path, pickled(value))
        with refused(path):
            checkpoint.load(path)


def test_two_members_of_one_name_are_refused(tmp_path):
    path = tmp_path / "a.pth"
    write_zip(path, pickled({}))
    with warnings.catch_warnings(), zipfile.ZipFile(str(path), "a") as archive:
        warnings.simplefilter("ignore")
        archive.writestr("archive/data.pkl", pickled({"w": 1}))
    with refused(path, "archive"):
        checkpoint.load(path)


def test_other_archives_are_told_apart(tmp_path):
    path = tmp_path / "a.pth"
    with zipfile.ZipFile(str(path), "w") as archive:
        archive.writestr("photo.jpg", b"x")
    with refused(path, "is a zip archive that torch.save did not write"):
        checkpoint.load(path)
    program = torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2))
    program.save(str(path))
    with refused(path, "TorchScript", "state_dict()"):
        checkpoint.load(path)


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_cut_anywhere_is_refused(tmp_path, form):
    """But between two values of MindSpore's, where what is left is a whole file of fewer."""
    path = tmp_path / "a.pth"
    FORMATS[form](path)
    content = path.read_bytes()
    whole = list(state())
    chosen = random.Random(0)
    cuts = sorted({chosen.randrange(len(content)) for _ in range(40)} | {0, 1, len(content) - 1})
    for cut in cuts:
        path.write_bytes(content[:cut])
        if read_or_refused(path):
            assert form == "mindspore"
            assert list(checkpoint.load(path)) == whole[: len(checkpoint.load(path))]


def damage(content, chosen):
    """A copy with bits flipped, bytes overwritten, or a stretch left out, doubled or zeroed."""
    content = bytearray(content)
    for _ in range(chosen.choice([1, 1, 2, 5])):
        at = chosen.randrange(len(content))
        length = chosen.randrange(1, 16)
        kind = chosen.randrange(5)
        if kind == 0:
            content[at] ^= 1 << chosen.randrange(8)
        elif kind == 1:
            content[at] = chosen.choice([0, 1, 0x7F, 0x80, 0xFF])
        elif kind == 2:
            del content[at : at + length]
        elif kind == 3:
            content[at:at] = content[at : at + length]
        else:
            content[at : at + length] = bytes(len(content[at : at + length]))
    return bytes(content)


@pytest.mark.parametrize("form", FORMATS)
def test_a_damaged_file_is_refused_or_gives_tensors(tmp_path, form):
    path = tmp_path / "a.pth"
    FORMATS[form](path)
    content = path.read_bytes()
    chosen = random.Random(1)
    read = 0
    for _ in range(80):
        path.write_bytes(damage(content, chosen))
        read += read_or_refused(path)
    # An archive has checksums; elsewhere some damage falls on values, which nothing can tell.
    assert read < 60


def test_a_damaged_pickle_behind_right_checksums_is_refused_or_gives_tensors(tmp_path):
    source = tmp_path / "source.pth"
    FORMATS["zip"](source)
    with zipfile.ZipFile(str(source)) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    storages = {name[5:]: data for name, data in members.items() if name.startswith("data/")}
    path = tmp_path / "a.pth"
    write_zip(path, members["data.pkl"], storages)
    assert read_or_refused(path)
    chosen = random.Random(2)
    for _ in range(150):
        write_zip(path, damage(members["data.pkl"], chosen), storages)
        read_or_refused(path)
