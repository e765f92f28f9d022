"""What a run does when its disk takes no checkpoint: full, read-only, broken."""
import errno
import os
import subprocess

import pytest
import torch

from mobilenetv3 import keep


def big(epoch):
    return {"epoch": epoch, "step": 0, "w": torch.full((700, 250), float(epoch))}  # 0.7 MB


def names(folder):
    return [path.name for _, path in reversed(keep.listed(folder))]


def everything(folder):
    return sorted(os.path.relpath(os.path.join(place, name), str(folder))
                  for place, _, files in os.walk(str(folder)) for name in files)


def failing(monkeypatch, code, times=10 ** 9):
    """fsync fails that often, as a disk does when it is full or broken."""
    sync, left = os.fsync, [times]

    def fails(handle):
        if left[0]:
            left[0] -= 1
            raise OSError(code, os.strerror(code))
        return sync(handle)

    monkeypatch.setattr(os, "fsync", fails)


@pytest.mark.parametrize("code, remedy", [
    (errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EROFS, "writable"),
    (errno.EACCES, "the right to write"), (errno.EIO, "system's log"),
])
def test_a_failed_write_is_told_and_tried_again_at_the_next_checkpoint(
        tmp_path, monkeypatch, code, remedy):
    keeper = keep.Keeper(tmp_path)
    keeper.save(big(1), 1, 0)
    keeper.close()
    before, lines = everything(tmp_path), []
    keeper = keep.Keeper(tmp_path, start=(1, 0), log=lines.append)
    failing(monkeypatch, code, times=1)
    keeper.save(big(2), 2, 0, is_best=True)
    with pytest.raises(keep.NotSaved, match=os.strerror(code)):
        keeper.flush()
    assert everything(tmp_path) == before and keep.newest(tmp_path)[1]["epoch"] == 1
    assert len(lines) == 1
    for words in ("epoch 2, step 0", str(tmp_path), os.strerror(code), remedy, "training goes on"):
        assert words in lines[0]
    keeper.save(big(3), 3, 0)
    keeper.close()
    assert keep.newest(tmp_path)[1]["epoch"] == 3 and len(lines) == 1


def test_a_failed_write_is_not_raised_in_the_training_before_the_third_in_a_row(
        tmp_path, monkeypatch):
    failing(monkeypatch, errno.ENOSPC)
    lines = []
    keeper = keep.Keeper(tmp_path, log=lines.append)
    keeper.save(big(1), 1, 0)
    keeper.save(big(2), 2, 0)
    with pytest.raises(keep.NotSaved, match="3 checkpoints in a row .*No space left"):
        keeper.save(big(3), 3, 0)
    assert len(lines) == 3


def test_a_success_in_between_starts_the_count_anew(tmp_path, monkeypatch):
    keeper = keep.Keeper(tmp_path, log=lambda line: None)
    for epoch in range(1, 8):
        with monkeypatch.context() as patch:
            if epoch % 3:
                failing(patch, errno.EIO)
            keeper.save(big(epoch), epoch, 0)
            keeper._wait()
    with pytest.raises(keep.NotSaved, match="latest checkpoint"):
        keeper.close()  # the seventh: the end of the run is no success
    assert names(tmp_path) == ["epoch_0003_step_000000.pth.tar", "epoch_0006_step_000000.pth.tar"]


def test_an_error_that_is_not_the_disks_stops_at_the_next_save(tmp_path):
    keeper = keep.Keeper(tmp_path)
    keeper.save(dict(big(1), odd=lambda: None), 1, 0)
    with pytest.raises(Exception, match="pickle"):
        keeper.save(big(2), 2, 0)


@pytest.fixture
def small_disk(tmp_path):
    """mount(size) -> a folder of its own file system of that size, where the user may mount."""
    mounted = []

    def mount(size="2m"):
        folder = tmp_path / "disk"
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no file system can be mounted here: {error}")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_older_checkpoints_whole(small_disk):
    folder = small_disk("2m")
    lines = []
    keeper = keep.Keeper(folder, last=9, log=lines.append)
    for epoch in (1, 2, 3):
        keeper.save(big(epoch), epoch, 0)
    with pytest.raises(keep.NotSaved, match="No space left on device"):
        keeper.close()
    assert names(folder) == ["epoch_0001_step_000000.pth.tar", "epoch_0002_step_000000.pth.tar"]
    assert len(lines) == 1 and "free some space" in lines[0]
    assert torch.equal(keep.newest(folder)[1]["w"], big(2)["w"])
    assert not [name for name in everything(folder) if name.endswith(".tmp")]
    keep.listed(folder)[1][1].unlink()  # a person makes room
    keeper.save(big(4), 4, 0)
    keeper.close()
    assert keep.newest(folder)[1]["epoch"] == 4


def test_a_disk_that_becomes_read_only_is_told(small_disk):
    folder = small_disk("8m")
    lines = []
    keeper = keep.Keeper(folder, log=lines.append)
    keeper.save(big(1), 1, 0)
    keeper.flush()
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    keeper.save(big(2), 2, 0)
    with pytest.raises(keep.NotSaved, match="Read-only file system"):
        keeper.close()
    assert keep.newest(folder)[1]["epoch"] == 1 and len(lines) == 1
    subprocess.run(["mount", "-o", "remount,rw", str(folder)], check=True)
    keeper.save(big(3), 3, 0)
    keeper.close()
    assert keep.newest(folder)[1]["epoch"] == 3
