"""Where images come from: every source is a list of (image, label) with class names.

A source gives PIL images of mode RGB and integer labels; transforms and sampling do not know which
source they serve.
"""
import os
from pathlib import Path
from typing import List, NamedTuple, Tuple

from torchvision import datasets

from mobilenetv3.data import cifar, demo
from mobilenetv3.data.labels import read_labels, synsets

LAYOUT = "expected DIR/{train}/CLASS/*.jpg and DIR/{val}/CLASS/*.jpg"


class Source(NamedTuple):
    """One split of a data set."""

    samples: object
    """Sequence of (PIL image, int); one of files has `encoded` as well (see `Files`)."""
    classes: List[str]
    name: str
    """What the result table's data column says."""
    note: str = ""
    """A line for the log; "" where the data path says it all."""


class Files:
    """Images in files: item i is (PIL image of mode RGB, int).

    Args:
        samples: (path, label) of each.
    """

    def __init__(self, samples: List[Tuple[str, int]]):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        path, label = self.samples[index]
        return datasets.folder.default_loader(path), label

    def encoded(self, index: int) -> Tuple[bytes, int]:
        """(content of the file, label)."""
        path, label = self.samples[index]
        with open(path, "rb", buffering=0) as file:
            return file.read(), label


def open_source(dataset: str, data_path: str, split: str, other_split: str = "val",
                download: bool = False, labels: str = "") -> Source:
    """Open one split of a data set.

    Args:
        dataset: "folder" (any ImageFolder), "imagenet" (one of 1,000 classes), "cifar10"
            (torchvision's files) or "demo".
        data_path: the data set's folder; not used by "demo", and for CIFAR-10 "" is a folder beside
            the demo set's.
        split: name of the split's folder; for CIFAR-10 "train" is the training part and any other
            name the test part.
        other_split: the sibling split, for the layout that an error names.
        download: let torchvision fetch CIFAR-10 into data_path.
        labels: file of labels (see `labels`) for a split without class folders. The classes are
            then those of the other split's folders, or, where there are none, ImageNet's.

    Raises:
        FileNotFoundError: the folder is missing or not laid out as expected.
        ValueError: the classes or the labels are not what the data set must have.
    """
    if dataset == "demo":
        return _image_folder(demo.folder() / split, demo.NAME, demo.folder(), split, other_split)
    if dataset == "cifar10":
        return _cifar10(data_path, split, download)
    root = Path(data_path).expanduser()
    name = root.resolve().name
    if labels:
        source = _flat_folder(root / split, name, Path(labels).expanduser(), root / other_split)
    else:
        source = _image_folder(root / split, name, root, split, other_split)
    if dataset == "imagenet" and len(source.classes) != 1000:
        raise ValueError(
            f"--dataset imagenet expects 1000 classes, {root / split} has {len(source.classes)}; "
            "use --dataset folder for another set"
        )
    return source


def _image_folder(path: Path, name: str, root: Path, split: str, other_split: str) -> Source:
    splits = {"train": split, "val": other_split}
    if split.startswith("val") or split == "test":
        splits = {"train": other_split, "val": split}
    layout = LAYOUT.format(**splits)
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder at {root}; {layout}")
    if not path.is_dir():
        found = sorted(entry.name for entry in root.iterdir() if entry.is_dir())[:8]
        raise FileNotFoundError(
            "{} has no folder {!r} (it has: {}); {}".format(
                root, split, ", ".join(found) or "no folders", layout
            )
        )
    if not any(entry.is_dir() for entry in path.iterdir()):
        raise FileNotFoundError(
            f"{path} has no class folders; {layout}, or --val_labels FILE for validation images "
            "that lie in one folder"
        )
    try:
        folder = datasets.ImageFolder(str(path))
    except (FileNotFoundError, RuntimeError) as error:
        # Newer torchvision refuses a class folder without images, naming the classes.
        raise FileNotFoundError(f"{path} ({error}); {layout}") from error
    empty = sorted(set(folder.classes) - {folder.classes[t] for t in set(folder.targets)})
    if empty:
        raise FileNotFoundError(f"{path} has class folders without images: {empty[:5]}; {layout}")
    return Source(Files(folder.samples), folder.classes, name)


def _flat_folder(path: Path, name: str, labels: Path, train: Path) -> Source:
    if not path.is_dir():
        raise FileNotFoundError(f"no folder of images at {path}; --val_split names it")
    classes = sorted(entry.name for entry in os.scandir(str(train)) if entry.is_dir()) \
        if train.is_dir() else []
    classes = classes or synsets()
    images = sorted(
        entry.name for entry in os.scandir(str(path))
        if datasets.folder.is_image_file(entry.name) and entry.is_file()
    )
    if not images:
        raise FileNotFoundError(
            f"{path} has no images; --val_labels is for images that lie in the folder itself"
        )
    indices = read_labels(labels, images, classes)
    samples = [(str(path / image), index) for image, index in zip(images, indices)]
    return Source(Files(samples), classes, name)


def _cifar10(data_path: str, split: str, download: bool) -> Source:
    root = Path(data_path).expanduser() if data_path else cifar.default_folder()
    samples = cifar.open_cifar10(root, split == "train", download)
    return Source(samples, samples.classes, "cifar10", f"=> CIFAR-10 in {root.resolve()}")
