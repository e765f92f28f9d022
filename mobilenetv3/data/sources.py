"""Where images come from: every source is a list of (image, label) with class names.

A source gives PIL images of mode RGB and integer labels; transforms and sampling do not know which
source they serve.
"""
from pathlib import Path
from typing import List, NamedTuple

from torchvision import datasets

from mobilenetv3.data import demo

LAYOUT = "expected DIR/{train}/CLASS/*.jpg and DIR/{val}/CLASS/*.jpg"


class Source(NamedTuple):
    """One split of a data set."""

    samples: object
    """Sequence of (PIL image, int)."""
    classes: List[str]
    name: str
    """What the result table's data column says."""


def open_source(dataset: str, data_path: str, split: str, other_split: str = "val",
                download: bool = False) -> Source:
    """Open one split of a data set.

    Args:
        dataset: "folder" (any ImageFolder), "imagenet" (one of 1,000 classes), "cifar10"
            (torchvision's files) or "demo".
        data_path: the data set's folder; not used by "demo".
        split: name of the split's folder; for CIFAR-10 "train" is the training part and any other
            name the test part.
        other_split: the sibling split, for the layout that an error names.
        download: let torchvision fetch CIFAR-10 into data_path.

    Raises:
        FileNotFoundError: the folder is missing or not laid out as expected.
        ValueError: the classes are not what the data set must have.
    """
    if dataset == "demo":
        return _image_folder(demo.folder() / split, demo.NAME, demo.folder(), split, other_split)
    if dataset == "cifar10":
        return _cifar10(data_path, split, download)
    root = Path(data_path).expanduser()
    source = _image_folder(root / split, root.resolve().name, root, split, other_split)
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
        raise FileNotFoundError(f"{path} has no class folders; {layout}")
    try:
        samples = datasets.ImageFolder(str(path))
    except (FileNotFoundError, RuntimeError) as error:
        # Newer torchvision refuses a class folder without images, naming the classes.
        raise FileNotFoundError(f"{path} ({error}); {layout}") from error
    empty = sorted(set(samples.classes) - {samples.classes[t] for t in set(samples.targets)})
    if empty:
        raise FileNotFoundError(f"{path} has class folders without images: {empty[:5]}; {layout}")
    return Source(samples, samples.classes, name)


def _cifar10(data_path: str, split: str, download: bool) -> Source:
    root = Path(data_path).expanduser()
    try:
        samples = datasets.CIFAR10(str(root), train=split == "train", download=download)
    except RuntimeError as error:
        raise FileNotFoundError(
            f"no CIFAR-10 in {root}; expected torchvision's folder cifar-10-batches-py there, or "
            f"add --dataset_download ({str(error).splitlines()[0]})"
        ) from error
    return Source(samples, samples.classes, "cifar10")
