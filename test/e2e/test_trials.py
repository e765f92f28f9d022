"""train.py --dry_run and --lr_find: what they tell, and that nothing else of them stays."""
import errno
import json
import os
import re
import runpy
import shutil
import time
from collections import namedtuple

import pytest
import torch
from conftest import ROOT, SMALL

from mobilenetv3 import (
    checkpoint,
    config,
    device,
    dryrun,
    entry,
    files,
    keep,
    lrfind,
    options,
    runfolder,
)

HAS_HALF_ON_CPU = device.TORCH_VERSION >= (2, 1)


@pytest.fixture
def train(monkeypatch, cache):
    """train(arguments...): the script's main(), on the CPU, in this process."""
    monkeypatch.setenv("MOBILENETV3_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(ROOT))
    main = runpy.run_path(str(ROOT / "train.py"))["main"]
    return lambda *words: main(config.parse(options.train_parser(), [*map(str, SMALL),
                                                                     *map(str, words)]))


@pytest.fixture(scope="module")
def run(script, tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = script("train.py", *SMALL, "--epochs", 2, "--output", folder)
    assert result.status == 0, result.err
    return folder


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
            for path in sorted(folder.rglob("*"))}


# ----------------------------------------------------------------------------------- dry run


def test_a_dry_run_tells_what_a_run_takes_and_leaves_nothing(train, tmp_path, capsys):
    before = time.time()
    train("--epochs", 3, "--model_ema", "--dry_run", "--output", tmp_path / "new" / "run")
    assert os.listdir(str(tmp_path)) == []
    out = capsys.readouterr().out
    assert len(re.findall(r"^Epoch: \[0\]\[[01]/5\]", out, re.M)) == 2
    assert " * Acc@1" not in out  # of one batch: no result
    # As docs/models.md counts them, for 10 classes; one multiply-add is 32x32's.
    assert "=> network: 0.58 M parameters, 0.9 M multiply-adds at 32x32" in out
    assert re.search(r"^=> host memory: \d+\.\d (MiB|GiB) at most$", out, re.M)
    step = float(re.search(r"=> one step: ([\d.]+) s, of it [\d.]+ s waiting", out).group(1))
    second = float(re.findall(r"\tTime ([\d.]+) ", out)[1])
    assert step == pytest.approx(second, abs=0.002)  # the second step, not the mean
    found = re.search(r"=> estimate: 15 steps in 3 epochs take (\S+) s; begun now, the run ends on "
                      r"([\d-]+ [\d:]+)\. It is a rough one", out)
    assert 15 * step <= float(found.group(1)) + 0.1 < 15 * step + 60
    end = time.mktime(time.strptime(found.group(2), "%Y-%m-%d %H:%M"))
    assert before - 60 <= end <= time.time() + float(found.group(1))
    # The newest two, the best, and one that is being written.
    size, unit, kept = re.search(
        r"=> checkpoint: ([\d.]+) (MiB), .* up to 4 at a time are ([\d.]+) MiB", out).groups()
    assert float(kept) == pytest.approx(4 * float(size), abs=0.3)
    assert out.endswith("=> dry run: all is well; nothing of it stays\n")


def test_a_dry_run_of_a_run_that_goes_on_leaves_every_bit(train, run, tmp_path, capsys):
    before = content(run)
    train("--epochs", 4, "--dry_run", "--output", run, "--resume", "auto")
    out = capsys.readouterr().out
    assert "=> resumed from" in out and "=> estimate: 10 steps in 2 epochs" in out
    assert "Epoch: [2][0/5]" in out
    assert content(run) == before
    with pytest.raises(ValueError, match="nothing is left to train: epoch 2, step 0 is the end"):
        train("--epochs", 2, "--dry_run", "--output", run, "--resume", "auto")
    with pytest.raises(ValueError, match="is not empty and nothing in it will be overwritten"):
        train("--epochs", 4, "--dry_run", "--output", run)
    assert content(run) == before


def test_two_ranks_rehearse_together(launched, run):
    before = content(run)
    result = launched(2, "train.py", *SMALL, "--workers", 1, "--epochs", 4, "--dry_run",
                      "--grad_accum_steps", 2, "--output", run, "--resume", "auto")
    assert result.status == 0, result.err
    assert result.out.count("dry run: all is well") == 1
    assert "at most, the largest of 2 ranks; 4 loader processes" in result.out
    assert content(run) == before


def test_what_cannot_be_built_fails_with_nothing_left(train, tmp_path):
    for words, message in (
            (["--batch_size", 5000], "--batch_size 5000 is larger than the training set of 1437"),
            (["--num_classes", 5], "--num_classes 5 is less than the 10 classes"),
            (["--ckpt_path", tmp_path / "none.pth"], "no checkpoint at .*none.pth")):
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            train(*words, "--dry_run", "--output", tmp_path / "run")
    assert os.listdir(str(tmp_path)) == []


def test_a_disk_that_is_too_small_is_told_before_the_run(train, run, tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(9 << 20, 1 << 20, 8 << 20))
    # Of 2.3 MiB each 2 + 2 fit into 8 MiB and those that are there, but not 2 + 2 + 20.
    words = ["--epochs", 20, "--dry_run", "--output", run, "--resume", "auto"]
    train(*words)
    with pytest.raises(ValueError, match=r"need [\d.]+ MiB, 24 of [\d.]+ MiB, and .* are free"):
        train(*words, "--keep_every", 1)


def test_a_checkpoint_that_cannot_be_written_fails_and_leaves_nothing(
        train, tmp_path, monkeypatch):
    def full(path, write):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    monkeypatch.setattr(files, "write_temporary", full)
    with pytest.raises((keep.NotSaved, OSError), match="No space left on device"):
        train("--dry_run", "--output", tmp_path / "run")
    assert os.listdir(str(tmp_path)) == []


def test_a_checkpoint_that_reads_otherwise_fails(train, tmp_path, monkeypatch):
    load = checkpoint.load

    def changed(path):
        state = load(path)
        state["state_dict"]["bn1.bias"] = state["state_dict"]["bn1.bias"] + 1.0
        return state
    monkeypatch.setattr(checkpoint, "load", changed)
    with pytest.raises(ValueError, match="bn1.bias was read otherwise than it was written"):
        train("--dry_run", "--output", tmp_path / "run")
    assert os.listdir(str(tmp_path)) == []


def test_a_signal_ends_a_dry_run_with_nothing_left(train, tmp_path, monkeypatch):
    def stopped(*_):
        raise entry.Interrupted(15)
    monkeypatch.setattr(dryrun, "_validate", stopped)
    with pytest.raises(entry.Interrupted, match="SIGTERM; it was a dry run, and nothing of it"):
        train("--dry_run", "--output", tmp_path / "run")
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("seconds, text", [
    (0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (340.4, "5 min 40 s"),
    (3599.6, "60 min 0 s"), (3600, "1 h 0 min"), (100000, "27 h 47 min"), (371000, "4 d 7 h"),
])
def test_durations_are_told_as_people_say_them(seconds, text):
    assert dryrun.duration(seconds) == text


# --------------------------------------------------------------------------------- range test


def test_the_rate_grows_by_one_factor_and_groups_keep_theirs():
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": weights[:1]},
                                 {"params": weights[1:], "lr_scale": 0.1}], lr=9.0)
    grows = lrfind.Range(optimizer, 1e-4, 1.0, updates=5, updates_per_epoch=2)
    assert grows.epochs == 3
    rates = []
    for place in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 0)):
        grows.at(*place)
        rates.append(grows.lr)
        assert optimizer.param_groups[1]["lr"] == pytest.approx(0.1 * grows.lr)
    assert rates == pytest.approx([1e-4, 1e-3, 1e-2, 1e-1, 1.0])


def test_a_curve_is_read_where_it_falls_fastest():
    rates = [10 ** (-5 + place / 10) for place in range(60)]
    falls = [3.0 - 1.5 / (1 + 10 ** (-(place - 25) / 4)) for place in range(40)]
    curve = falls + [falls[-1] + 0.2 * (place + 1) for place in range(20)]
    found = lrfind.read_curve(rates, curve, diverged=True)
    assert abs(rates.index(found.suggestion) - 25) <= 1
    assert (found.lowest, found.diverged) == (rates[39], rates[59])
    for useless in ([3.0] * 60, [3.0 + place for place in range(60)], [3.0] * 5):
        assert lrfind.read_curve(rates[:len(useless)], useless, False).suggestion is None


def lines_of(text):
    return [float(loss) for loss in re.findall(r"\tLoss ([\d.]+) ", text)]


@pytest.mark.parametrize("level", ["O0", "O1", "O2"])
def test_a_range_test_trains_as_a_run_does_and_leaves_two_files(train, level, tmp_path, capsys):
    words = ["--grad_accum_steps", 2, "--model_ema", "--layer_decay", 0.9, "--batch_size", 64]
    if level != "O0":
        if not HAS_HALF_ON_CPU:
            pytest.skip("half precision on the CPU needs PyTorch 2.1")
        words += ["--apex", "--apex_opt_level", level]
    train(*words, "--lr_find", 24, "--lr_find_range", 1e-5, 3, "--output", tmp_path / "run")
    out = capsys.readouterr().out
    found = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert found["amp"].startswith(level)
    ratio = (3 / 1e-5) ** (1 / 23)
    assert found["rates"][0] == 1e-5
    assert [b / a for a, b in zip(found["rates"], found["rates"][1:])] == pytest.approx(
        [ratio] * (len(found["rates"]) - 1))
    assert len(found["rates"]) == len(found["losses"]) == len(found["smoothed"]) > 15
    assert f"suggested learning rate {found['suggestion']:.3g}" in out
    assert found["rates"][0] < found["suggestion"] < found["lowest"]
    picture = (tmp_path / "run" / "lr_find.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n" and len(picture) > 5000
    assert sorted(os.listdir(str(tmp_path / "run"))) == ["lr_find.json", "lr_find.png"]
    # A run may begin there, and its first update is of the same losses.
    train(*words, "--max_steps", 2, "--skip_validation", "--output", tmp_path / "run")
    first = lines_of(capsys.readouterr().out)
    assert sum(first) / 2 == pytest.approx(found["losses"][0], abs=1e-4)


def test_a_range_test_in_a_folder_with_a_run_adds_its_files_alone(train, run, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(str(run), str(folder))
    before = content(folder)
    for number in range(2):
        train("--lr_find", 20, "--output", folder)
        after = content(folder)
        names = [f"lr_find{'_2' * number}.{kind}" for kind in ("json", "png")]
        assert {name: after.pop(name) for name in names}.keys() == set(names)
        assert after == before
        before = content(folder)


def test_a_loss_that_is_no_number_ends_the_test_and_not_the_command(train, tmp_path, capsys):
    train("--lr_find", 20, "--lr_find_range", 1e-3, 1e30, "--output", tmp_path / "run")
    found = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert len(found["losses"]) < 20
    assert found["diverged"] == found["rates"][-1]
    assert "=> range test: ended at" in capsys.readouterr().out


def test_two_ranks_make_one_range_test(launched, tmp_path):
    result = launched(2, "train.py", *SMALL, "--workers", 1, "--lr_find", 20, "--output",
                      tmp_path / "run", "--batch_size", 64, timeout=120)
    assert result.status == 0, result.err
    found = json.loads((tmp_path / "run" / "lr_find.json").read_text())
    assert (found["ranks"], len(found["losses"]) <= 20) == (2, True)
    assert result.out.count("=> range test: suggested") <= 1
    assert sorted(os.listdir(str(tmp_path / "run"))) == ["lr_find.json", "lr_find.png"]
    assert "Traceback" not in result.err  # loader processes end in time


@pytest.mark.parametrize("words, message", [
    (["--dry_run", "--lr_find"], "--dry_run tries a training run; leave out --lr_find"),
    (["--lr_find", "--evaluate", "--pretrained"], "--lr_find tries a training run; leave out --ev"),
    (["--lr_find", "5"], "--lr_find: expected an integer of 20 or more, got '5'"),
    (["--lr_find", "--lr_find_range", "1", "0.1"], "1 0.1: expected the lower rate first"),
])
def test_what_cannot_be_tried_is_told(train, words, message, capsys):
    with pytest.raises(SystemExit):
        train(*words)
    assert message in capsys.readouterr().err


def test_results_of_a_range_test_are_no_run(tmp_path):
    (tmp_path / "lr_find_2.json").write_text("{}")
    runfolder.claim(tmp_path, resume=False)
    (tmp_path / "train.log").write_text("")
    with pytest.raises(ValueError, match="is not empty"):
        runfolder.claim(tmp_path, resume=False)
