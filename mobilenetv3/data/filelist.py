"""A million image files in a handful of arrays, which processes share.

As a Python list of (path, label) ImageNet takes 200 MB, and every loader process comes to own a
copy: to look at an object is to change its reference count, and with it the page it lies in. Arrays
hold no counts. Forked processes share them; where they lie in a file, all processes of a host do.
"""
import hashlib
import json
import operator
import os
from collections.abc import Sequence
from typing import BinaryIO, List, NamedTuple, Tuple

import numpy as np

MAGIC, SUFFIX = b"mobilenetv3 list 1\n", ".list1"
"""How a file begins, and how its name ends; the number changes with the form."""
_ALIGNED = 64


class Parts(NamedTuple):
    """N files in F folders. Text is bytes, as the file system has it, one name after the other."""

    names: np.ndarray
    """uint8: the file names."""
    name_edges: np.ndarray
    """int64 (N + 1): where each name begins, and where the last one ends."""
    folders: np.ndarray
    """uint8: the folders' paths below the root; the first is "", the root itself."""
    folder_edges: np.ndarray
    """int64 (F + 1)."""
    starts: np.ndarray
    """int64 (F): the first file of each folder; files of a folder stand together."""
    labels: np.ndarray
    """int32 (N): each file's class."""
    stamps: np.ndarray
    """int64 (F, 2): times of the folders' last changes, mtime and ctime, in ns."""


_TYPES = Parts("|u1", "<i8", "|u1", "<i8", "<i8", "<i4", "<i8")


class Unusable(ValueError):
    """A file that holds no list, or not the one that is looked for."""


class FileList(Sequence):
    """(path, label) of each image, made up as it is asked for.

    Args:
        root: the folder that the paths begin with.
        parts: the arrays.
        file: where the arrays are mapped from; then the list crosses to another process by the
            file's name. "" for arrays of this process's own memory.
    """

    def __init__(self, root: str, parts: Parts, file: str = ""):
        self.root, self.parts, self.file = root, parts, file

    def __len__(self) -> int:
        return len(self.parts.labels)

    def __getitem__(self, index: int) -> Tuple[str, int]:
        index = self._checked(index)
        return self.path(index), int(self.parts.labels[index])

    def path(self, index: int) -> str:
        """The path of a file."""
        index, parts = self._checked(index), self.parts
        # Of folders without files, which begin where the next one does, the last is the owner.
        folder = int(parts.starts.searchsorted(index, "right")) - 1
        name = _text(parts.names, parts.name_edges, index)
        return os.path.join(self.root, self.folder(folder), name)

    def folder(self, number: int) -> str:
        """The path of a folder below the root; of number 0, the root itself, it is ""."""
        return _text(self.parts.folders, self.parts.folder_edges, number)

    @property
    def folders(self) -> int:
        """The number of folders, the root among them."""
        return len(self.parts.starts)

    def _checked(self, index: int) -> int:
        index = operator.index(index)
        if not -len(self) <= index < len(self):
            raise IndexError(f"file {index} of {len(self)}")
        return index % len(self)

    def __reduce__(self):
        if self.file and os.path.exists(self.file):  # else another process has dropped it
            return _reopen, (self.file, self.root)
        return FileList, (self.root, self.parts)


def _text(letters: np.ndarray, edges: np.ndarray, index: int) -> str:
    return os.fsdecode(letters[edges[index] : edges[index + 1]].tobytes())


def pack(names: List[str]) -> Tuple[np.ndarray, np.ndarray]:
    """Names as uint8 letters and int64 lengths."""
    joined = np.frombuffer(os.fsencode("\0".join([*names, ""])), np.uint8)
    lengths = np.diff(np.flatnonzero(joined == 0), prepend=-1) - 1
    return joined[joined != 0], lengths.astype(np.int64)


def edges(lengths: np.ndarray) -> np.ndarray:
    """Where things that stand one after the other begin, and where the last one ends."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def in_one_folder(root: str, names: List[str], labels: List[int]) -> FileList:
    """A list of files that lie in the root itself."""
    letters, lengths = pack(names)
    parts = (letters, edges(lengths), np.empty(0), [0, 0], [0], labels, [[0, 0]])
    return FileList(root, Parts(*(np.asarray(part, kind) for part, kind in zip(parts, _TYPES))))


# ------------------------------------------------------------------------------------- in a file


def write(files: FileList, of: str, file: BinaryIO) -> None:
    """Write a list: the magic line, the header's length (8 bytes), the header (JSON), the arrays.

    Args:
        of: what the list is of, which `read` compares.
    """
    parts = [np.ascontiguousarray(part, kind) for part, kind in zip(files.parts, _TYPES)]
    header = json.dumps({"of": of, "shapes": [part.shape for part in parts]}).encode()
    before = len(MAGIC) + 8 + len(header)
    header += b" " * (-before % _ALIGNED)
    file.write(MAGIC + len(header).to_bytes(8, "little") + header)
    for part in parts:
        file.write(part.tobytes())
        file.write(b"\0" * (-part.nbytes % _ALIGNED))


def digest(data) -> str:
    """What the name of a list's file ends with."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def read(path: str, root: str, of: str = "") -> FileList:
    """Map a list's file.

    Args:
        path: NAME-DIGEST.list1, as `listing` names it.
        root: the folder that the list's paths are to begin with.
        of: what the list must be of; "" for anything.

    Raises:
        OSError: it cannot be read.
        Unusable: it is damaged, of another form, or of something else.
    """
    try:
        data = np.asarray(np.memmap(path, np.uint8, "r"))
    except ValueError as error:  # an empty file cannot be mapped
        raise Unusable(f"{path} is empty") from error
    if data[: len(MAGIC)].tobytes() != MAGIC:
        raise Unusable(f"{path} is no list of this form")
    if digest(data) not in os.path.basename(path):
        raise Unusable(f"{path} is damaged")
    try:
        found, parts = _parse(data)
    except (ValueError, KeyError, TypeError) as error:
        raise Unusable(f"{path} is no list ({error})") from error
    if of and found != of:
        raise Unusable(f"{path} is a list of {found!r}")
    return FileList(root, parts, path)


def _reopen(path: str, root: str) -> FileList:
    """`read` for a process that another one has sent the list to."""
    try:
        return read(path, root)
    except (OSError, Unusable) as error:
        raise OSError(f"the list of the images of {root} was dropped from the cache while the "
                      "processes that read them were started; start again") from error


def _parse(data: np.ndarray) -> Tuple[str, Parts]:
    begin = len(MAGIC) + 8
    end = begin + int.from_bytes(data[len(MAGIC) : begin].tobytes(), "little")
    header = json.loads(data[begin:end].tobytes())
    parts = []
    for kind, shape in zip(_TYPES, header["shapes"]):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        parts.append(data[end : end + size].view(kind).reshape(shape))
        end += size + -size % _ALIGNED
    return header["of"], Parts(*parts)
