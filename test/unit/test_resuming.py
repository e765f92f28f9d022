"""The best weights of a run that goes on elsewhere, or whose best ones the disk did not take."""
import errno
import os

import pytest
import torch

from mobilenetv3 import checkpoint, dist, files, keep, logfmt, resuming


def state(epoch, best, step=0):
    """A checkpoint after so many epochs; `best` is (Acc@1, epoch) of the best so far."""
    return {"epoch": epoch, "step": step, "best_acc1": best[0], "best_epoch": best[1],
            "state_dict": {"w": torch.full((3,), float(epoch))}}


def save(folder, *states):
    """A run folder with these checkpoints; those of the best epoch are the best ones."""
    folder.mkdir(exist_ok=True)
    keeper = keep.Keeper(folder, last=9, log=lambda line: None)
    for one in states:
        keeper.save(one, one["epoch"], one["step"], one["best_epoch"] == one["epoch"] - 1)
        keeper._wait()
    return folder


def bring(file, folder):
    """What is told when the run of a checkpoint goes on in a new folder."""
    folder.mkdir()
    told = []
    resuming.bring_best(resuming.find(str(file), folder, dist.Ranks()), folder, told.append)
    return told


def told_at_the_end(folder, acc1, epoch):
    *lines, last = resuming.last_lines(folder, {"acc1": acc1, "epoch": epoch})
    return lines, logfmt.parse(last)


def test_a_best_that_the_disk_did_not_take_is_not_told_to_be_in_the_file(tmp_path, monkeypatch):
    """The last line named model_best.pth.tar with 80 %, and the file held the weights of 70 %."""
    sync, full = os.fsync, [False]

    def fails(handle):
        if full[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return sync(handle)

    monkeypatch.setattr(os, "fsync", fails)
    keeper = keep.Keeper(tmp_path, log=lambda line: None)
    for epoch, best, is_full in ((1, (70.0, 0), False), (2, (80.0, 1), True),
                                 (3, (80.0, 1), False)):
        full[0] = is_full
        keeper.save(state(epoch, best), epoch, 0, best[1] == epoch - 1)
        keeper._wait()
    keeper.close()  # the last one was saved: the run ends well
    best = tmp_path / checkpoint.BEST
    assert checkpoint.load(best)["epoch"] == 1
    (line,), last = told_at_the_end(tmp_path, 80.0, 1)
    assert last == logfmt.Best(70.0, 0, str(best))
    assert "best weights (Acc@1 80.000, epoch 1) are not in" in line and checkpoint.LAST in line
    assert logfmt.parse(line) is None


def test_the_best_so_far_comes_along_into_a_new_folder(tmp_path):
    """A run that went on elsewhere and did no better named a file that was not there."""
    old = save(tmp_path / "old", state(1, (70.0, 0)), state(2, (70.0, 0)), state(2, (70.0, 0), 5))
    for number, file in enumerate([old / checkpoint.LAST, keep.listed(old)[1][1]]):
        new = tmp_path / f"new{number}"
        assert bring(file, new) == []
        best = new / checkpoint.BEST
        assert best.samefile(old / checkpoint.BEST) and checkpoint.load(best)["epoch"] == 1
        assert told_at_the_end(new, 70.0, 0) == ([], logfmt.Best(70.0, 0, str(best)))


def test_a_checkpoint_that_is_the_best_itself_comes_along_from_anywhere(tmp_path):
    """A copy of model_best.pth.tar, with no run around it; or the best of an earlier moment."""
    file = tmp_path / "copy.pth.tar"
    checkpoint.save(file, state(2, (70.0, 1)))
    assert bring(file, tmp_path / "new") == []
    assert resuming.kept_best(tmp_path / "new") == {"acc1": 70.0, "epoch": 1}
    old = save(tmp_path / "old", state(1, (70.0, 0)), state(2, (80.0, 1)))
    assert bring(keep.listed(old)[1][1], tmp_path / "other") == []
    assert resuming.kept_best(tmp_path / "other") == {"acc1": 70.0, "epoch": 0}


def test_a_best_that_is_not_to_be_had_is_told_of_at_the_start_and_at_the_end(tmp_path):
    file = tmp_path / "copy.pth.tar"
    checkpoint.save(file, state(3, (70.0, 0)))
    other = save(tmp_path / "old", state(1, (70.0, 0)), state(2, (70.0, 0)), state(3, (80.0, 2)))
    for number, one in enumerate([file, keep.listed(other)[1][1]]):  # 80 % is of what came later
        new = tmp_path / f"new{number}"
        (line,) = bring(one, new)
        assert "best weights so far (Acc@1 70.000, epoch 0) are not in" in line
        assert not (new / checkpoint.BEST).exists()
        (line,), last = told_at_the_end(new, 70.0, 0)
        assert last == logfmt.Best(70.0, 0, f"not in {new}") and checkpoint.LAST in line


def test_what_a_folder_has_as_its_best_stays_and_a_disk_that_is_full_is_told(tmp_path, monkeypatch):
    old = save(tmp_path / "old", state(1, (70.0, 0)), state(2, (80.0, 1)), state(3, (80.0, 1)))
    told = []
    back = resuming.find(str(keep.listed(old)[2][1]), old, dist.Ranks())
    resuming.bring_best(back, old, told.append)  # gone back: the best is of another course
    assert resuming.kept_best(old) == {"acc1": 80.0, "epoch": 1} and told == []
    (old / checkpoint.BEST).unlink()
    (old / checkpoint.BEST).write_bytes(b"cut short")
    assert resuming.kept_best(old) is None and resuming.kept_best(tmp_path) is None

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files, "link_atomically", full)
    first, second = bring(keep.listed(old)[2][1], tmp_path / "new")
    assert "cannot be written: No space left" in first and "are not in" in second


def test_a_run_that_validated_nothing_names_its_newest_weights(tmp_path):
    (line,) = resuming.last_lines(tmp_path, None)
    assert logfmt.parse(line) == logfmt.Unscored(str(tmp_path / checkpoint.LAST))


@pytest.mark.parametrize("content, arch, expected", [
    ({"model": {"arch": "mobilenetv3_small_100", "bn_eps": 1e-3}}, "mobilenet_v3_small",
     {"arch": "mobilenetv3_small_100", "bn_eps": 1e-3}),
    ({"model": {"arch": "mobilenetv3_small_100", "bn_eps": 1e-3}}, "mobilenetv3_small_050", {}),
    ({"model": "mobilenetv3_small_100"}, "mobilenetv3_small_100", {}),
    ({"state_dict": {}}, "mobilenetv3_small_100", {}),
    ([1], "mobilenetv3_small_100", {}),
], ids=["the same", "another network", "no options", "weights only", "no checkpoint"])
def test_what_the_model_was_made_with_is_had_of_the_same_network_only(content, arch, expected):
    """Of others it is refused later, with a sentence: their values must not come in its way."""
    assert resuming.Found("FILE", content, []).model(arch) == expected
