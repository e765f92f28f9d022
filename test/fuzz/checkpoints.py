"""Damaged and hostile checkpoints, through checkpoint.load and convert.read.

    python test/fuzz/checkpoints.py --count 500 --seed 0

A damaged file is refused by a sentence that names it, or gives exactly what was saved. Where a
format has no checksums (torch.save's older streams, safetensors, MindSpore) a changed value cannot
be told from a saved one: those are counted apart, and the names, shapes and types must then still
be those of the whole network for convert.read to take them. Nothing in a file is ever run.
"""
import argparse
import collections
import functools
import io
import itertools
import os
import random
import sys
import tempfile
import zipfile
from pathlib import Path

import common
import numpy as np
import torch
from checkpoint_files import WRITERS, Call, pickled, write_zip
from common import Case, check_sentence, judge_all

from mobilenetv3 import checkpoint, convert, models

CLASSES = ["cat", "dog"]
HOSTILE = "hostile pickles"
REWRITTEN = "pickles behind right checksums"


def _legacy(path, value):
    torch.save(value, str(path), _use_new_zipfile_serialization=False)


def _training_state(weights):
    """What train.py keeps for a run, in small."""
    state = convert.own.checkpoint_of(
        weights.state_dict, weights.config, weights.prepare, CLASSES, {})
    names = list(weights.state_dict)[:3]
    return dict(state, epoch=3, best_acc1=71.5, state_dict_ema=dict(weights.state_dict), optimizer={
        "state": {0: {"step": 7, "momentum_buffer": torch.ones(3, 4)}},
        "param_groups": [{"lr": 0.1, "params": names}]})


def _mmengine(weights, folder):
    convert.save(weights, folder / "mm.pth", to="mmpretrain")
    state = checkpoint.load(folder / "mm.pth")
    return dict(state, message_hub={"log_scalars": {"lr": [0.1, 0.2]}}, optimizer={"state": {}})


@functools.lru_cache(maxsize=1)
def originals():
    """name -> (bytes, what checkpoint.load gives, what convert.read gives, has checksums)."""
    torch.set_num_threads(1)  # the judge is a fork, in which torch's own threads are not there
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="mobilenetv3-fuzz-") as name:
        folder = Path(name)
        model = models.create_model("mobilenetv3_small_050", num_classes=len(CLASSES))
        state = {"model": model.config, "state_dict": model.state_dict(), "classes": CLASSES,
                 "arch": "mobilenetv3_small_050"}
        checkpoint.save(folder / "first.pth", state)
        weights = convert.read(folder / "first.pth")
        checkpoint.save(folder / "own training.pth.tar", _training_state(weights))
        convert.save(weights, folder / "own.safetensors")
        convert.save(weights, folder / "timm.pth", to="timm")
        convert.save(weights, folder / "timm.safetensors", to="timm")
        timms = checkpoint.load(folder / "timm.pth")
        _legacy(folder / "timm stream.pth", timms)
        torch.save({"module." + key: value.half() for key, value in timms.items()},
                   str(folder / "DDP half.pth"))
        torch.save(_mmengine(weights, folder), str(folder / "mmengine.pth"))
        (folder / "mm.pth").unlink()
        wide = models.create_model("mobilenetv2_035", num_classes=len(CLASSES))
        checkpoint.save(folder / "first.pth", dict(
            state, arch="mobilenetv2_035", model=wide.config, state_dict=wide.state_dict()))
        second = convert.read(folder / "first.pth")
        (folder / "first.pth").unlink()
        convert.save(second, folder / "torchvision.pth", to="torchvision")
        _legacy(folder / "torchvision stream.pth", checkpoint.load(folder / "torchvision.pth"))
        convert.save(second, folder / "mindcv.ckpt", to="mindcv")
        return {path.name: (path.read_bytes(), checkpoint.load(path), convert.read(path),
                            zipfile.is_zipfile(str(path))) for path in sorted(folder.iterdir())}


def hot_spans(content):
    """Where a file has its structure: half of the damage goes there, most bytes are values."""
    spans = [(0, 2048), (max(0, len(content) - 4096), len(content))]
    if content.startswith(b"PK"):
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            spans.append((archive.start_dir, len(content)))
            spans += [(member.header_offset, member.header_offset + member.file_size + 100)
                      for member in archive.infolist() if member.filename.endswith("data.pkl")]
    return spans


class _Marker:
    """What a hostile pickle does; the judge sees whether it was done."""

    make = [
        lambda do: do, lambda do: {"state_dict": {"w": do}}, lambda do: [1, [2, (3, do)]],
        lambda do: {"args": argparse.Namespace(lr=0.1, model=do)},
        lambda do: Call(collections.OrderedDict, state=do),
        lambda do: Call(torch._utils._rebuild_parameter, do, False, None),
        lambda do: collections.OrderedDict(a=torch.Size((1, 2)), b=do),
    ]
    calls = [(os.system, "touch ran"), (eval, "open('ran', 'w')"), (exec, "open('ran', 'w')"),
             (open, "ran", "w"), (os.mkdir, "ran"), (getattr, os, "system"), (__import__, "os"),
             (torch.load, "case.pth"), (print, "x"), (bytearray, 1 << 40), (range, 1 << 60)]


def _hostile(rng, folder):
    """A file whose pickle calls something, most often damaged besides."""
    function, *arguments = rng.choice(_Marker.calls)
    try:
        content = pickled(rng.choice(_Marker.make)(Call(function, *arguments)))
    except (TypeError, AttributeError):  # a module cannot be pickled
        content = pickled({"w": Call(os.system, "touch ran")})
    if rng.random() < 0.6:
        content = common.mutate(content, rng)
    path = Path(folder) / "hostile.pth"
    WRITERS[rng.choice(sorted(WRITERS))](path, content)
    return path.read_bytes()


def _rewritten(rng, folder, source):
    """A zip archive whose pickle was damaged before its checksum was made."""
    with zipfile.ZipFile(io.BytesIO(source)) as archive:
        members = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    path = Path(folder) / "rewritten.pth"
    write_zip(path, common.mutate(members["data.pkl"], rng),
              {name[5:]: data for name, data in members.items() if name.startswith("data/")})
    return path.read_bytes()


def cases(count, seed):
    """Seven of ten are damaged files of the families in turn, the others hostile or rewritten."""
    rng, known = random.Random(seed), originals()
    spans = {name: hot_spans(parts[0]) for name, parts in known.items()}
    turns = itertools.cycle(sorted(known))
    with tempfile.TemporaryDirectory(prefix="mobilenetv3-fuzz-") as folder:
        for number in range(count):
            if number % 10 in (3, 7):
                yield Case(HOSTILE, (_hostile(rng, folder), "", HOSTILE))
            elif number % 10 == 5:
                zips = [key for key in sorted(known) if known[key][3]]
                source = rng.choice(zips)
                content = _rewritten(rng, folder, known[source][0])
                yield Case(REWRITTEN, (content, source, REWRITTEN))
            else:
                name = next(turns)
                other = known[rng.choice(sorted(known))][0] if rng.random() < 0.3 else b""
                content = common.mutate(known[name][0], rng, spans[name], other)
                yield Case(name, (content, name, "damaged"))


def judge(payload, folder):
    """Let both readers have the file."""
    content, source, kind = payload
    path = Path(folder) / "case.pth"
    path.write_bytes(content)
    loaded = _tried(checkpoint.load, path)
    read = _tried(convert.read, path)
    assert not os.path.exists("ran"), "something in the file was run"
    if loaded is None:
        assert read is None, "convert.read takes what checkpoint.load refuses"
        return "refused"
    _use(loaded)
    if kind == HOSTILE:
        # Damage may turn the call into data, which is then all that there is.
        assert read is None, "no network was saved"
        return "read as plain data"
    _, value, weights, has_checksums = originals()[source]
    if same(loaded, value):
        assert read is not None and same(read._asdict(), weights._replace(path=str(path))._asdict())
        return "equal"
    if kind == REWRITTEN:
        return "another valid file"
    assert not has_checksums, "accepted, and other than what was saved"
    if read is None:
        return "no checksum, not a network"
    assert _form(read.state_dict) == _form(weights.state_dict), "another network"
    return "no checksum, other values"


def _tried(reader, path):
    """What a reader gives; None where it refuses in a sentence."""
    try:
        return reader(path)
    except ValueError as error:
        assert not common.is_out_of_memory(error), "memory was taken for what is not there"
        assert str(error).startswith(str(path)), str(error)
        check_sentence(str(error))
        return None


def _form(tensors):
    return {name: (tuple(value.shape), value.dtype) for name, value in tensors.items()}


def _use(value):
    """Touch every value, so that a tensor beyond its memory would end the process."""
    if torch.is_tensor(value):
        value.clone()
    elif isinstance(value, argparse.Namespace):
        _use(vars(value))
    elif isinstance(value, dict):
        for item in value.values():
            _use(item)
    elif isinstance(value, (list, tuple, set)):
        for item in value:
            _use(item)


def same(one, other):
    """Whether two things that were read are equal in every bit."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        return (one.dtype == other.dtype and one.shape == other.shape
                and np.array_equal(_bits(one), _bits(other)))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def _bits(tensor):
    return np.frombuffer(tensor.detach().contiguous().numpy().tobytes(), "u1")


def run(count=500, seed=0, keep=None):
    """Judge so many files; returns common.Totals."""
    originals()  # before the fork
    return judge_all("checkpoints", cases(count, seed), judge, keep)


def main(argv=None):
    return common.command(run, __doc__.splitlines()[0], 500, argv)


if __name__ == "__main__":
    sys.exit(main())
