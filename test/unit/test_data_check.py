"""python -m mobilenetv3.data.check: what is wrong with a set, before it is trained on."""
import json
import os
import signal
import time

import numpy as np
import pytest
from PIL import Image

from mobilenetv3.data import check, imagefile, scan
from mobilenetv3.data.findings import Few, Split, equal_files


def picture(path, seed=None, size=(40, 36), mode="RGB", **options):
    """A small image whose content no other has."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.random.RandomState(abs(hash(str(path))) % 2**32 if seed is None else seed)
    pixels = drawn.randint(0, 255, (size[1], size[0], 3)).astype(np.uint8)
    Image.fromarray(pixels).convert(mode).save(str(path), **options)
    return path


@pytest.fixture
def good(tmp_path):
    """Two classes, three images each in train and one in val."""
    for label in ("ant", "bee"):
        for number in range(3):
            picture(tmp_path / "set" / "train" / label / f"{number}.jpg")
        picture(tmp_path / "set" / "val" / label / "0.png")
    return tmp_path / "set"


def run(root, tmp_path, *options):
    """Exit status and the JSON report."""
    path = tmp_path / "report.json"
    status = check.run([str(root), "--json", str(path), "-j", "2", *options])
    return status, json.loads(path.read_text())


def test_a_good_set_has_status_0_and_a_table_of_sizes(good, tmp_path, capsys):
    picture(good / "train" / "ant" / "large.jpg", size=(300, 260))
    status, found = run(good, tmp_path)
    shown = capsys.readouterr().out
    assert (status, found["problems"]) == (0, [])
    assert "train: 7 images, 2 classes\nval: 2 images, 2 classes\n" in shown
    assert "32 to 63                 6 ( 85.7%)           2 (100.0%)" in shown
    assert "256 to 383               1 ( 14.3%)           -" in shown
    assert shown.endswith("=> nothing that would stop or falsify training\n")
    assert found["splits"]["train"]["shorter_sides"]["32 to 63"] == 6


def spoil(root):
    """Bad files of every kind; returns what is said of each."""
    ant = root / "train" / "ant"
    whole = picture(ant / "cut.jpg", size=(200, 200)).read_bytes()
    (ant / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (ant / "empty.jpg").write_bytes(b"")
    (ant / "text.png").write_bytes(b"<html>404</html>")
    (ant / "line\nfeed.jpg").write_bytes(b"GIF8")
    (ant / "broken link.jpg").symlink_to("nowhere")
    os.mkfifo(str(ant / "pipe.jpg"))
    side = 40000  # 1.6 billion pixels, in 100 bytes: the size stands in the header
    header = b"P6 %d %d 255\n" % (side, side)
    (ant / "bomb.ppm").write_bytes(header + b"\x01" * 100)
    return {"cut.jpg": "truncated", "empty.jpg": "empty", "text.png": "not an image",
            "line\nfeed.jpg": "not an image", "broken link.jpg": "No such file",
            "pipe.jpg": "a pipe", "bomb.ppm": "too large"}


def test_every_bad_file_is_found_with_its_reason(good, tmp_path, capsys):
    expected = spoil(good)
    status, found = run(good, tmp_path, "--list", str(tmp_path / "bad.txt"))
    bad = {os.path.basename(each["path"]): each["reason"]
           for each in found["splits"]["train"]["bad"]}
    assert status == 1
    assert sorted(bad) == sorted(expected)
    assert {name: part for name, part in expected.items() if part not in bad[name]} == {}
    assert found["problems"] == ["7 bad files"]
    listed = (tmp_path / "bad.txt").read_text().splitlines()
    assert len(listed) == 7
    assert str(good / "train" / "ant") + "/line\\nfeed.jpg" in listed
    assert "line\\nfeed.jpg: not an image" in capsys.readouterr().out


def test_names_that_are_no_text_are_listed_byte_for_byte(good, tmp_path, capsys):
    name = os.fsencode(str(good / "train" / "ant")) + b"/\xff\xfe.jpg"
    with open(name, "wb"):
        pass
    status, found = run(good, tmp_path, "--list", str(tmp_path / "bad.txt"))
    assert status == 1
    assert (tmp_path / "bad.txt").read_bytes() == name + b"\n"
    assert os.fsencode(found["splits"]["train"]["bad"][0]["path"]) == name
    assert "\\udcff\\udcfe.jpg" in capsys.readouterr().out


def test_equal_files_are_found_across_splits_and_within(good, tmp_path):
    ant, bee = good / "train" / "ant", good / "train" / "bee"
    (good / "val" / "ant" / "leaked.jpg").write_bytes((ant / "0.jpg").read_bytes())
    (bee / "two labels.jpg").write_bytes((ant / "1.jpg").read_bytes())
    (bee / "again.jpg").write_bytes((bee / "2.jpg").read_bytes())
    for name in ("empty a.jpg", "empty b.jpg"):  # alike, but bad, which says it all
        (bee / name).write_bytes(b"")
    status, found = run(good, tmp_path)
    assert status == 1
    assert found["problems"] == ["2 bad files", "2 files that are in both splits"]
    equal = found["duplicates"]
    assert equal["across_splits"] == {"groups": 1, "files": 2, "first": [
        [str(ant / "0.jpg"), str(good / "val/ant/leaked.jpg")]]}
    assert equal["across_classes"]["first"] == [[str(ant / "1.jpg"), str(bee / "two labels.jpg")]]
    assert equal["within_a_class"]["first"] == [[str(bee / "2.jpg"), str(bee / "again.jpg")]]


def test_equal_files_within_a_split_do_not_stop_training(good, tmp_path):
    bee = good / "train" / "bee"
    (bee / "again.jpg").write_bytes((bee / "2.jpg").read_bytes())
    status, found = run(good, tmp_path)
    assert (status, found["duplicates"]["within_a_class"]["files"]) == (0, 2)


def test_classes_of_one_split_and_empty_ones_are_problems(good, tmp_path):
    picture(good / "train" / "cow" / "0.jpg")
    picture(good / "val" / "dog" / "0.jpg")
    (good / "val" / "bee" / "0.png").unlink()
    status, found = run(good, tmp_path)
    assert status == 1
    assert found["problems"] == ["1 classes without images in val", "1 classes in train only",
                                 "1 classes in val only"]
    assert found["splits"]["train"]["classes_here_only"] == ["cow"]
    assert found["splits"]["val"]["classes_here_only"] == ["dog"]
    assert found["splits"]["val"]["empty_classes"] == ["bee"]


def test_a_class_that_one_of_three_splits_lacks_is_a_problem(good, tmp_path, capsys):
    for split in ("train", "test"):
        for label in ("ant", "bee", "cow"):
            picture(good / split / label / "more.jpg")
    status, found = run(good, tmp_path, "--splits", "train", "val", "test")
    assert (status, found["problems"]) == (1, ["1 classes missing from val"])
    assert {name: split["classes_missing"] for name, split in found["splits"].items()} == {
        "train": [], "val": ["cow"], "test": []}
    assert "\n1 classes missing from val:\n    cow\n" in capsys.readouterr().out


def test_what_training_bears_is_remarked_and_no_problem(good, tmp_path):
    ant = good / "train" / "ant"
    picture(ant / "cmyk.jpg", mode="CMYK")
    picture(ant / "grey.png", mode="L")
    picture(ant / "palette.png", mode="P")
    picture(ant / "alpha.png", mode="RGBA")
    picture(ant / "a gif in truth.bmp", format="PNG")
    Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 1000).save(str(ant / "16.png"))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(ant / "turned.jpg", exif=exif.tobytes())
    frames = [Image.new("RGB", (9, 9), (n, 0, 0)) for n in (10, 200)]
    frames[0].save(str(ant / "moves.webp"), save_all=True, append_images=frames[1:], lossless=True)
    (ant / "notes.txt").write_text("no image")
    picture(good / "train" / "beside.jpg")
    status, found = run(good, tmp_path)
    train = found["splits"]["train"]
    assert (status, train["bad"]) == (0, [])
    remarks = {name: [os.path.basename(path) for path in few["first"]]
               for name, few in train["remarks"].items()}
    assert remarks == {
        "CMYK": ["cmyk.jpg"], "grey": ["grey.png"], "palette": ["palette.png"],
        "alpha (dropped)": ["alpha.png"], "16 bits a colour": ["16.png"],
        "another format than its name says": ["a gif in truth.bmp"],
        "turned by EXIF (not heeded)": ["turned.jpg"],
        "animated (its first picture is used)": ["moves.webp"],
    }
    assert train["not_images"] == {"count": 1, "first": [str(ant / "notes.txt")]}
    assert train["beside_class_folders"]["first"] == [str(good / "train" / "beside.jpg")]


def test_a_missing_split_is_a_problem_and_a_split_alone_is_looked_through(good, tmp_path, capsys):
    status, found = run(good, tmp_path, "--splits", "train", "validation")
    assert (status, found["missing"], found["problems"]) == (
        1, ["validation"], ["no folder 'validation'"])
    status, found = run(good / "train", tmp_path)
    assert (status, found["splits"]["."]["images"]) == (0, 6)
    assert "it is looked through as one split" in capsys.readouterr().out


def test_validation_images_without_class_folders_are_looked_through(good, tmp_path, capsys):
    for label in ("ant", "bee"):
        (good / "val" / label / "0.png").rename(good / "val" / f"{label}.png")
        (good / "val" / label).rmdir()
    (good / "val" / "bad.jpg").write_bytes(b"")
    status, found = run(good, tmp_path)
    assert (status, found["problems"]) == (1, ["1 bad files"])
    assert found["splits"]["val"]["images"] == 3
    assert "val has no class folders: training needs --val_labels" in capsys.readouterr().out


@pytest.mark.parametrize("argv, message", [
    (["nowhere"], "there is no folder"), ([], "FOLDER"), ([".", "-j", "0"], "positive integer"),
    ([".", "--json", "no/such/report.json"], "report.json is in no folder"),
    ([".", "--list", "."], ". is a folder; expected the name of a file to write"),
    ([".", "--what"], "--what"),
    ([".", "--splits", "train", "train"], "--splits names a split twice: train train"),
])
def test_a_wrong_command_has_status_2(tmp_path, monkeypatch, capsys, argv, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        check.run(argv)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


def test_an_empty_folder_has_no_images(tmp_path):
    (tmp_path / "set").mkdir()
    status, found = run(tmp_path / "set", tmp_path)
    assert (status, found["problems"]) == (1, ["no images in ."])


def test_a_prepared_set_is_told_its_own_command(tmp_path, capsys):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(SystemExit):
        check.run([str(tmp_path)])
    assert "prepare --verify" in capsys.readouterr().err


# ---- Processes


def paths(*names):
    return [(name, 0) for name in names]


def strange(index, path):
    """Stands in for `look`: what a decoder may do to its process."""
    if path == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    if path == "hangs":
        time.sleep(60)
    return scan.Facts(index, side=7)


@pytest.fixture
def odd_decoder(monkeypatch):
    monkeypatch.setattr(scan, "look", strange)  # before the processes are forked


def test_a_file_that_kills_its_process_is_bad_and_the_rest_is_looked_at(odd_decoder):
    files = paths(*["good"] * 40, "dies", *["good"] * 10, "dies", "good")
    found = {facts.index: facts for facts in scan.scan(files, 2)}
    assert sorted(found) == list(range(53))
    assert [index for index in sorted(found) if found[index].reason] == [40, 51]
    assert found[40].reason == "the decoder crashed"


def test_a_file_that_takes_for_ever_is_bad_and_the_rest_is_looked_at(odd_decoder):
    files = paths("good", "hangs", *["good"] * 5)
    started = time.monotonic()
    found = {facts.index: facts for facts in scan.scan(files, 1, seconds=0.5)}
    assert time.monotonic() - started < 30  # not the 60 that the file would take
    assert [index for index in sorted(found) if found[index].reason] == [1]
    assert found[1].reason == "takes more than 0.5 s to decode"


def test_a_file_for_which_memory_is_short_is_said_to_be_too_large(good, monkeypatch):
    def fail(image):
        raise MemoryError

    monkeypatch.setattr(imagefile, "to_rgb", fail)
    facts = scan.look(0, str(good / "train" / "ant" / "0.jpg"))
    assert facts.reason == "too large: out of memory"


def test_a_scan_that_is_left_ends_its_processes(odd_decoder):
    facts = scan.scan(paths(*["good"] * 5, "hangs"), 1)
    next(facts)
    worker, = facts.gi_frame.f_locals["workers"].values()
    assert worker.process.is_alive()
    facts.close()
    assert worker.process.exitcode == -signal.SIGKILL


# ---- Memory


def test_of_a_million_findings_the_first_are_kept():
    few = Few()
    few.add(range(10**5))
    assert (few.count, few.first) == (10**5, list(range(20)))


def test_files_of_one_content_are_one_group_however_many(good):
    train, val = Split("train", good / "train"), Split("val", good / "val")
    for split in (train, val):
        for index in range(len(split.files)):
            split.add(scan.Facts(index, digest=b"x" * 16, side=40))
    equal = equal_files([train, val])
    assert (equal.across.count, equal.across.files) == (1, 8)
    assert equal.classes.count == equal.same.count == 0
