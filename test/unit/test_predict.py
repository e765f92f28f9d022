"""predict.py's parts: options, which images, reading ahead, results, the contact sheet."""
import csv
import json
import os
import struct
import threading

import pytest
from PIL import Image, ImageOps

from mobilenetv3 import files, predictions, prepare, results, sheet
from mobilenetv3.options.predict import parse_predict, predict_parser
from mobilenetv3.predictions import Prediction

ODD = ["with space.jpg", "it's \"quoted\".jpg", "new\nline.jpg", "d\u00e9j\u00e0 \u9f99.jpg",
       "bytes\udcff.jpg", "comma, semi;colon.jpg", "-dash.jpg"]


def top(*names):
    """Results in the form of inference.classify: 0.5 for the first, half of it for the next, ..."""
    return [{"class": name, "label": index, "score": 0.5 ** (index + 1)}
            for index, name in enumerate(names)]


# ----------------------------------------------------------------------------------------- options


def error_of(capsys, *argv):
    with pytest.raises(SystemExit) as exit_:
        parse_predict(argv)
    assert exit_.value.code == 2
    return capsys.readouterr().err.splitlines()[1].split(": error: ", 1)[1]


@pytest.mark.parametrize("argv, images", [
    (["a", "b", "--ckpt_path", "w"], ["a", "b"]),
    (["--ckpt_path", "w", "a", "b"], ["a", "b"]),
    (["a", "--top-k", "3", "b", "--ckpt_path", "w", "c"], ["a", "b", "c"]),
    (["a", "--ckpt_path", "w", "--", "-b", "c"], ["a", "-b", "c"]),
])
def test_images_may_stand_on_either_side_of_an_option(argv, images):
    assert parse_predict(argv).images == images


def test_what_is_not_given_is_left_to_the_weights():
    cfg = parse_predict(["a", "--ckpt_path", "w"])
    assert [cfg.img_size, cfg.crop_pct, cfg.interpolation, cfg.mean, cfg.std, cfg.ema] == [None] * 6
    assert (cfg.top_k, cfg.recursive, cfg.device, cfg.exif) == (5, True, "auto", False)


@pytest.mark.parametrize("argv, start", [
    (["--ckpt_path", "w"], "no images: give files or folders"),
    (["a"], "no weights to predict with"),
    (["a", "--pretrained"], "--pretrained takes timm's weights of a model's name: add --model"),
    (["--model", "m", "--pretrained", "cat.jpg", "dog.jpg"], "--pretrained cat.jpg: expected a "),
    (["a", "--pretrained", "x", "--ckpt_path", "w"], "--pretrained and --ckpt_path both"),
    (["a", "--ckpt_path", "w", "--sheet", "s.jpg"], "--sheet s.jpg: expected a name that ends in"),
    (["a", "--ckpt_path", "w", "--topk", "3"], "unknown option --topk; did you mean --top_k?"),
    (["a", "--ckpt_path", "w", "--top_k", "0"], "--top_k: expected a positive integer, got '0'"),
])
def test_a_mistake_is_told_in_a_sentence(capsys, argv, start):
    assert error_of(capsys, *argv).startswith(start)


def test_help_names_every_option_and_its_examples_parse():
    parser = predict_parser()
    shown = parser.format_help()
    assert all(f"--{name}" in shown for name in parser.names())
    lines = [line.split("predict.py", 1)[1].split() for line in parser.epilog.splitlines()[1:]]
    assert [len(parse_predict(argv).images) for argv in lines] == [1, 1, 2]


# ------------------------------------------------------------------------------------ which images


@pytest.fixture
def folder(tmp_path):
    for name in ("b.jpg", "a.PNG", "sub/c.webp", "sub/.hidden/d.jpg", "._a.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    return tmp_path


def found(folder, *paths, **options):
    images, empty = predictions.find_images(list(map(str, paths)), **options)
    return ([os.path.relpath(path, str(folder)) for path in images],
            [os.path.relpath(path, str(folder)) for path in empty])


def test_a_folder_gives_its_images_and_those_of_its_folders_in_order(folder):
    assert found(folder, folder) == (["a.PNG", "b.jpg", "sub/c.webp"], [])
    assert found(folder, folder, recursive=False) == (["a.PNG", "b.jpg"], [])


def test_a_file_is_taken_whatever_its_name_and_whether_it_is_there(folder):
    paths = folder / "notes.txt", folder / "none.jpg", folder / "empty"
    assert found(folder, *paths) == (["notes.txt", "none.jpg"], ["empty"])


def test_links_to_folders_are_followed_and_a_circle_ends(folder):
    (folder / "empty" / "link").symlink_to(folder / "sub")
    assert found(folder, folder / "empty") == (["empty/link/c.webp"], [])
    (folder / "sub" / "round").symlink_to(folder / "sub")
    assert found(folder, folder / "sub") == (["sub/c.webp"], [])


# ---------------------------------------------------------------------------- reading, classifying


def read(file):
    if "bad" in file:
        raise ValueError(f"{file} is\ndamaged")
    return file.upper()


def test_files_are_read_ahead_by_threads_and_given_out_in_order():
    both = threading.Barrier(2, timeout=10)  # passes when two files are being read at once

    def slow(file):
        both.wait()
        return read(file)

    opened = predictions.opened(["a", "bad", "c", "d"], slow, threads=2, ahead=3)
    outcome = [(file, str(image)) for file, image in opened]
    assert outcome == [("a", "A"), ("bad", "bad is\ndamaged"), ("c", "C"), ("d", "D")]


def test_no_more_files_are_read_ahead_than_asked():
    started = []
    opened = predictions.opened(map(str, range(100)), started.append, threads=1, ahead=5)
    next(opened)
    assert len(started) <= 6  # the one that was given out, and five


def classify(images):
    """Two images a batch, as inference.classify takes them."""
    images = iter(images)
    while True:
        batch = [image for _, image in zip(range(2), images)]
        if not batch:
            return
        for image in batch:
            yield {"top": top(image)}


@pytest.mark.parametrize("names", [
    ["a", "b", "c"], ["bad1", "a", "bad2", "b", "c", "bad3", "bad4"], ["bad1", "bad2"],
    ["a", "bad"],
])
def test_every_image_has_its_own_prediction_or_its_error(names):
    images = predictions.opened(names, read, threads=2, ahead=2)
    answers = list(predictions.predict(images, classify))
    assert [one.file for one in answers] == names
    for one in answers:
        if "bad" in one.file:
            assert (one.top, one.error) == ([], f"{one.file} is damaged")
        else:
            assert (one.top[0]["class"], one.error) == (one.file.upper(), "")


def test_an_error_names_an_odd_file_in_one_line():
    name = "bad\nname\udcff"
    images = predictions.opened([name], read, threads=1, ahead=1)
    assert list(predictions.predict(images, classify))[0].error == (
        '"bad\\nname\\udcff" is damaged')


# ----------------------------------------------------------------------------------------- results


def test_a_line_has_shares_in_per_cent_and_no_line_breaks():
    assert predictions.line(Prediction("a b.jpg", top("tabby, cat", "dog"))) == (
        "a b.jpg: 50.0% tabby, cat | 25.0% dog")
    assert predictions.line(Prediction("a\nb.jpg", top("x"))) == '"a\\nb.jpg": 50.0% x'


def test_names_survive_csv(tmp_path):
    names = ['tench, "Tinca"', "\u9f99\n"]
    given = [Prediction(name, top(*names)) for name in ODD] + [Prediction("x", [], "damaged")]
    predictions.write_csv(tmp_path / "a.csv", given)
    with open(str(tmp_path / "a.csv"), encoding="utf-8", errors="surrogateescape",
              newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["file"] for row in rows] == [*ODD, "x"]
    assert {(row["class_1"], row["class_2"]) for row in rows[:-1]} == {tuple(names)}
    assert (rows[0]["index_2"], rows[0]["score_2"], rows[0]["error"]) == ("1", "0.250000", "")
    assert (rows[-1]["class_1"], rows[-1]["error"]) == ("", "damaged")
    assert b"bytes\xff.jpg" in (tmp_path / "a.csv").read_bytes()  # as the file is called


def test_names_survive_json_and_what_is_not_finite_is_null(tmp_path):
    given = [Prediction(name, top("\u9f99")) for name in ODD] + [Prediction("x", [], "damaged")]
    results.write_json(tmp_path / "a.json", {
        "results": [predictions.as_json(one) for one in given], "loss": float("nan")})
    read_back = json.loads((tmp_path / "a.json").read_bytes().decode("ascii"))
    assert [one["file"] for one in read_back["results"]] == [*ODD, "x"]
    assert read_back["results"][0]["predictions"] == [
        {"class": "\u9f99", "index": 0, "score": 0.5}]
    assert read_back["results"][-1] == {"file": "x", "error": "damaged"}
    assert read_back["loss"] is None


def test_files_are_replaced_only_when_it_is_asked(tmp_path):
    path = tmp_path / "new" / "a.csv"
    files.claim_files([path], force=False)
    assert path.parent.is_dir() and not path.exists()
    path.write_text("mine")
    with pytest.raises(ValueError, match="a.csv exists already; give another name, or add --force"):
        files.claim_files([path], force=False)
    files.claim_files([path], force=True)
    assert path.read_text() == "mine"  # until there is something to write
    with pytest.raises(ValueError, match="is a folder; expected the name of a file"):
        files.claim_files([path.parent], force=True)
    with pytest.raises(ValueError, match="cannot be written: a file is in the way"):
        files.claim_files([path / "b.csv"], force=True)


# --------------------------------------------------------------------------------------- the sheet


def tile(size, caption="cat", file="a.jpg"):
    return sheet.Tile(sheet.small(Image.new("RGB", size, (200, 0, 0))), caption, "50.0%", file)


@pytest.mark.parametrize("size, small", [
    ((400, 200), (192, 96)), ((8, 8), (192, 192)), ((9000, 2), (192, 1)), ((30, 60), (96, 192)),
])
def test_a_small_image_keeps_its_shape(size, small):
    assert sheet.small(Image.new("L", size)).size == small


def test_a_sheet_shows_every_image_above_its_words(tmp_path):
    captions = ["cat", "great white shark, " * 9, "\u9f99", "", "a\nb"]
    sheet.draw(tmp_path / "s.png", [tile((40, 40), caption, ODD[4]) for caption in captions * 2])
    with Image.open(str(tmp_path / "s.png")) as image:
        assert image.format == "PNG"
        columns, rows = 8, 2  # ten images
        step_x, step_y = (image.width - 12) // columns, (image.height - 12) // rows
        for index in range(10):
            left, above = 12 + index % columns * step_x, 12 + index // columns * step_y
            assert image.getpixel((left + 96, above + 96)) == (200, 0, 0)
            words = image.crop((left, above + 192, left + 192, above + step_y))
            assert words.convert("L").getextrema()[0] < 128  # there is ink
            between = image.crop((left + 193, above, left + 203, above + step_y))
            assert between.convert("L").getextrema() == (255, 255)  # that stays below its image


def test_long_words_are_cut_to_the_width_of_the_image():
    font = sheet._font()
    lines = sheet.wrapped("99.9% hammerhead, hammerhead shark and everything else", font, 100, 2)
    assert len(lines) == 2 and lines[1].endswith("...")
    assert all(sheet._width(line, font) <= 100 for line in lines)
    assert sheet.shortened("W" * 300, font, 100).endswith("W...")
    assert sheet.wrapped("50.0% cat", font, 192, 2) == ["50.0% cat"]


# ------------------------------------------------------------------------------------ turned images


def exif_of(orientation, *more):
    """EXIF of a JPEG, little-endian, with entries beyond the orientation: (tag, type, count)."""
    entries = [(0x0112, 3, 1, orientation), *((*one, 0x7FFFFFF0) for one in more)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<H", len(entries)) + table + b"\0\0\0\0"


def wide(exif=b""):
    """A picture of 3 x 2 pixels that says so much of itself."""
    image = Image.new("RGB", (3, 2))
    image.putpixel((0, 0), (255, 0, 0))
    image.info["exif"] = exif
    return image


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_as_pillow_turns_it(orientation):
    image = wide(exif_of(orientation))
    assert prepare.turned(image).tobytes() == ImageOps.exif_transpose(image).tobytes()
    assert prepare.turned(image).size == ((3, 2) if orientation < 5 else (2, 3))


@pytest.mark.parametrize("exif, size", [
    (b"Exif\0\0garbage", (3, 2)),  # no header: SyntaxError
    (b"Exif\0\0II*\0\x08\0\0\0\xff\xff", (3, 2)),  # ends within its table: struct.error
    (b"Exif\0\0II", (3, 2)),
    (exif_of(6, (0x8769, 4, 1)), (2, 3)),  # turned, and a pointer to entries behind the end
    (exif_of(99), (3, 2)),
])
def test_a_malformed_exif_block_ended_the_whole_batch(exif, size):
    assert prepare.turned(wide(exif)).size == size


def test_an_exif_block_that_pillow_cannot_even_open_leaves_the_image_as_it_is(monkeypatch):
    for error in (struct.error("unpack"), TypeError("None"), AttributeError("x")):
        def fail(self, error=error):
            raise error

        monkeypatch.setattr(Image.Image, "getexif", fail)
        image = wide()
        assert prepare.turned(image) is image
