"""What a scan of a set finds, kept so that a set of any size fits: 100 bytes an image, and the bad.

Of what may be found a million times, the first few are kept, and the number of all.
"""
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from mobilenetv3.data import filelist, listing
from mobilenetv3.data.filelist import FileList
from mobilenetv3.data.scan import Facts

SIDES = (32, 64, 128, 224, 256, 384, 512, 768, 1024, 2048)
"""Shorter sides in pixels at which a row of the table ends and the next begins."""
MOST_GROUPS = 1000
"""Groups of equal files that are listed."""


class Few:
    """The first of many, and their number."""

    MOST = 20

    def __init__(self):
        self.count, self.first = 0, []

    def add(self, things: Iterable[Any]) -> None:
        for thing in things:
            self.count += 1
            if len(self.first) < self.MOST:
                self.first.append(thing)


class Split:
    """One split: its files, and what was found in them.

    Args:
        folder: the split's folder; its folders are the classes. Without any, the images that lie
            in it are scanned as of no class.
    """

    def __init__(self, name: str, folder: Path):
        self.name, self.folder = name, folder
        self.others, self.beside = Few(), Few()
        """Files that are not images by their names; images that belong to no class."""
        found = listing.flat(str(folder), self._noting_others())
        self.classes = listing.classes(found)
        self.is_flat = not self.classes
        if self.is_flat:
            images = listing.read_folder(str(folder), "").images
            found = filelist.in_one_folder(str(folder), images, [0] * len(images))
        self.files: FileList = found
        self.digests = np.zeros((len(found), 2), np.uint64)
        self.bad: Dict[int, str] = {}
        self.sides: Dict[int, int] = Counter()
        self.remarks: Dict[str, Few] = {}

    def _noting_others(self) -> Iterator[Tuple[int, listing.Folder]]:
        for label, folder in listing.walk(str(self.folder)):
            above = self.folder / folder.path
            self.others.add(str(above / name) for name in folder.others)
            if label < 0 and folder.folders:
                self.beside.add(str(above / name) for name in folder.images)
            yield label, folder

    def add(self, facts: Facts) -> None:
        """Take in what one file is."""
        if facts.reason:
            self.bad[facts.index] = sys.intern(facts.reason)  # most are alike
            return
        self.digests[facts.index] = np.frombuffer(facts.digest, np.uint64)
        self.sides[int(np.searchsorted(SIDES, facts.side, "right"))] += 1
        for remark in facts.remarks:
            self.remarks.setdefault(remark, Few()).add([self.files.path(facts.index)])

    @property
    def empty_classes(self) -> List[str]:
        """Classes without a file that is an image by its name."""
        counts = np.bincount(self.files.parts.labels, minlength=len(self.classes))
        return [name for name, count in zip(self.classes, counts) if not count]

    def bad_files(self) -> Iterator[Tuple[str, str]]:
        """(path, reason) of each bad file, in the order of the list."""
        return ((self.files.path(index), self.bad[index]) for index in sorted(self.bad))


class Equal(NamedTuple):
    """Files with the same content."""

    across: "Groups"
    """In two splits: what is validated was trained on."""
    classes: "Groups"
    """In several classes of one split: one of the labels is wrong."""
    same: "Groups"
    """In one class."""


class Groups:
    """Groups of equal files."""

    def __init__(self):
        self.count = self.files = 0
        self.first: List[List[str]] = []

    def add(self, splits: Sequence[Split], members: np.ndarray, starts: np.ndarray) -> None:
        self.count += 1
        self.files += len(members)
        if len(self.first) < MOST_GROUPS:
            owners = starts.searchsorted(members, "right") - 1
            self.first.append([splits[owner].files.path(index - starts[owner])
                               for owner, index in zip(owners[: Few.MOST], members)])


def equal_files(splits: Sequence[Split]) -> Equal:
    """Files of the same content, bad ones aside."""
    found = Equal(Groups(), Groups(), Groups())
    starts = filelist.edges([len(split.files) for split in splits])[:-1]
    digests = np.concatenate([split.digests for split in splits])
    is_good = np.ones(len(digests), bool)
    for split, start in zip(splits, starts):
        is_good[[start + index for index in split.bad]] = False
    numbers = np.flatnonzero(is_good)
    digests = digests[numbers]
    order = np.lexsort((numbers, digests[:, 1], digests[:, 0]))
    numbers, digests = numbers[order], digests[order]
    is_first = np.ones(len(numbers) + 1, bool)  # of its group; and one behind the last
    is_first[1:-1] = (digests[1:] != digests[:-1]).any(1)
    begins = np.flatnonzero(is_first)
    labels = np.concatenate([split.files.parts.labels for split in splits])
    for begin, end in zip(begins[:-1], begins[1:]):
        if end - begin > 1:
            members = numbers[begin:end]
            owners = starts.searchsorted(members, "right")
            kind = found.across if owners[0] != owners[-1] else (
                found.same if (labels[members] == labels[members[0]]).all() else found.classes)
            kind.add(splits, members, starts)
    return found


def only_here(splits: Sequence[Split]) -> Dict[str, List[str]]:
    """Classes of one split alone, by the split's name; splits without class folders have none."""
    known = [split for split in splits if not split.is_flat]
    if len(known) < 2:
        return {}
    return {split.name: sorted(set(split.classes).difference(*(
        other.classes for other in known if other is not split))) for split in known}


def missing_here(splits: Sequence[Split]) -> Dict[str, List[str]]:
    """Classes that several others have and this split has not, by the split's name.

    What a single split has is told by `only_here`.
    """
    known = [split for split in splits if not split.is_flat]
    counts = Counter(name for split in known for name in split.classes)
    shared = {name for name, count in counts.items() if count > 1}
    return {split.name: sorted(shared.difference(split.classes)) for split in known}
