"""Training goes on where files are bad: replaced, counted over the ranks, listed, and not too many.

And it waits where none can be read for a while.
"""
import errno
import io
import json
import os
import threading
import types

import numpy as np
import pytest
from PIL import Image

from mobilenetv3 import data, device, entry, interrupt
from mobilenetv3.data import patience
from mobilenetv3.data.badfiles import BadFile, BadFiles, TooMany, default_limit, escaped
from mobilenetv3.data.imagefile import BadImage
from mobilenetv3.data.sources import Files, Source

CPU = device.select("cpu")
ODD = "a\nb\tc\\d \udcff.jpg"


def images(folder, count=12, bad=()):
    """Files of one colour each, those of `bad` cut short; as a source has them."""
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        content = io.BytesIO()
        Image.new("RGB", (40, 30), (number * 20, 0, 0)).save(content, "PNG")
        path.write_bytes(content.getvalue()[:50 if number in bad else None])
        samples.append((str(path), number))
    return Files(samples)


def loader(samples, workers=0, **changed):
    options = dict({"rank": 0, "world": 1, "batch_size": 4, "seed": 3, "replaces": True}, **changed)
    return data.train_loader(
        Source(samples, list(map(str, range(12))), "x"), CPU, workers=workers,
        transform=data.train_transform(32), mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD,
        patience=0.0, **options,
    )


def epoch(samples, number=0, first=0, **changed):
    """(labels, bad files) of an epoch."""
    train = loader(samples, **changed)
    train.bad_files = BadFiles(None, 12, log=lambda line: None)
    train.set_epoch(number, first)
    labels = [targets.tolist() for _, targets in train]
    return labels, list(train.bad_files.found)


# ------------------------------------------------------------------------------------ replacement


def test_another_image_takes_the_place_of_a_bad_one_whatever_the_workers_and_ranks(tmp_path):
    bad = (2, 5, 7)
    samples = images(tmp_path, bad=bad)
    labels, found = epoch(samples)
    drawn = [index for batch in data.TrainSampler(12, 4, 0, 1, 3) for _, index in batch]
    got = sum(labels, [])
    assert [index for index, label in zip(drawn, got) if index != label] == [
        index for index in drawn if index in bad]
    assert not set(got) & set(bad)
    assert sorted(found) == sorted(samples.path(index) for index in bad)
    assert epoch(samples, workers=2)[0] == labels
    halves = [epoch(samples, rank=rank, world=2)[0] for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == labels
    assert epoch(samples, first=1)[0] == labels[1:]  # resumed after the first batch
    assert epoch(samples, number=1)[0] != labels


def test_what_takes_its_place_is_varied_anew(tmp_path):
    samples = images(tmp_path, 2, bad=(0,))
    for index, pixels in enumerate(np.random.RandomState(0).randint(0, 255, (2, 90, 90, 3))):
        if index:
            Image.fromarray(pixels.astype(np.uint8)).save(samples.path(1))
    found = data.Transformed(samples, data.train_transform(32), 1, replaces=True, patience=0.0)
    stand_in, label, bad = found[0, 0]
    own, own_label = found[0, 1]
    assert label == own_label == 1
    assert not np.array_equal(stand_in, own)  # another crop: not the same image twice in the epoch
    assert np.array_equal(stand_in, found[0, 0][0])


def test_a_bad_image_of_validation_is_an_error(tmp_path):
    found = data.Transformed(images(tmp_path, bad=(1,)), data.val_transform(32), patience=0.0)
    with pytest.raises(OSError, match=r"cannot read .*1.png: damaged: .*mobilenetv3.data.check"):
        found[0, 1]


def test_a_set_of_nothing_but_bad_files_ends(tmp_path):
    samples = images(tmp_path, 4, bad=range(4))
    with pytest.raises(OSError, match="4 training images in a row cannot be used; the last is"):
        data.Transformed(samples, data.train_transform(32), 1, replaces=True, patience=0.0)[0, 0]


def test_a_loader_that_nobody_listens_to_does_not_pass_over_bad_files(tmp_path):
    with pytest.raises(OSError, match=r"cannot read .*5.png: damaged"):
        list(loader(images(tmp_path, bad=(5,))))


# ------------------------------------------------------------------------------- list and limit


def reported(number, name="f"):
    return [BadFile(f"{name}{n}", "damaged") for n in range(number)]


def test_the_run_stops_at_one_more_than_it_is_to_bear(tmp_path):
    lines = []
    found = BadFiles(2, 1000, tmp_path, log=lines.append)
    found.add(reported(2))
    found.add(reported(2))  # the same in a later epoch
    with pytest.raises(TooMany) as error:
        found.add([BadFile("last\x1b", "empty")])
    assert str(error.value) == (
        "3 of the 1,000 training images cannot be used, more than --max_bad_files 2; the last is "
        f"last\\x1b (empty); all are listed in {tmp_path / 'bad_files.txt'}")
    assert (tmp_path / "bad_files.txt").read_text() == (
        "f0\tdamaged\nf1\tdamaged\nlast\\x1b\tempty\n")
    assert len(lines) == 1 and lines[0].startswith("=> bad file: f0 (damaged); another image takes")


def test_the_limit_is_ten_or_a_thousandth_and_zero_stops_at_the_first():
    assert [default_limit(images) for images in (50, 10999, 1281167)] == [10, 10, 1281]
    assert BadFiles(None, 1281167).limit == 1281
    with pytest.raises(TooMany, match="1 of the 50 .* more than --max_bad_files 0"):
        BadFiles(0, 50, log=lambda line: None).add(reported(1))


def test_the_log_says_how_many_there_are_when_there_are_more():
    found = BadFiles(10, 50, log=lambda line: None)
    assert found.note() == ""
    found.add(reported(1))
    assert found.note() == ""  # told as it was found
    found.add(reported(3))
    assert found.note().startswith("=> 3 bad files so far (--max_bad_files 10)")
    assert found.note() == ""


def test_a_name_of_any_bytes_stays_in_its_line(tmp_path):
    BadFiles(9, 50, tmp_path, log=lambda line: None).add([BadFile(ODD, "two\nlines")])
    line = (tmp_path / "bad_files.txt").read_bytes()
    assert line == b"a\\nb\\tc\\\\d \xff.jpg\ttwo\\nlines\n"
    assert line.split(b"\t")[0].decode("unicode_escape").encode("latin-1") == os.fsencode(ODD)
    assert escaped("plain, with spaces.jpg") == "plain, with spaces.jpg"


def test_a_resumed_run_lists_no_file_twice_and_completes_a_line_cut_off_by_a_crash(tmp_path):
    (tmp_path / "bad_files.txt").write_bytes(b"f0\tdamaged\nf1\tdam")
    found = BadFiles(9, 50, tmp_path, log=lambda line: None)
    found.add(reported(3))
    assert (tmp_path / "bad_files.txt").read_text() == "f0\tdamaged\nf1\tdam\nf2\tdamaged\n"
    assert len(found.found) == 3


def test_what_each_rank_finds_arrives_in_one_list_and_all_ranks_stop_together(tmp_path):
    barrier, handed = threading.Barrier(2), [b"", b""]

    def gather(rank):
        def exchange(own):
            handed[rank] = own
            barrier.wait(10)
            parts = list(handed)
            barrier.wait(10)
            return parts
        return exchange

    ranks = [BadFiles(3, 50, tmp_path, rank == 0, lambda line: None, gather(rank))
             for rank in (0, 1)]
    errors = [None, None]

    def train(rank):
        try:
            # f0 was found by both; f0 and f1 are borne, and the others are too many.
            for number, name in ((1, "f"), (2, "f" if rank else "g")):
                ranks[rank].add(reported(number, name))
                assert ranks[rank].is_waiting or (rank, number) == (1, 0)
                ranks[rank].share()
        except TooMany as error:
            errors[rank] = str(error)

    threads = [threading.Thread(target=train, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert list(ranks[0].found) == list(ranks[1].found) == ["f0", "g0", "g1", "f1"]
    assert errors[0] == errors[1] and errors[0].startswith("4 of the 50 training images")
    assert len((tmp_path / "bad_files.txt").read_text().splitlines()) == 4
    assert json.loads(handed[1]) == [["f1", "damaged"]]  # f0 was known


# --------------------------------------------------------------------------------------- patience


class Clock:
    """Stands for time; `sleep` is told, and may bring the files back."""

    def __init__(self, monkeypatch):
        self.now, self.pauses, self.after = 0.0, [], {}
        # A clock of this module alone: other threads sleep, too, and would move it.
        monkeypatch.setattr(patience, "time", types.SimpleNamespace(
            monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds):
        self.now += seconds
        self.pauses.append(seconds)
        for when in list(self.after):
            if self.now >= when:
                self.after.pop(when)()


@pytest.fixture()
def clock(monkeypatch):
    return Clock(monkeypatch)


def transformed(samples, seconds=60.0, replaces=True):
    found = data.Transformed(samples, data.train_transform(32), 1, replaces=replaces,
                             patience=seconds)
    said = []
    found.patience.say = said.append
    return found, said


def test_a_folder_that_comes_back_costs_nothing_but_time(tmp_path, clock):
    folder = tmp_path / "set"
    folder.mkdir()
    found, said = transformed(images(folder))
    expected = found[0, 3][0]
    folder.rename(tmp_path / "away")
    clock.after[20] = lambda: (tmp_path / "away").rename(folder)
    array, label = found[0, 3]
    assert label == 3 and np.array_equal(array, expected)
    assert clock.pauses == [0.5, 1, 2, 4, 8, 8]
    assert len(said) == 2
    assert said[0].startswith(f"cannot read {folder / '3.png'} (No such file or directory ")
    assert "trying again for up to 60 seconds" in said[0]
    assert said[1] == "the data can be read again, after 24 seconds"


@pytest.mark.parametrize("replaces", [True, False], ids=["training", "validation"])
def test_a_folder_that_stays_away_is_an_error_that_says_how_long(tmp_path, clock, replaces):
    folder = tmp_path / "set"
    folder.mkdir()
    found, said = transformed(images(folder), replaces=replaces)
    folder.rename(tmp_path / "away")
    with pytest.raises(OSError, match=r"cannot read .*3.png .* nor others .* for 60 seconds; is "
                                      "the file system there"):
        found[0, 3]
    assert len(said) == 1
    assert max(clock.pauses) <= 8 and clock.now == pytest.approx(60, abs=0.1)


def test_an_empty_mount_point_is_a_folder_that_is_away(tmp_path, clock):
    found, _ = transformed(images(tmp_path), seconds=5.0)
    for path in tmp_path.iterdir():
        path.unlink()
    with pytest.raises(OSError, match="nor others"):
        found[0, 3]


def test_one_file_that_is_gone_is_a_bad_file(tmp_path, clock):
    samples = images(tmp_path)
    os.unlink(samples.path(3))
    found, said = transformed(samples)
    _, label, bad = found[0, 3]
    assert label != 3
    assert bad == [BadFile(samples.path(3), "cannot be read: No such file or directory [ENOENT]")]
    assert clock.pauses == [0.5, 1] and said == []
    strict, _ = transformed(samples, replaces=False)
    with pytest.raises(OSError, match=r"cannot read .*3.png: cannot be read: No such file"):
        strict[0, 3]


@pytest.mark.parametrize("code", [
    errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT, errno.EACCES, errno.ENOENT])
def test_errors_that_pass_are_waited_for(tmp_path, clock, code):
    samples, failures = images(tmp_path), []
    read = samples.encoded

    def fails_at_first(index):
        if clock.now < 3:
            failures.append(index)
            raise OSError(code, os.strerror(code))
        return read(index)

    samples.encoded = fails_at_first
    found, said = transformed(samples)
    assert found[0, 3][1] == 3
    assert failures and len(said) == 2


def test_damage_and_what_a_source_refuses_are_not_waited_for(clock):
    waits = patience.Patience(60.0)
    for error in (BadImage("damaged"), OSError("the shard ends before the image does")):
        def get(error=error):
            raise error
        with pytest.raises(BadImage, match=str(error)):
            waits.read(patience.Item(get, "x", []))
    assert clock.pauses == []


def test_no_patience_is_no_pause(tmp_path, clock):
    samples = images(tmp_path)
    os.unlink(samples.path(3))
    assert transformed(samples, 0.0)[0][0, 3][1] != 3
    assert clock.pauses == []


# ------------------------------------------------------------------------------------ in a run


def test_ranks_share_what_they_found_between_two_steps_and_go_on():
    found = BadFiles(1, 50, log=lambda line: None, gather=lambda own: [own])
    watch = interrupt.Watch(bad_files=found)
    assert not watch.wants_break(1)
    found.add(reported(1))
    assert not watch.wants_break(2)
    assert list(found.found) == ["f0"] and not found.is_waiting
    found.add(reported(2))
    with pytest.raises(TooMany, match="2 of the 50"):
        watch.wants_break(3)


@pytest.mark.parametrize("replaces", [True, False], ids=["training", "validation"])
def test_the_error_of_a_loader_process_is_one_sentence_that_names_the_file(tmp_path, replaces):
    samples = images(tmp_path, bad=range(12) if not replaces else ())
    if replaces:
        for path in tmp_path.iterdir():
            path.unlink()
    with pytest.raises(OSError) as error:
        list(loader(samples, workers=1, replaces=replaces))
    said = entry.sentence(error.value)
    assert said.startswith(f"cannot read {tmp_path}{os.sep}")
    assert ("nor others beside it" if replaces else "mobilenetv3.data.check") in said
