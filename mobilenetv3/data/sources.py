"""Where images come from: every source is a list of (image, label) with class names.

A source gives PIL images of mode RGB and integer labels; transforms and sampling do not know which
source they serve.
"""
import os
from pathlib import Path
from typing import List, NamedTuple, Sequence, Tuple

from mobilenetv3.data import (
    cifar,
    demo,
    fetch,
    filelist,
    imagefile,
    layout,
    listing,
    manifest,
    remote,
    shards,
)
from mobilenetv3.data.labels import read_labels, synsets

CIFAR10_SPLITS = ("train", "val", "test")
"""Names of its parts; the last two are one."""


class Source(NamedTuple):
    """One split of a data set."""

    samples: object
    """Sequence of (PIL image, int); one of files has `encoded` as well (see `Files`)."""
    classes: List[str]
    name: str
    """What the result table's data column says."""
    note: str = ""
    """Lines for the log; "" where the data path says it all."""


class Files:
    """Images in files: item i is (PIL image of mode RGB, int).

    Args:
        samples: (path, label) of each; a `FileList` where there may be many.
    """

    def __init__(self, samples: Sequence[Tuple[str, int]]):
        self.samples = samples

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        data, label = self.encoded(index)
        return imagefile.decode(data), label

    def encoded(self, index: int) -> Tuple[bytes, int]:
        """(content of the file, label)."""
        path, label = self.samples[index]
        return imagefile.read(path), label

    def path(self, index: int) -> str:
        """Where image i lies."""
        return self.samples[index][0]


def open_source(dataset: str, data_path: str, split: str, other_split: str = "val",
                download: bool = False, labels: str = "", shard_cache: str = "",
                shard_cache_gb: float = 0.0) -> Source:
    """Open one split of a data set.

    Args:
        dataset: "folder" (any ImageFolder), "imagenet" (one of 1,000 classes), "cifar10"
            (torchvision's files) or "demo".
        data_path: the data set's folder, or that of a set which `prepare` wrote, or a URL of one;
            not used by "demo", and for CIFAR-10 "" is a folder beside the demo set's.
        split: name of the split's folder; for CIFAR-10 "train" is the training part, "val" and
            "test" are the test part.
        other_split: the sibling split, for the layout that an error names.
        download: let torchvision fetch CIFAR-10 into data_path.
        labels: file of labels (see `labels`) for a split without class folders. The classes are
            then those of the other split's folders, or, where there are none, ImageNet's.
        shard_cache, shard_cache_gb: where shards from a URL are kept, and how many (see `remote`).

    Raises:
        FileNotFoundError: the folder is missing or not laid out as expected.
        manifest.Lost: a URL cannot be read.
        ValueError: the classes or the labels are not what the data set must have, or CIFAR-10 has
            no such split.
    """
    if dataset == "demo":
        return _image_folder(demo.NAME, demo.folder(), split, other_split)
    if dataset == "cifar10":
        return _cifar10(data_path, split, download)
    root = Path(data_path).expanduser()
    name = root.resolve().name
    where = str(root / split)
    if fetch.is_url(data_path):
        where = fetch.shown(data_path)
        found = remote.open_split(data_path, split, shard_cache, shard_cache_gb)
        source = _prepared(found, fetch.shown(data_path).rstrip("/").rpartition("/")[2], labels)
    elif manifest.is_prepared(root, split):
        source = _prepared(shards.open_split(root, split), name, labels)
    elif labels:
        source = _flat_folder(root / split, name, Path(labels).expanduser(), root / other_split)
    else:
        source = _image_folder(name, root, split, other_split)
    if dataset == "imagenet" and len(source.classes) != 1000:
        raise ValueError(
            f"--dataset imagenet expects 1000 classes, {where} has {len(source.classes)}; "
            "use --dataset folder for another set"
        )
    return source


def check_pair(train: Source, val: Source, train_split: str, val_split: str) -> Source:
    """The training set, with the notes of both.

    Raises:
        ValueError: the two do not have the same classes.
    """
    odd = layout.compare(train_split, val_split, (train.classes, val.classes),
                         (len(train.samples), len(val.samples)))
    notes = [line for text in (train.note, val.note, odd) for line in text.splitlines()]
    return train._replace(note="\n".join(dict.fromkeys(notes)))


def _image_folder(name: str, root: Path, split: str, other_split: str) -> Source:
    files, classes, notes = layout.open_folder(root, split, other_split)
    return Source(Files(files), classes, name, "\n".join(notes))


def _prepared(found: Tuple[shards.Shards, List[str], str], name: str, labels: str) -> Source:
    if labels:
        raise ValueError(f"--val_labels {labels} is for a folder of images, and {name} is a "
                         "prepared set, which has labels of its own")
    samples, classes, note = found
    return Source(samples, classes, name, note)


def _flat_folder(path: Path, name: str, labels: Path, train: Path) -> Source:
    if not path.is_dir():
        raise FileNotFoundError(f"no folder of images at {path}; --val_split names it")
    classes = sorted(entry.name for entry in os.scandir(str(train)) if entry.is_dir()) \
        if train.is_dir() else []
    classes = classes or synsets()
    images = sorted(
        entry.name for entry in os.scandir(str(path))
        if listing.is_image(entry.name) and entry.is_file()
    )
    if not images:
        raise FileNotFoundError(
            f"{path} has no images; --val_labels is for images that lie in the folder itself"
        )
    indices = read_labels(labels, images, classes)
    return Source(Files(filelist.in_one_folder(str(path), images, indices)), classes, name)


def _cifar10(data_path: str, split: str, download: bool) -> Source:
    root = Path(data_path).expanduser() if data_path else cifar.default_folder()
    if split not in CIFAR10_SPLITS:  # "training", say, is not to be the test part
        raise ValueError(f"CIFAR-10 has no split {split!r}; --train_split and --val_split can be "
                         f"{', '.join(CIFAR10_SPLITS[:-1])} or {CIFAR10_SPLITS[-1]}")
    samples = cifar.open_cifar10(root, split == "train", download)
    return Source(samples, samples.classes, "cifar10", f"=> CIFAR-10 in {root.resolve()}")
