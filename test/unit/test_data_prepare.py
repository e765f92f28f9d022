"""python -m mobilenetv3.data.prepare: what it writes, and how it goes on."""
import errno
import fcntl
import io
import json
import os
import select
import shutil
import time
import types

import numpy as np
import pytest
import shardsets
from PIL import Image, ImageFilter
from torchvision import transforms as tv

from mobilenetv3 import files
from mobilenetv3.data import imagefile, manifest, patience, prepare, shards, shrink, writer


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with src and the dst that was written without a break."""
    folder = tmp_path_factory.mktemp("prepared set")
    shardsets.prepared(folder)
    return folder


# ---- What becomes of an image


def ready(image, size=64, **options):
    data, is_copied = shrink.as_jpeg(shardsets.jpeg(image, **options), size, 90)
    return Image.open(io.BytesIO(data)), is_copied


@pytest.mark.parametrize("width, height", [(200, 150), (150, 200), (70, 66), (100, 2000)])
def test_the_shorter_side_gets_the_size_and_the_longer_what_torchvision_would_give_it(
        width, height):
    image, is_copied = ready(Image.new("RGB", (width, height)))
    assert image.size == tv.Resize(64)(Image.new("RGB", (width, height))).size
    assert (image.mode, image.format, is_copied) == ("RGB", "JPEG", False)


@pytest.mark.parametrize("across, along, size, result", [
    (4, 70000, 64, (4, 65500)),  # as large as it is
    (3, 200001, 2, (2, 65500)),
    (70, 80000, 64, (64, int(64 * (65500 * 70 // 64) / 70))),
])
@pytest.mark.parametrize("is_wide", [True, False])
def test_a_strip_that_is_too_long_for_a_jpeg_is_kept_without_its_ends(
        across, along, size, result, is_wide):
    """Training takes it; it was refused as damaged."""
    pixels = np.zeros((along, across, 3), np.uint8)
    pixels[along // 2:] = 255
    turned = pixels.transpose(1, 0, 2) if is_wide else pixels
    data = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(turned)).save(data, "PNG")
    written, is_copied = shrink.as_jpeg(data.getvalue(), size, 90)
    found = Image.open(io.BytesIO(written))
    assert (found.size, is_copied) == (result[::-1] if is_wide else result, False)
    line = np.asarray(found.convert("L")).mean(0 if is_wide else 1)
    middle = len(line) // 2
    assert line[: middle - 16].max() < 8 and line[middle + 16:].min() > 247  # it is the middle


def test_large_images_are_smoothed_before_pixels_are_left_out():
    image, _ = ready(shardsets.noise(512, 512), quality=100)
    # Each pixel of the result is a mean over 8x8 of noise with a deviation of 74: about 9 is left,
    # 74 where seven of eight were just left out.
    assert 4 < np.asarray(image.convert("L")).std() < 16


def test_small_baseline_jpegs_are_copied_byte_for_byte():
    data = shardsets.jpeg(shardsets.noise(80, 64), quality=35, comment=b"kept")
    assert shrink.as_jpeg(data, 64, 90) == (data, True)


@pytest.mark.parametrize("image, options", [
    (shardsets.noise(40, 30), {"progressive": True}),
    (shardsets.noise(40, 30).convert("L"), {}),
    (shardsets.noise(40, 30).convert("CMYK"), {}),
], ids=["progressive", "grey", "CMYK"])
def test_other_small_jpegs_become_baseline_ones_of_three_colours_and_are_not_enlarged(
        image, options):
    found, is_copied = ready(image, **options)
    assert (found.size, found.mode, is_copied) == ((40, 30), "RGB", False)
    assert "progressive" not in found.info


def test_the_orientation_is_not_applied_as_training_does_not_apply_it():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    found, _ = ready(shardsets.noise(200, 100).filter(ImageFilter.BLUR), exif=exif.tobytes())
    assert found.size == (128, 64)
    assert not found.getexif()  # so nobody turns what was cut and resized as it lies


# ---- The set


def test_training_images_are_mixed_once_and_validation_images_stay_in_order(whole):
    for split, is_mixed in (("train", True), ("val", False)):
        samples, classes, _ = shards.open_split(whole / "dst", split)
        labels = [samples.encoded(index)[1] for index in range(len(samples))]
        assert sorted(labels) == list(range(shardsets.PLENTY)) == list(range(len(classes)))
        assert (labels != sorted(labels)) == is_mixed
        assert len(samples.shard_sizes) > 3


def test_webdataset_reads_the_shards(whole):
    webdataset = pytest.importorskip("webdataset", reason="webdataset is not installed")
    samples, classes, _ = shards.open_split(whole / "dst", "train")
    urls = [str(whole / "dst" / shard.name) for shard in samples.split.shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [(item["jpg"], int(item["cls"])) for item in found] == [
        samples.encoded(index) for index in range(len(samples))]
    for item in found:
        name = classes[int(item["cls"])]
        assert json.loads(item["json"]) == {
            "path": f"train/{name}/photo.{int(name[1:])}.jpg"}


def test_the_result_does_not_depend_on_the_number_of_processes(whole, tmp_path):
    assert shardsets.run(whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016,
                         "--workers", 2) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


def test_the_manifest_has_counts_sizes_and_checksums(whole):
    content = json.loads((whole / "dst" / "manifest.json").read_text())
    train = content["splits"]["train"]
    assert train["images"] == train["copied"] == sum(train["per_class"]) == shardsets.PLENTY
    assert train["per_class"] == [1] * shardsets.PLENTY and train["left_out"] == []
    assert {shard["name"]: shard["bytes"] for shard in train["shards"]} == {
        path.name: path.stat().st_size for path in (whole / "dst").glob("train-*.tar")}
    assert sorted(os.listdir(str(whole / "dst"))) == sorted(
        ["manifest.json", "train.index.npy", "val.index.npy"]
        + [shard["name"] for split in content["splits"].values() for shard in split["shards"]])


def test_a_flat_validation_folder_takes_labels_from_a_file(tmp_path):
    shardsets.many(tmp_path / "src", 3)
    for number in range(3):
        shutil.move(str(tmp_path / "src" / "val" / f"c{number:03d}" / f"photo.{number}.jpg"),
                    str(tmp_path / "src" / "val" / f"{number}.jpg"))
        (tmp_path / "src" / "val" / f"c{number:03d}").rmdir()
    (tmp_path / "labels.txt").write_text("0.jpg c002\n1.jpg c000\n2.jpg c001\n")
    assert shardsets.run(tmp_path / "src", tmp_path / "dst", "--workers", 0,
                         "--val_labels", tmp_path / "labels.txt") == 0
    samples, _, _ = shards.open_split(tmp_path / "dst", "val")
    assert [samples.encoded(index)[1] for index in range(3)] == [2, 0, 1]


# ---- Killed, and started again


def killed_at(monkeypatch, moment, action):
    """Kill a child as it gives the given number of files their names; returns how it ended."""
    rename, count = files.rename, []

    def counted(*paths):
        if len(count) == moment:
            shardsets.die()
        count.append(paths)
        rename(*paths)

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", counted)
        return shardsets.in_child(action)


def test_a_command_killed_at_any_file_goes_on_and_ends_with_the_same_bytes(
        tmp_path, monkeypatch):
    whole = shardsets.prepared(tmp_path, images=6)
    wanted = shardsets.tree(whole)
    whole.rename(tmp_path / "whole")
    words = (tmp_path / "src", whole, "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    # Each finished shard makes two files (itself and its record); then the indices, the manifest,
    # and before them all the arguments.
    moments = 2 * sum(name.endswith(".tar") for name in wanted) + 2 + 1 + 1
    for moment in range(moments):
        assert killed_at(monkeypatch, moment, lambda: shardsets.run(*words)) == -9
        assert not (whole / "manifest.json").exists()
        assert shardsets.run(*words) == 0
        assert shardsets.tree(whole) == wanted, moment
        shutil.rmtree(str(whole))
    assert killed_at(monkeypatch, moments, lambda: shardsets.run(*words)) == 0


def test_a_command_killed_again_and_again_gets_further_each_time(whole, tmp_path, monkeypatch):
    words = (whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016, "--workers", 2)
    for shard in range(3):
        # After a shard's name and its record's (and, the first time, the arguments'), in a shard.
        moment = 3 if shard == 0 else 2
        assert killed_at(monkeypatch, moment, lambda: shardsets.run(*words)) == -9
        assert (tmp_path / "dst" / f"train-{shard:06d}.tar").is_file()
    assert shardsets.run(*words) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


def test_loader_processes_end_with_the_one_that_writes(tmp_path):
    for number in range(20):  # 200 kB each: more than a pipe holds, so the loader processes wait
        shardsets.save(tmp_path / "src" / "train" / "a" / f"{number}.jpg",
                       shardsets.noise(256, 256, number), quality=95)
        shardsets.save(tmp_path / "src" / "train" / "b" / f"{number}.jpg",
                       shardsets.noise(256, 256, number), quality=95)
    told, tell = os.pipe()

    def killed():
        writer.Progress.image = lambda self, ready: (time.sleep(0.3), shardsets.die())
        return shardsets.run(tmp_path / "src", tmp_path / "dst", "--splits", "train",
                             "--workers", 2)

    assert shardsets.in_child(killed) == -9
    os.close(tell)
    # The loader processes have the pipe open, too, for as long as they live.
    assert select.select([told], [], [], 30)[0] and os.read(told, 1) == b""
    os.close(told)


def test_other_arguments_are_refused_with_both_values(whole, tmp_path, monkeypatch, capsys):
    dst = tmp_path / "dst"
    base = (whole / "src", dst, "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    assert killed_at(monkeypatch, 3, lambda: shardsets.run(*base)) == -9
    for words, told in [
        ((whole / "src", dst, "--size", 48, "--shard_mb", 0.016), "--size 32, and now it is 48"),
        ((*base, "--quality", 80), "--quality 90, and now it is 80"),
        ((*base, "--splits", "train"), "--splits train val, and now it is train"),
    ]:
        before = shardsets.tree(dst)
        assert shardsets.run(*words) == 1
        assert f"{dst} was begun with {told}; give another DST" in capsys.readouterr().err
        assert shardsets.tree(dst) == before
    assert shardsets.run(*base) == 0
    assert shardsets.run(*base, "--quality", 80) == 1  # of a finished set, too
    assert "--quality 90, and now it is 80" in capsys.readouterr().err


def test_other_images_are_refused(tmp_path, capsys):
    dst = shardsets.prepared(tmp_path, images=6)
    shardsets.save(tmp_path / "src" / "train" / "c000" / "one more.jpg", shardsets.noise(8, 8))
    assert shardsets.run(tmp_path / "src", dst, "--size", 32, "--shard_mb", 0.016) == 1
    told = capsys.readouterr().err
    assert "begun with images of train 6 (" in told and "and now it is 7 (" in told


def test_a_finished_set_is_left_as_it_is(whole, capsys):
    before = shardsets.tree(whole / "dst")
    assert shardsets.run(whole / "src", whole / "dst", "--size", 32, "--shard_mb", 0.016) == 0
    assert "is finished" in capsys.readouterr().out
    assert shardsets.tree(whole / "dst") == before


def test_a_folder_with_files_of_others_is_refused(whole, tmp_path, capsys):
    (tmp_path / "thesis.tex").write_text("years")
    assert shardsets.run(whole / "src", tmp_path) == 1
    assert "holds files that this command did not write (thesis.tex)" in capsys.readouterr().err
    assert shardsets.tree(tmp_path) == {"thesis.tex": b"years"}


def test_a_second_command_keeps_out_while_the_first_one_writes(whole, tmp_path, capfd):
    words = (whole / "src", tmp_path / "dst", "--workers", 0)
    with prepare._claimed(tmp_path / "dst"):
        assert shardsets.in_child(lambda: shardsets.run(*words)) == 1
    assert "another process is writing" in capfd.readouterr().err
    assert shardsets.run(*words) == 0


@pytest.mark.parametrize("code, status, told", [
    (errno.ENOLCK, 0, "no lock on "), (errno.ENOSYS, 0, "no lock on "),
    (errno.EACCES, 1, "another process is writing"),
    (errno.EAGAIN, 1, "another process is writing"),
])
def test_a_file_system_without_locks_is_not_taken_for_a_second_command(
        whole, tmp_path, monkeypatch, capsys, code, status, told):
    def refuse(file, how):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert shardsets.run(whole / "src", tmp_path / "dst", "--workers", 0) == status
    assert told in capsys.readouterr().err


def test_a_killed_loader_process_is_told_and_the_finished_shards_are_kept(
        whole, tmp_path, monkeypatch, capsys):
    words = (whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016, "--workers")
    as_jpeg = shrink.as_jpeg

    def until_memory_runs_out(data, size, quality):
        if data == (whole / "src" / "val" / "c000" / "photo.0.jpg").read_bytes():
            shardsets.die()
        return as_jpeg(data, size, quality)

    monkeypatch.setattr(shrink, "as_jpeg", until_memory_runs_out)
    assert shardsets.run(*words, 1) == 1
    assert "a loader process was killed, usually because memory ran out" in capsys.readouterr().err
    monkeypatch.setattr(shrink, "as_jpeg", as_jpeg)
    assert shardsets.run(*words, 0) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_little_memory_leaves_no_image_out(whole, tmp_path, monkeypatch, capsys, workers):
    words = (whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016, "--workers",
             workers, "--skip_bad", 99)

    def fail(image):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(imagefile, "to_rgb", fail)
        assert shardsets.run(*words) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith("error: memory ran out; the same command goes on from the finished "
                         "shards, and fewer --workers take less memory")
    assert shardsets.run(*words) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


def test_a_full_disk_is_told_and_the_finished_shards_are_kept(
        whole, tmp_path, monkeypatch, capsys):
    words = (whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    header, written = writer._header, []

    def until_it_is_full(name, size):
        if len(written) == 20:
            raise OSError(28, "No space left on device")
        written.append(name)
        return header(name, size)

    with monkeypatch.context() as patch:
        patch.setattr(writer, "_header", until_it_is_full)
        assert shardsets.run(*words) == 1
    told = capsys.readouterr().err
    assert f"{tmp_path / 'dst'} cannot be written (No space left on device); the finished" in told
    assert [path.name for path in (tmp_path / "dst").glob("*.tar")] == ["train-000000.tar"]
    assert not list((tmp_path / "dst").glob(".*.tmp"))
    assert shardsets.run(*words) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


# ---- Images that cannot be read


def test_bad_images_are_listed_and_left_out_only_if_that_is_allowed(tmp_path, capsys):
    src, dst = shardsets.many(tmp_path / "src", 8), tmp_path / "dst"
    words = (src, dst, "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    fresh = shardsets.prepared(tmp_path / "fresh", images=8)
    broken = src / "train" / "c003" / "photo.3.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    (src / "val" / "c005" / "photo.5.jpg").write_bytes(b"")

    assert shardsets.run(*words) == 1
    told = capsys.readouterr().err
    assert "2 images of" in told and "--skip_bad 0 allows 0" in told and "Traceback" not in told
    lines = [line.split("\t") for line in (dst / "bad_files.txt").read_text().splitlines()]
    assert [path for path, _ in lines] == ["train/c003/photo.3.jpg", "val/c005/photo.5.jpg"]
    assert "empty" in lines[1][1]
    assert not (dst / "manifest.json").exists()

    assert shardsets.run(*words, "--skip_bad", 1) == 1
    assert shardsets.run(*words, "--skip_bad", 2) == 0
    content = json.loads((dst / "manifest.json").read_text())["splits"]
    assert [entry["path"] for entry in content["train"]["left_out"]] == [lines[0][0]]
    assert content["train"]["per_class"] == [1, 1, 1, 0, 1, 1, 1, 1]
    assert len(shards.open_split(dst, "val")[0]) == 7
    assert len(shards.open_split(fresh, "val")[0]) == 8


def test_an_image_that_was_mended_is_taken_when_the_command_goes_on(tmp_path):
    src, dst = shardsets.many(tmp_path / "src", 8), tmp_path / "dst"
    words = (src, dst, "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    broken = src / "train" / "c003" / "photo.3.jpg"
    good = broken.read_bytes()
    broken.write_bytes(good[: len(good) // 2])
    assert shardsets.run(*words) == 1
    broken.write_bytes(good)
    assert shardsets.run(*words) == 0
    assert shardsets.run(src, tmp_path / "other", *words[2:]) == 0
    assert shardsets.tree(dst) == shardsets.tree(tmp_path / "other")


def test_a_split_of_bad_images_alone_is_an_error_whatever_is_allowed(tmp_path, capsys):
    shardsets.many(tmp_path / "src", 2)
    for path in (tmp_path / "src" / "val").rglob("*.jpg"):
        path.write_bytes(b"not an image")
    assert shardsets.run(tmp_path / "src", tmp_path / "dst", "--workers", 0, "--skip_bad", 9) == 1
    assert "none of the images of val can be read" in capsys.readouterr().err


class Away:
    """Lets files of a set fail as a file system does that is away, by a clock of its own."""

    def __init__(self, monkeypatch, until, names=("",), code=errno.EIO):
        self.now, read = 0.0, imagefile.read

        def fails(path):
            if self.now < until and any(name in path for name in names):
                raise OSError(code, os.strerror(code))
            return read(path)

        monkeypatch.setattr(imagefile, "read", fails)
        # A clock of this module alone: other threads sleep, too, and would move it.
        monkeypatch.setattr(patience, "time", types.SimpleNamespace(
            monotonic=lambda: self.now, sleep=self.sleep))

    def sleep(self, seconds):
        self.now += seconds


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE])
def test_images_of_a_file_system_that_was_away_for_a_moment_are_not_left_out(
        whole, tmp_path, monkeypatch, capsys, code):
    Away(monkeypatch, until=20, code=code)
    assert shardsets.run(whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016,
                         "--workers", 0, "--skip_bad", 99) == 0
    assert "the data can be read again" in capsys.readouterr().err
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_file_system_that_stays_away_stops_the_command_rather_than_emptying_the_set(
        whole, tmp_path, monkeypatch, capsys, workers):
    words = (whole / "src", tmp_path / "dst", "--size", 32, "--shard_mb", 0.016, "--workers",
             workers, "--skip_bad", 99)
    with monkeypatch.context() as patch:
        Away(patch, until=1e9)
        assert shardsets.run(*words) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert "nor others beside it, for 60 seconds; is the file system there? when it is" in told
    assert "the same command goes on" in told and "cannot be written" not in told
    assert not list((tmp_path / "dst").glob("*.tar"))
    assert shardsets.run(*words) == 0
    assert shardsets.tree(tmp_path / "dst") == shardsets.tree(whole / "dst")


def test_finished_shards_stay_when_the_file_system_is_away_as_the_command_goes_on(
        tmp_path, monkeypatch):
    src, dst = shardsets.many(tmp_path / "src", 8), tmp_path / "dst"
    words = (src, dst, "--size", 32, "--shard_mb", 0.016, "--workers", 0)
    (src / "train" / "c003" / "photo.3.jpg").write_bytes(b"no image")
    assert shardsets.run(*words) == 1
    before = shardsets.tree(dst)
    with monkeypatch.context() as patch:
        Away(patch, until=1e9)
        assert shardsets.run(*words, "--skip_bad", 1) == 1
    assert shardsets.tree(dst) == before
    assert shardsets.run(*words, "--skip_bad", 1) == 0


def test_a_single_file_that_cannot_be_read_among_others_is_a_bad_one(
        whole, tmp_path, monkeypatch):
    clock = Away(monkeypatch, until=1e9, names=["photo.3.jpg"])
    assert shardsets.run(whole / "src", tmp_path / "dst", "--size", 32, "--splits", "val",
                         "--workers", 0, "--skip_bad", 1) == 0
    left_out = json.loads((tmp_path / "dst" / "manifest.json").read_text())["splits"]["val"]
    assert left_out["left_out"] == [{
        "path": "val/c003/photo.3.jpg",
        "reason": "cannot be read: Input/output error [EIO]"}]
    assert clock.now < 5


# ---- --verify


def test_a_whole_set_is_verified(whole, capsys):
    assert shardsets.run("--verify", whole / "dst") == 0
    assert capsys.readouterr().out.count("as they were written") == 2


@pytest.mark.parametrize("name, damage, told", [
    ("train-000001.tar", lambda data: data[:700] + b"\0\1\2" + data[703:], "is damaged: its SHA"),
    ("val-000000.tar", lambda data: data[:-512], "bytes, and should have"),
    ("train.index.npy", lambda data: data[:-1] + b"!", "is damaged: its SHA"),
    ("val-000002.tar", None, "is missing"),
], ids=["changed", "cut", "index", "missing"])
def test_verify_names_the_file_that_is_damaged(whole, tmp_path, capsys, name, damage, told):
    shutil.copytree(str(whole / "dst"), str(tmp_path / "dst"))
    path = tmp_path / "dst" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    assert shardsets.run("--verify", tmp_path / "dst") == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of " in error and f"{path} " in error and told in error


# ---- The command line


@pytest.mark.parametrize("words, told", [
    (["only"], "give SRC and DST"),
    (["http://host/set", "dst"], "not URLs"),
    (["src", "src/dst"], "lies in SRC"),
    (["src", "dst", "--splits", "../train"], "expected a name of letters"),
    (["src", "dst", "--splits", "train", "train"], "names a split twice"),
    (["nowhere", "dst"], "nowhere; expected DIR/train/CLASS"),
    (["src", "--verify", "dst"], "--verify DST stands alone"),
    (["--verify", "src"], "it is no prepared set"),
])
def test_mistakes_are_told_in_one_sentence(whole, tmp_path, monkeypatch, capsys, words, told):
    (tmp_path / "src").symlink_to(whole / "src")
    monkeypatch.chdir(tmp_path)
    assert shardsets.run(*words) == 1
    error = capsys.readouterr().err
    assert told in error and error.count("\n") == 1


def test_a_prepared_set_is_no_source(whole, tmp_path, capsys):
    assert shardsets.run(whole / "dst", tmp_path / "again") == 1
    assert "is a prepared set already" in capsys.readouterr().err


def test_a_set_that_is_not_finished_says_how_to_go_on(whole, tmp_path, monkeypatch):
    words = (whole / "src", tmp_path / "dst", "--workers", 0)
    assert killed_at(monkeypatch, 3, lambda: shardsets.run(*words)) == -9
    with pytest.raises(FileNotFoundError, match="is not finished; start the same python -m"):
        manifest.read(tmp_path / "dst")
