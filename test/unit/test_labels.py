"""Validation images in one folder, with a file of labels."""
import numpy as np
import pytest
from PIL import Image

from mobilenetv3 import data
from mobilenetv3.data.labels import read_labels, synsets

IMAGES = ["a.JPEG", "b c.JPEG", "d.JPEG"]
CLASSES = ["n01440764", "n01443537", "n01484850"]


@pytest.fixture
def labels(tmp_path):
    """labels(text) -> what is read of it for IMAGES and CLASSES."""
    def read(text, classes=CLASSES, images=IMAGES, name="val.txt"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_labels(path, images, classes)
    return read


@pytest.mark.parametrize("text", [
    "d.JPEG 2\na.JPEG 0\nb c.JPEG 1\n",  # mmpretrain's and Caffe's val.txt
    "d.JPEG n01484850\n\na.JPEG n01440764\nb c.JPEG\tn01443537\n",
    "d 2\na 0\nb c 1",
    "0\n1\n2\n",
    "n01440764\nn01443537\nn01484850\n",  # TensorFlow's list of synsets
    "ImageId,PredictionString\nd,n01484850 1 2 3 4 n01484850 5 6 7 8\na,n01440764 1 2 3 4\n"
    "b c,n01443537 9 9 9 9 \n",  # Kaggle's
])
def test_every_form_gives_the_labels_in_the_order_of_the_images(labels, text):
    assert labels(text) == [0, 1, 2]
    assert labels("\ufeff" + text.replace("\n", "\r\n")) == [0, 1, 2]


def test_folders_that_are_numbers_are_names(labels):
    classes = ["0", "1", "10", "2"]  # as they are sorted
    assert labels("a 2\nb c 10\nd 1", classes) == [3, 2, 1]
    with pytest.raises(ValueError, match=r"'3' is not one of the 4 classes; .*\(0, 1, ...\)$"):
        labels("a 3\nb c 10\nd 1", classes)


@pytest.mark.parametrize("text, message", [
    ("", "holds no labels"),
    ("a 0\nb c 1\nd 3", "line 3: '3' is not one of the 3 classes; .* or a number from 0 to 2$"),
    ("a 0\nb c 1\nd n9", "line 3: 'n9' is not one of the 3 classes"),
    ("a 0\n1\n2", "line 2: expected NAME LABEL in every line"),
    ("0\n1", "has 2 labels without names, and there are 3 images"),
    ("a 0\nb c 1", "has no label for 1 of the 3 images: d.JPEG$"),
    ("a 0\nb c 1\nd 1\ne 1", "line 4: there is no image 'e'"),
    ("a 0\nb c 1\nd 1\na.JPEG 1", "line 4: 'a.JPEG' has a label already"),
])
def test_a_file_that_does_not_fit_is_refused_by_line(labels, text, message):
    with pytest.raises(ValueError, match=message):
        labels(text)


def test_a_file_that_is_missing_or_no_text_is_told(tmp_path):
    with pytest.raises(FileNotFoundError, match="no labels at"):
        read_labels(tmp_path / "none.txt", IMAGES, CLASSES)
    (tmp_path / "val.txt").write_bytes(b"\x89PNG\xff")
    with pytest.raises(ValueError, match="is not UTF-8 text"):
        read_labels(tmp_path / "val.txt", IMAGES, CLASSES)


# ---------------------------------------------------------------------------- the development kit


def test_numbers_without_a_zero_are_not_taken_for_alphabetical_ones(labels):
    # ILSVRC2012_IDs: 1 is n02119789, which is number 278 in alphabetical order.
    with pytest.raises(ValueError, match="put the kit's meta.mat, which tells it, beside the file"):
        labels("1\n2\n1")


def test_the_kits_numbers_are_translated_by_its_own_table(labels, tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    rows = [(1, "n01484850", "great white shark", 0), (2, "n01440764", "tench", 0),
            (3, "n01443537", "goldfish", 0), (1001, "n01466257", "chordate", 2)]
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    scipy_io.savemat(str(tmp_path / "meta.mat"), {"synsets": np.array(rows, dtype=kind)})
    assert labels("2\n3\n1") == [0, 1, 2]
    with pytest.raises(ValueError, match="line 1: 1001 is n01466257 in .*meta.mat, which is not"):
        labels("1001\n3\n1")
    (tmp_path / "meta.mat").write_bytes(b"not MATLAB's")
    with pytest.raises(ValueError, match="meta.mat cannot be read as the table"):
        labels("2\n3\n1")


# ---------------------------------------------------------------------------------------- sources


def make_flat(root, names=("b", "a")):
    (root / "val").mkdir(parents=True)
    for number, name in enumerate(names):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(str(root / "val" / f"{name}.png"))
    (root / "val" / "val.txt").write_text("a 1\nb 0\n")  # no image, so passed over
    return root


def open_flat(root, dataset="folder"):
    return data.open_source(dataset, str(root), "val", "train", labels=str(root / "val/val.txt"))


def test_a_flat_folder_takes_its_classes_from_the_training_folders(tmp_path):
    for name in ("wasp", "ant"):
        (tmp_path / "train" / name).mkdir(parents=True)
    source = open_flat(make_flat(tmp_path))
    assert source.classes == ["ant", "wasp"]
    assert [(image.getpixel((0, 0))[0], label) for image, label in source.samples] == [
        (1, 1), (0, 0)]  # a.png, then b.png
    with pytest.raises(ValueError, match="--dataset imagenet expects 1000 classes"):
        open_flat(tmp_path, "imagenet")


def test_without_training_folders_the_classes_are_imagenets(tmp_path):
    source = open_flat(make_flat(tmp_path), "imagenet")
    assert source.classes == synsets() == sorted(set(synsets()))
    assert (len(source.classes), source.classes[1]) == (1000, "n01443537")
    assert [label for _, label in source.samples] == [1, 0]


def test_a_flat_folder_without_labels_is_told_of_the_option(tmp_path):
    make_flat(tmp_path)
    with pytest.raises(FileNotFoundError, match="or --val_labels FILE for validation images"):
        data.open_source("folder", str(tmp_path), "val")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="has no images; --val_labels is for images"):
        data.open_source("folder", str(tmp_path), "empty", labels="val.txt")
    with pytest.raises(FileNotFoundError, match="no folder of images at"):
        data.open_source("folder", str(tmp_path), "none", labels="val.txt")
