"""The run folder: its lock, and records that no crash or full disk doubles or loses."""
import contextlib
import errno
import json
import multiprocessing
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from mobilenetv3 import checkpoint, keep, runfolder

# --------------------------------------------------------------------------------------- lock

FORK = multiprocessing.get_context("fork")


def hold(folder, told):
    """Take the lock, and fork two workers as a data loader does."""
    held = runfolder.lock(folder)
    workers = [FORK.Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    told.send([worker.pid for worker in workers])
    time.sleep(60)
    held.release()


@pytest.fixture
def holder(tmp_path):
    """A process with two workers that has the lock of tmp_path, and the workers' ids."""
    ours, theirs = FORK.Pipe()
    process = FORK.Process(target=hold, args=(tmp_path, theirs))
    process.start()
    assert ours.poll(20)
    workers = ours.recv()
    yield process, workers
    process.kill()
    process.join()
    for worker in workers:
        with contextlib.suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)


def test_a_second_run_is_refused_and_told_who_has_the_folder(tmp_path, holder):
    process, _ = holder
    before = (tmp_path / runfolder.LOCK).read_bytes()
    with pytest.raises(ValueError) as error:
        runfolder.lock(tmp_path, patience_s=0.2)
    told = str(error.value)
    assert f"process {process.pid} on " in told and " since 2" in told and "--output" in told
    assert "\n" not in told and str(tmp_path) in told
    assert (tmp_path / runfolder.LOCK).read_bytes() == before


def test_a_killed_run_has_no_lock_although_its_workers_live(tmp_path, holder):
    process, workers = holder
    process.kill()
    process.join()
    for worker in workers:
        os.kill(worker, 0)  # both are still there
    held = runfolder.lock(tmp_path, patience_s=0)
    assert held.note == ""
    assert f"process {os.getpid()} on" in (tmp_path / runfolder.LOCK).read_text()
    held.release()


def test_a_lock_that_is_given_back_can_be_taken(tmp_path):
    runfolder.lock(tmp_path).release()
    other = FORK.Process(target=runfolder.lock, args=(tmp_path, 0))
    other.start()
    other.join(20)
    assert other.exitcode == 0


def test_a_process_on_its_way_out_is_waited_for(tmp_path, holder):
    process, _ = holder
    with subprocess.Popen(["sh", "-c", f"sleep 0.3; kill -9 {process.pid}"]):
        runfolder.lock(tmp_path, patience_s=20).release()


def test_a_file_system_without_locks_is_a_note(tmp_path, monkeypatch):
    def refuses(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(runfolder.fcntl, "lockf", refuses)
    held = runfolder.lock(tmp_path)
    assert held.note.startswith("=> no lock on") and str(tmp_path) in held.note


def test_a_folder_that_holds_nothing_but_a_lock_is_empty(tmp_path):
    runfolder.lock(tmp_path).release()
    runfolder.claim(tmp_path, resume=False)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not empty"):
        runfolder.claim(tmp_path, resume=False)


# ------------------------------------------------------------------------------------ choosing


def run_in(folder):
    """A run folder with a checkpoint under its three names."""
    (folder / keep.FOLDER).mkdir(parents=True)
    files = [folder / checkpoint.LAST, folder / checkpoint.BEST,
             folder / keep.FOLDER / keep.file_name(keep.Position(3, 0))]
    for file in (*files, folder / runfolder.CONFIG):
        file.write_text("x")
    return files


def test_a_checkpoint_in_the_folder_of_checkpoints_is_gone_on_with_in_its_run(
        tmp_path, monkeypatch):
    """Only one named checkpoint.pth.tar was; the others began a new folder under output/."""
    for file in run_in(tmp_path / "run"):
        assert runfolder.choose("", str(file), "model") == tmp_path / "run"
    monkeypatch.chdir(tmp_path / "run" / keep.FOLDER)
    assert runfolder.choose("", file.name, "model") == tmp_path / "run"
    assert runfolder.choose("x", str(file), "model") == Path("x")
    for loose in (tmp_path / "a.pth.tar", tmp_path / "run" / "old" / "a.pth.tar"):
        assert runfolder.choose("", str(loose), "model").parent == Path("output")


def test_a_checkpoint_of_another_run_does_not_take_a_run_s_folder(tmp_path):
    """It did: checkpoints were set aside and rotated away, the best overwritten, metrics mixed."""
    theirs, own = run_in(tmp_path / "other"), run_in(tmp_path / "run")
    loose = tmp_path / "a.pth.tar"
    loose.write_text("x")
    for file in (*theirs, loose):
        with pytest.raises(ValueError, match="run holds a run that --resume .* is not of"):
            runfolder.check_source(tmp_path / "run", str(file))
    with pytest.raises(ValueError, match="is not of"):  # an older version's has one file
        for name in (keep.FOLDER, runfolder.CONFIG, checkpoint.BEST):
            (tmp_path / "run" / name).rename(tmp_path / name)
        runfolder.check_source(tmp_path / "run", str(loose))
    assert own[0].exists()


def test_the_folder_of_the_checkpoint_a_new_one_and_auto_are_gone_on_in(tmp_path, monkeypatch):
    (tmp_path / "link.pth.tar").symlink_to(run_in(tmp_path / "run")[0])
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "lr_find.json").write_text("x")
    runfolder.lock(tmp_path / "other").release()
    for file in (*run_in(tmp_path / "a" / "run"), tmp_path / "link.pth.tar"):
        for folder in (tmp_path / "other", tmp_path / "new"):
            runfolder.check_source(folder, str(file))
    runfolder.check_source(tmp_path / "run", str(tmp_path / "link.pth.tar"))
    runfolder.check_source(tmp_path / "run", "auto")
    monkeypatch.chdir(tmp_path / "run")
    runfolder.check_source(Path("."), checkpoint.LAST)


# ------------------------------------------------------------------------------------ records


def records(folder):
    return [json.loads(line) for line in (folder / runfolder.METRICS).read_text().splitlines()]


def test_epochs_that_are_made_again_are_recorded_once(tmp_path):
    run = runfolder.RunFolder(tmp_path)
    for epoch in range(3):
        run.metrics(epoch=epoch, loss=1.0)
    run.close()
    with open(str(tmp_path / runfolder.METRICS), "ab") as file:
        file.write(b'{"epoch": 3, "lo\xff')  # killed in the middle
    run = runfolder.RunFolder(tmp_path, keep_epochs=2)
    for epoch in (2, 3):
        run.metrics(epoch=epoch, loss=2.0)
    run.close()
    assert [(r["epoch"], r["loss"]) for r in records(tmp_path)] == [
        (0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0)]


def test_records_that_a_full_disk_refuses_are_written_later(tmp_path, monkeypatch, capsys):
    sync, is_full = os.fsync, [False]

    def fails(handle):
        if is_full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    run = runfolder.RunFolder(tmp_path)
    run.metrics(epoch=0)
    is_full[0] = True
    run.metrics(epoch=1)
    run.metrics(epoch=2)
    assert [r["epoch"] for r in records(tmp_path)] == [0]
    assert "metrics.jsonl cannot be written: No space left" in capsys.readouterr().out
    is_full[0] = False
    run.metrics(epoch=3)
    assert [r["epoch"] for r in records(tmp_path)] == [0, 1, 2, 3]
    is_full[0] = True
    run.metrics(epoch=4)
    with pytest.raises(OSError, match="No space left"):
        run.close()  # the run does not end well


def test_a_log_that_cannot_be_written_is_told_once_and_training_goes_on(tmp_path, capsys):
    if not os.path.exists("/dev/full"):
        pytest.skip("this system has no /dev/full")
    (tmp_path / runfolder.LOG).symlink_to("/dev/full")
    run = runfolder.RunFolder(tmp_path)
    run.log("first")
    run.log("second")
    out, err = capsys.readouterr()
    assert out == "first\nsecond\n"
    assert err.count("\n") == 1 and "train.log cannot be written" in err and "No space" in err
    run.close()


def test_tensorboard_shows_no_step_twice_after_a_crash(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for first, last, loss in ((0, 3, 1.0), (2, 5, 2.0)):
        run = runfolder.RunFolder(tmp_path, tensorboard=True, keep_epochs=first)
        for epoch in range(first, last):
            run.metrics(epoch=epoch, loss=loss)
        if first:
            run.close()  # the first one was killed
        time.sleep(1.1)  # event files have a second in their name
    shown = EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    assert [(event.step, event.value) for event in shown.Scalars("loss")] == [
        (0, 1.0), (1, 1.0), (2, 2.0), (3, 2.0), (4, 2.0)]


def test_a_line_that_was_cut_short_does_not_swallow_the_next_start(tmp_path):
    (tmp_path / "train.log").write_text("whole\nEpoch: [0][1/4]\tTime 0.1")
    (tmp_path / "environment.jsonl").write_text('{"epoch": 0')
    run = runfolder.RunFolder(tmp_path)
    run.log("=> run {}")
    run.start({"epoch": 1})
    run.close()
    lines = (tmp_path / "train.log").read_text().splitlines()
    assert lines == ["whole", "Epoch: [0][1/4]\tTime 0.1", "=> run {}"]
    assert (tmp_path / "environment.jsonl").read_text().splitlines()[1] == '{"epoch": 1}'
