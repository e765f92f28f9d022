"""Checkpoints of a run: written beside the training, kept by rule, found again."""
import errno
import os
import threading
from collections import OrderedDict

import pytest
import torch

from mobilenetv3 import checkpoint, files, keep


def state(epoch, step=0, value=None):
    value = epoch * 100 + step if value is None else value
    return {"epoch": epoch, "step": step, "state_dict": {"w": torch.full((300, 50), float(value))}}


def saved(folder, *positions, **options):
    """A run folder with these checkpoints."""
    keeper = keep.Keeper(folder, **options)
    for epoch, step in positions:
        keeper.save(state(epoch, step), epoch, step)
    keeper.close()
    return keeper


def names(folder):
    return [path.name for _, path in reversed(keep.listed(folder))]


def everything(folder):
    return sorted(os.path.relpath(os.path.join(place, name), str(folder))
                  for place, _, files_there in os.walk(str(folder)) for name in files_there)


def flip(path, share=0.5):
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 4
    path.write_bytes(bytes(content))


# ------------------------------------------------------------------------------------ keeping


def test_the_last_ones_and_every_nth_epoch_stay(tmp_path):
    saved(tmp_path, (0, 5), (1, 0), (1, 5), (2, 0), (2, 5), (3, 0), (3, 5), (4, 0), (4, 5),
          last=2, every=2)
    assert names(tmp_path) == [keep.file_name(keep.Position(*p)) for p in
                               ((2, 0), (4, 0), (4, 5))]


def test_one_file_has_the_three_names(tmp_path):
    keeper = keep.Keeper(tmp_path)
    keeper.save(state(1), 1, 0, is_best=True)
    keeper.save(state(2), 2, 0)
    keeper.close()
    assert everything(tmp_path) == [
        "checkpoint.pth.tar", "checkpoints/epoch_0001_step_000000.pth.tar",
        "checkpoints/epoch_0002_step_000000.pth.tar", "model_best.pth.tar",
    ]
    first, second = (path for _, path in reversed(keep.listed(tmp_path)))
    assert (tmp_path / checkpoint.BEST).samefile(first)
    assert (tmp_path / checkpoint.LAST).samefile(second)


def test_a_position_that_is_saved_again_replaces_the_file(tmp_path):
    keeper = keep.Keeper(tmp_path)
    keeper.save(state(1), 1, 0, is_best=True)
    keeper.save(state(1, value=7), 1, 0, is_best=True)
    keeper.close()
    assert len(everything(tmp_path)) == 3
    for path in (tmp_path / checkpoint.LAST, tmp_path / checkpoint.BEST):
        assert checkpoint.load(path)["state_dict"]["w"][0, 0] == 7


@pytest.mark.parametrize("cause", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_without_hard_links_the_other_names_are_copies(tmp_path, monkeypatch, cause):
    def refuses(*_):
        raise OSError(cause, os.strerror(cause))

    monkeypatch.setattr(os, "link", refuses)
    keeper = keep.Keeper(tmp_path)
    for epoch in (1, 2):
        keeper.save(state(epoch), epoch, 0, is_best=epoch == 1)
    keeper.close()
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 2
    assert checkpoint.load(tmp_path / checkpoint.BEST)["epoch"] == 1
    assert (tmp_path / checkpoint.LAST).stat().st_nlink == 1
    path, found = keep.newest(tmp_path)
    assert found["epoch"] == 2
    saved(tmp_path, (3, 0), start=(2, 0))
    assert keep.newest(tmp_path)[1]["epoch"] == 3
    assert not [name for name in everything(tmp_path) if name.endswith((".tmp", keep.ASIDE))]


def test_the_copy_is_taken_when_it_is_asked_for(tmp_path, monkeypatch):
    go = threading.Event()
    write = checkpoint.write
    monkeypatch.setattr(checkpoint, "write", lambda *a: (go.wait(20), write(*a)))
    weight = torch.zeros(3, 4, 2, 2).to(memory_format=torch.channels_last)
    content = {"epoch": 1, "w": weight, "twin": weight.detach(), "half": weight.bfloat16(),
               "inner": OrderedDict(b=[weight[1], (torch.tensor(3), "text", None)])}
    keeper = keep.Keeper(tmp_path)
    keeper.save(content, 1, 0)
    weight.fill_(9)
    content["inner"]["b"].clear()
    go.set()
    keeper.close()
    found = keep.newest(tmp_path)[1]
    assert torch.equal(found["w"], torch.zeros(3, 4, 2, 2))
    assert found["w"].is_contiguous(memory_format=torch.channels_last)
    assert found["twin"].data_ptr() == found["w"].data_ptr()  # as in the model
    assert found["half"].dtype is torch.bfloat16
    part, (number, text, nothing) = found["inner"]["b"]
    assert torch.equal(part, torch.zeros(4, 2, 2)) and number == 3
    assert (text, nothing) == ("text", None)


def test_a_save_waits_for_the_one_before_and_none_is_left_out(tmp_path, monkeypatch):
    under_way, most, written = [0], [0], []
    write = checkpoint.write

    def slow(file, content):
        under_way[0] += 1
        most[0] = max(most[0], under_way[0])
        threading.Event().wait(0.05)
        write(file, content)
        written.append(content["epoch"])
        under_way[0] -= 1

    monkeypatch.setattr(checkpoint, "write", slow)
    saved(tmp_path, *((epoch, 0) for epoch in range(1, 6)))
    assert written == [1, 2, 3, 4, 5] and most == [1]


# ------------------------------------------------------------------------------------ finding


def test_a_folder_without_checkpoints_has_no_newest(tmp_path):
    assert keep.newest(tmp_path) is None
    (tmp_path / keep.FOLDER).mkdir()
    assert keep.newest(tmp_path) is None
    assert keep.newest(tmp_path / "nowhere") is None


def test_the_newest_is_told_by_its_name_not_by_the_time_of_the_file(tmp_path):
    saved(tmp_path, (9, 0), (9, 99), (10, 0), (10, 5), last=9)
    for index, (_, path) in enumerate(keep.listed(tmp_path)):
        os.utime(str(path), (10 ** 9 + index, 10 ** 9 + index))
    (tmp_path / keep.FOLDER / ".epoch_0011_step_000000.pth.tar.0badcafe.tmp").write_bytes(b"half")
    (tmp_path / keep.FOLDER / "epoch_0011_step_000000.pth.tar.bak").write_bytes(b"mine")
    path, found = keep.newest(tmp_path)
    assert path.name == "epoch_0010_step_000005.pth.tar" and found["step"] == 5


@pytest.mark.parametrize("damage", [
    flip, lambda path: os.truncate(str(path), 1000), lambda path: os.truncate(str(path), 0),
    lambda path: os.truncate(str(path), path.stat().st_size - 1),
], ids=["bit flipped", "cut short", "empty", "last byte missing"])
def test_a_damaged_newest_one_is_named_and_the_one_before_it_taken(tmp_path, damage):
    saved(tmp_path, (1, 0), (2, 0))
    damage(keep.listed(tmp_path)[0][1])
    lines = []
    path, found = keep.newest(tmp_path, lines.append)
    assert path.name == "epoch_0001_step_000000.pth.tar"
    assert found["state_dict"]["w"][0, 0] == 100
    assert len(lines) == 1 and "epoch_0002_step_000000.pth.tar is" in lines[0], lines


def test_when_all_are_damaged_the_error_names_all(tmp_path):
    saved(tmp_path, (1, 0), (2, 0))
    for _, path in keep.listed(tmp_path):
        flip(path)
    with pytest.raises(ValueError, match="all are damaged.*epoch_0002.*epoch_0001"):
        keep.newest(tmp_path)


def test_a_folder_of_older_versions_has_its_one_checkpoint(tmp_path):
    checkpoint.save(tmp_path / checkpoint.LAST, {"epoch": 4})  # had no step
    assert keep.newest(tmp_path)[0] == tmp_path / checkpoint.LAST
    saved(tmp_path, (5, 0), start=(4, 0))
    assert keep.newest(tmp_path)[1]["epoch"] == 5


def test_checkpoint_pth_tar_may_be_a_newer_one_that_was_copied_there(tmp_path):
    saved(tmp_path, (1, 0), (2, 0))
    (tmp_path / checkpoint.LAST).unlink()
    checkpoint.save(tmp_path / checkpoint.LAST, state(3))
    path, found = keep.newest(tmp_path)
    assert (path, found["epoch"]) == (tmp_path / checkpoint.LAST, 3)
    keep.Keeper(tmp_path, start=(3, 0))
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 3


def test_what_lies_beyond_the_start_is_not_taken_for_the_newest_later(tmp_path):
    saved(tmp_path, (1, 0), (2, 0), (3, 0), last=3)
    lines = []
    saved(tmp_path, (1, 50), start=(1, 0), log=lines.append)  # somebody went back to epoch 1
    assert names(tmp_path) == ["epoch_0001_step_000000.pth.tar", "epoch_0001_step_000050.pth.tar"]
    aside = sorted(name for name in everything(tmp_path) if name.endswith(keep.ASIDE))
    assert aside == [f"checkpoints/epoch_000{n}_step_000000.pth.tar.aside" for n in (2, 3)]
    assert len(lines) == 1 and "epoch_0003" in lines[0]
    assert keep.newest(tmp_path)[1]["step"] == checkpoint.load(tmp_path / checkpoint.LAST)["step"]


def test_going_back_twice_over_one_position_keeps_both_sets(tmp_path):
    """The second set took the names of the first, which was gone."""
    for value in (1, 2, 3):
        keeper = keep.Keeper(tmp_path, start=(1, 0))
        keeper.save(state(2, value=value), 2, 0)
        keeper.close()
    keep.Keeper(tmp_path, start=(1, 0))
    path = tmp_path / keep.FOLDER / (keep.file_name(keep.Position(2, 0)) + keep.ASIDE)
    aside = [path, path.with_name(path.name + ".2"), path.with_name(path.name + ".3")]
    assert [float(checkpoint.load(one)["state_dict"]["w"][0, 0]) for one in aside] == [1, 2, 3]
    assert keep.listed(tmp_path) == [] and keep.newest(tmp_path) is None


def test_the_best_of_another_course_is_told_of(tmp_path):
    keeper = keep.Keeper(tmp_path)
    for epoch in (1, 2):
        keeper.save(state(epoch), epoch, 0, is_best=True)
    keeper.close()
    lines = []
    keep.Keeper(tmp_path, start=(1, 0), log=lines.append)
    assert str(tmp_path / checkpoint.BEST) in lines[-1]
    assert checkpoint.load(tmp_path / checkpoint.BEST)["epoch"] == 2
    assert checkpoint.load(tmp_path / checkpoint.LAST)["epoch"] == 1


# ------------------------------------------------------------------------------------- crashes


def test_a_crash_at_any_moment_leaves_the_newest_or_the_one_before(tmp_path, monkeypatch):
    """Every call that changes the disk is made the last one, in turn."""
    class Killed(BaseException):
        pass

    calls = [(os, "open"), (os, "fsync"), (os, "replace"), (os, "link"), (os, "unlink")]
    real = {name: getattr(os, name) for _, name in calls}
    left = [0]

    def dies(name):
        def call(*args, **kwargs):
            if left[0] == 0:
                raise Killed(name)
            left[0] -= 1
            return real[name](*args, **kwargs)
        return call

    moments, folder = 0, None
    while True:
        folder = tmp_path / str(moments)
        folder.mkdir()
        saved(folder, (1, 0), (2, 0))
        keeper = keep.Keeper(folder, start=(2, 0))
        for module, name in calls:
            monkeypatch.setattr(module, name, dies(name))
        left[0] = moments
        keeper._write(state(3), keep.Position(3, 0), True)  # what the thread runs
        monkeypatch.undo()
        dead = isinstance(keeper._error, Killed)
        path, found = keep.newest(folder)
        assert found["epoch"] in (2, 3) and path.parent.name == keep.FOLDER
        if found["epoch"] == 3:  # whoever goes on behind the best one must have it
            assert checkpoint.load(folder / checkpoint.BEST)["epoch"] == 3
        keep.Keeper(folder, start=(found["epoch"], 0))
        assert checkpoint.load(folder / checkpoint.LAST)["epoch"] == found["epoch"]
        assert not [name for name in everything(folder) if name.endswith(".tmp")]
        if not dead:
            break
        moments += 1
    assert found["epoch"] == 3 and moments >= 8  # temporary, sync, best, name, last, folders


def test_leftovers_are_removed_by_our_names_only(tmp_path):
    saved(tmp_path, (1, 0))
    leftovers = [".checkpoint.pth.tar.0123abcd.tmp", ".metrics.jsonl.ffffffff.tmp",
                 "checkpoints/.epoch_0002_step_000000.pth.tar.89abcdef.tmp"]
    mine = [".notes.tmp", "a.tmp", ".hidden", "checkpoints/.epoch.txt", ".x.0123abcd.tmp.txt"]
    before = everything(tmp_path)
    for name in leftovers + mine:
        (tmp_path / name).write_bytes(b"x")
    keep.Keeper(tmp_path, start=(1, 0))
    assert everything(tmp_path) == sorted(before + mine)


def test_a_temporary_file_never_changes_the_umask(tmp_path, monkeypatch):
    """The umask is the whole process's: a thread that sets it opens the training's files."""
    monkeypatch.setattr(os, "umask", lambda mask: pytest.fail("the umask was set"))
    files.write_atomically(tmp_path / "a", lambda file: file.write(b"x"))
    assert (tmp_path / "a").read_bytes() == b"x"
