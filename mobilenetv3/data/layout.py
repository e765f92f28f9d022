"""An image folder laid out as expected, or what is wrong with it, in one sentence.

An error is what would make training learn something else than its user means, or nothing. What may
be meant, and only looks odd, is a note for the log.
"""
import itertools
import os
from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np

from mobilenetv3.data import listing
from mobilenetv3.data.filelist import FileList
from mobilenetv3.text import printable

LAYOUT = "expected DIR/{train}/CLASS/*.jpg and DIR/{val}/CLASS/*.jpg"
_SHOWN = 5
_TRIED = 20
"""Folders, and entries of a folder, that are looked at for images where the layout is not known."""


def open_folder(root: Path, split: str, other_split: str) -> Tuple[FileList, List[str], List[str]]:
    """The images of a split, the names of their classes, and notes.

    Args:
        root: the folder of the splits.
        other_split: the sibling, for the layout that an error names.

    Raises:
        FileNotFoundError: something is missing.
        ValueError: the folders are not what they are taken for.
    """
    layout = expected(split, other_split)
    path = root / split
    _require_split(root, split, other_split, layout)
    top = listing.read_folder(str(path), "")
    if not top.folders:
        raise FileNotFoundError(
            f"{path} has no class folders; {layout}, or --val_labels FILE for validation images "
            "that lie in one folder"
        )
    files = listing.list_images(str(path))
    classes = listing.classes(files)
    images, inner = _direct(files)
    if len(classes) == 1 and not images and inner > 1:
        raise ValueError(
            f"{path} has one folder, {some(classes)}, and the {inner} class folders in that, one "
            f"level too deep: move them up; {layout}"
        )
    counts = np.bincount(files.parts.labels, minlength=len(classes))
    empty = [classes[label] for label in np.flatnonzero(counts == 0)]
    if empty:
        raise FileNotFoundError(
            f"{path} has class folders without images: {some(empty)}; {layout}")
    if len(classes) == 1:
        raise ValueError(
            f"{path} has images of one class alone, {some(classes)}, and there is nothing to tell "
            f"apart; {layout}"
        )
    notes, shown = [], printable(path)
    if top.images:
        notes.append(f"=> {shown}: {len(top.images)} images beside the class folders are not used")
    if not images:
        notes.append(
            f"=> {shown}: its {len(classes)} folders are the classes ({some(classes)}), not the "
            f"{inner} folders in them, where all images lie"
        )
    return files, classes, notes


def expected(split: str, other_split: str) -> str:
    """How the folders of a set are to lie."""
    if split.startswith("val") or split == "test":
        return LAYOUT.format(train=other_split, val=split)
    return LAYOUT.format(train=split, val=other_split)


def some(names: Sequence[str]) -> str:
    """The first few names, fit for a line of the log."""
    return ", ".join(map(printable, names[:_SHOWN])) + (", ..." if len(names) > _SHOWN else "")


def _require_split(root: Path, split: str, other_split: str, layout: str) -> None:
    path = root / split
    if path.is_dir():
        return
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder at {root}; {layout}")
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    with_images = [name for name in folders[:_TRIED] if _has_images(root / name)]
    if with_images and not (root / other_split).is_dir() and split != other_split:
        whole = Path(os.path.abspath(str(root)))
        is_split = whole.name in (split, other_split) or (whole.parent / split).is_dir()
        above = f", {whole.parent}" if is_split else ""
        raise FileNotFoundError(
            f"{root} has class folders ({some(with_images)}) and no folder {split!r}: it is a "
            f"split itself, and the data path is the folder above it{above}; {layout}"
        )
    raise FileNotFoundError(
        f"{root} has no folder {split!r} (it has: {', '.join(folders[:8]) or 'no folders'}); "
        f"{layout}"
    )


def _has_images(folder: Path) -> bool:
    with os.scandir(str(folder)) as entries:
        return any(listing.is_image(entry.name) for entry in itertools.islice(entries, _TRIED))


def _direct(files: FileList) -> Tuple[int, int]:
    """Images directly in class folders, and deeper folders with images."""
    counts = np.diff(files.parts.starts, append=len(files)).tolist()
    images = inner = 0
    for number, count in enumerate(counts):
        if os.sep in files.folder(number):
            inner += bool(count)
        else:
            images += count
    return images, inner


def compare(train_split: str, val_split: str, classes: Sequence[Sequence[str]],
            images: Sequence[int]) -> str:
    """A note on two splits that look odd beside each other; "" for none.

    Args:
        classes: the names of both splits' classes.
        images: numbers of images of both splits.

    Raises:
        ValueError: their classes differ, so that the labels of one mean others in the other.
    """
    train, val = map(set, classes)
    if list(classes[0]) != list(classes[1]):
        only = [(train_split, sorted(train - val)), (val_split, sorted(val - train))]
        said = [f"only {name} has {len(own)} ({some(own)})" for name, own in only if own]
        raise ValueError(
            f"{train_split} and {val_split} must have the same classes; "
            f"{', '.join(said) or 'they are in another order'}"
        )
    if images[1] > images[0]:
        return (f"=> {val_split} has more images ({images[1]}) than {train_split} ({images[0]}): "
                "if they are swapped, --train_split and --val_split name them")
    return ""
