"""What is wrong with an image folder, in one sentence; and what is only noted."""
from types import SimpleNamespace

import pytest

from mobilenetv3 import build, data, options

EXPECTED = r"expected DIR/train/CLASS/\*.jpg and DIR/val/CLASS/\*.jpg"


def make(root, *paths):
    """Empty files; a layout is judged by names alone."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def open_split(root, split="train"):
    return data.open_source("folder", str(root), split, "val" if split == "train" else "train")


def both(root, **changed):
    given = dict(options.train_parser().defaults(), dataset="folder", data_path=str(root))
    return build.sources(SimpleNamespace(**dict(given, **changed)))


GOOD = ("train/a/1.jpg", "train/a/2.jpg", "train/b/3.jpg", "val/a/4.jpg", "val/b/5.jpg")


def test_a_folder_as_expected_has_no_notes(tmp_path):
    train, val = both(make(tmp_path, *GOOD))
    assert (train.note, val.note) == ("", "")
    assert (len(train.samples), len(val.samples)) == (3, 2)
    assert train.samples.path(2) == str(tmp_path / "train/b/3.jpg")


def test_splits_that_look_swapped_are_noted(tmp_path):
    train, _ = both(make(tmp_path, *GOOD), train_split="val", val_split="train")
    assert train.note == ("=> train has more images (3) than val (2): if they are swapped, "
                          "--train_split and --val_split name them")


def test_a_missing_split_is_an_error_that_names_what_is_there(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/b/2.jpg")
    with pytest.raises(FileNotFoundError, match=f"no folder 'val' .it has: train.; {EXPECTED}"):
        both(tmp_path)


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_path_of_a_split_itself_is_told_from_that_of_the_set(tmp_path, split):
    make(tmp_path, *GOOD)
    with pytest.raises(FileNotFoundError, match=(
            rf"{split} has class folders \(a, b\) and no folder 'train': it is a split itself, and "
            rf"the data path is the folder above it, {tmp_path}; {EXPECTED}")):
        both(tmp_path / split)


def test_class_folders_without_splits_are_told_what_is_missing(tmp_path):
    make(tmp_path / "set", "a/1.jpg", "b/2.jpg")
    with pytest.raises(FileNotFoundError, match=(
            "it is a split itself, and the data path is the folder above it; expected")):
        both(tmp_path / "set")


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_single_class_is_an_error(tmp_path, split):
    make(tmp_path, f"{split}/only/1.jpg", f"{split}/only/2.jpg")
    with pytest.raises(ValueError, match=f"{split} has images of one class alone, only, .*"
                                         f"{EXPECTED}"):
        open_split(tmp_path, split)


def test_images_beside_class_folders_are_counted_in_a_note(tmp_path):
    train, _ = both(make(tmp_path, *GOOD, "train/x.jpg", "train/y.PNG", "train/readme.txt"))
    assert train.note == f"=> {tmp_path / 'train'}: 2 images beside the class folders are not used"


def test_notes_on_both_splits_stand_in_lines_of_their_own(tmp_path):
    train, _ = both(make(tmp_path, *GOOD, "train/x.jpg", "val/x.jpg", "val/b/6.jpg",
                         "val/b/7.jpg"))
    assert [line.split(": ")[-1][:8] for line in train.note.splitlines()] == [
        "1 images", "1 images", "if they "]


def test_classes_that_differ_are_named_with_the_split_that_has_them(tmp_path):
    make(tmp_path, *GOOD, *(f"train/t{n}/1.jpg" for n in range(7)), "val/v/1.jpg")
    with pytest.raises(ValueError, match=(
            r"^train and val must have the same classes; only train has 7 \(t0, t1, t2, t3, t4, "
            r"...\), only val has 1 \(v\)$")):
        both(tmp_path)


@pytest.mark.parametrize("inner", ["train", "images"])
def test_classes_one_level_too_deep_are_an_error(tmp_path, inner):
    make(tmp_path, f"train/{inner}/a/1.jpg", f"train/{inner}/b/2.jpg")
    with pytest.raises(ValueError, match=(
            f"train has one folder, {inner}, and the 2 class folders in that, one level too deep: "
            f"move them up; {EXPECTED}")):
        open_split(tmp_path)


def test_folders_of_class_folders_are_noted_because_they_may_be_meant(tmp_path):
    make(tmp_path, "train/cats/lion/1.jpg", "train/cats/lynx/2.jpg", "train/dogs/wolf/3.jpg")
    source = open_split(tmp_path)
    assert source.classes == ["cats", "dogs"]
    assert source.note == (
        f"=> {tmp_path / 'train'}: its 2 folders are the classes (cats, dogs), not the 3 folders "
        "in them, where all images lie")


def test_names_that_would_forge_a_line_of_the_log_are_escaped(tmp_path):
    make(tmp_path / "my\nset", "train/a\n=> done/b/1.jpg", "train/c\x1b[2J/d/2.jpg")
    assert open_split(tmp_path / "my\nset").note == (
        f"=> {tmp_path}/my\\nset/train: its 2 folders are the classes (a\\n=> done, "
        "c\\x1b[2J), not the 2 folders in them, where all images lie")


def test_folders_inside_classes_are_nothing_to_note(tmp_path):
    make(tmp_path, "train/a/1.jpg", "train/a/more/2.jpg", "train/b/more/3.jpg")
    assert open_split(tmp_path).note == ""


def test_many_empty_classes_are_named_by_the_first(tmp_path):
    make(tmp_path, *(f"train/c{n}/readme.txt" for n in range(7)), "train/full/1.jpg")
    with pytest.raises(FileNotFoundError, match=(
            "train has class folders without images: c0, c1, c2, c3, c4, ...; expected")):
        open_split(tmp_path)
