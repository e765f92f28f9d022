"""What a person sees when the run's folder is another run's, damaged, or on a disk that is full.

In this process, which saves the imports; `train` puts back what a run changes.
"""
import errno
import functools
import multiprocessing
import os
import signal
import time

import pytest
from conftest import QUICK, ROOT

from mobilenetv3 import checkpoint, config, entry, keep, options, runfolder

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def train(monkeypatch, cache, capfd):
    """train(options...) -> (exit status, standard output, standard error)."""
    monkeypatch.setenv("MOBILENETV3_CACHE", str(cache))
    monkeypatch.syspath_prepend(str(ROOT))
    import train

    handlers = {number: signal.getsignal(number)
                for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}

    def run(*arguments):
        cfg = config.parse(options.train_parser(), [str(a) for a in (
            *QUICK, "--model", "mobilenetv3_small_050", "--epochs", 3, "--max_steps", 6,
            "--skip_validation", *arguments)])
        status = entry.run(train.main, cfg, "train.py")
        return (status, *capfd.readouterr())

    yield run
    for number, handler in handlers.items():
        signal.signal(number, handler)


def fails(monkeypatch, code, first, times):
    """fsync() of temporary files of checkpoints fails from the `first` call on, that often."""
    sync, count = os.fsync, [0]

    def failing(handle):
        if "epoch_" in os.readlink(f"/proc/self/fd/{handle}"):
            count[0] += 1
            if first <= count[0] < first + times:
                raise OSError(code, os.strerror(code))
        return sync(handle)

    monkeypatch.setattr(os, "fsync", failing)


def test_training_goes_on_without_a_checkpoint_that_the_disk_did_not_take(
        train, tmp_path, monkeypatch):
    fails(monkeypatch, errno.ENOSPC, first=2, times=1)
    status, out, err = train("--output", tmp_path / "run", "--checkpoint_every", 2)
    assert status == 0, err
    told = [line for line in out.splitlines() if "was not saved" in line]
    assert len(told) == 1 and "epoch 0, step 4" in told[0] and "No space left" in told[0]
    assert [position for position, _ in keep.listed(tmp_path / "run")] == [(0, 6), (0, 2)]


def test_a_run_whose_last_checkpoint_was_not_saved_does_not_end_well(train, tmp_path, monkeypatch):
    fails(monkeypatch, errno.EROFS, first=3, times=99)
    status, out, err = train("--output", tmp_path / "run", "--checkpoint_every", 2)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: the latest checkpoint was not saved: ")
    assert "Read-only file system" in last and str(tmp_path) in last
    assert keep.newest(tmp_path / "run")[1]["step"] == 4


def test_a_run_stops_after_three_checkpoints_that_were_not_saved(train, tmp_path, monkeypatch):
    fails(monkeypatch, errno.EIO, first=2, times=99)
    status, out, err = train("--output", tmp_path / "run", "--checkpoint_every", 1)
    assert status == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("train.py: error: stopped: 3 checkpoints in a row could not be saved: ")
    assert "--resume auto" in last and "Traceback" not in err
    assert "Epoch: [0][3/" in out and "Epoch: [0][5/" not in out
    monkeypatch.undo()
    assert keep.newest(tmp_path / "run")[1]["step"] == 1


def hold(folder, told):
    held = runfolder.lock(folder)
    told.send(held.note)
    time.sleep(60)


def test_a_second_run_in_one_folder_is_refused(train, tmp_path, monkeypatch):
    monkeypatch.setattr(runfolder, "lock", functools.partial(runfolder.lock, patience_s=0.2))
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    try:
        assert ours.poll(20)
        status, out, err = train("--output", tmp_path, "--resume", "auto")
        last = err.strip().splitlines()[-1]
        assert status == 1 and out == ""
        assert last.startswith(f"train.py: error: another run is writing to {tmp_path} (process "
                               f"{process.pid} on ")
        assert os.listdir(str(tmp_path)) == [runfolder.LOCK]
    finally:
        process.kill()
        process.join()
    status, out, err = train("--output", tmp_path, "--resume", "auto")
    assert status == 0, err


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_resumed(train, tmp_path):
    folder = tmp_path / "run"
    status, _, err = train("--output", folder, "--checkpoint_every", 2)
    assert status == 0, err
    whole = checkpoint.load(folder / checkpoint.LAST)["state_dict"]
    newest = keep.listed(folder)[0][1]
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(bytes(content))
    status, out, err = train("--output", folder, "--checkpoint_every", 2, "--resume", "auto")
    assert status == 0, err
    assert f"=> skipped: {newest} is damaged" in out
    assert "epoch_0000_step_000004.pth.tar (epoch 0, step 4)" in out
    again = checkpoint.load(folder / checkpoint.LAST)["state_dict"]
    assert all(again[name].equal(whole[name]) for name in whole)
