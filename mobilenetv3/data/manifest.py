"""What a prepared set consists of: its files, its manifest and its index.

    DST/manifest.json         splits, classes, shards with size and SHA-256, what was left out
    DST/train-000000.tar ...  uncompressed tar files of KEY.jpg, KEY.json, KEY.cls (WebDataset's)
    DST/train.index.npy       a row a sample: its shard and place there, its class, its checksum

A manifest may come from anywhere. Nothing that it names lies outside of its folder, and no row of
an index outside of its shard; what does not keep to that is refused before an image is read.
"""
import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

import numpy as np

NAME = "manifest.json"
FORMAT = "mobilenetv3-shards"
VERSION = 1
UNFINISHED = ".prepare"
"""Folder of a set that is still being written; see `writer`."""

BLOCK = 512
"""Bytes that tar works in: a header takes one, and content is filled up to a multiple."""
ROW = np.dtype([
    ("offset", "<u8"), ("length", "<u4"), ("shard", "<u4"), ("label", "<u4"), ("crc", "<u4"),
])
"""A sample: where the content of KEY.jpg begins in its shard, its bytes, the number of the shard,
the index of the class, CRC-32 of the content."""

_SAFE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,126}")
_MAX_SHARD = 1 << 40
MAX_BYTES = 1 << 25
"""Of a manifest; a set of 20,000 classes and as many shards has a fifth of it."""


class Lost(RuntimeError):
    """A file of the set cannot be had. That is no image's fault: none is put in another's place."""

    is_theirs = True  # told in one sentence


class File(NamedTuple):
    """A file beside the manifest."""

    name: str
    bytes: int
    sha256: str
    images: int


class Split(NamedTuple):
    """One split of a prepared set."""

    name: str
    classes: List[str]
    images: int
    index: File
    shards: List[File]
    """In the order of the index's rows."""


class Manifest(NamedTuple):
    """A checked manifest."""

    arguments: Dict[str, Any]
    """How the set was made; `prepare` compares, nothing else looks at them."""
    splits: Dict[str, Split]


def is_safe(name: Any) -> bool:
    """Whether a name is that of a file in the folder itself: no separators, no leading dot."""
    return isinstance(name, str) and _SAFE.fullmatch(name) is not None


def is_prepared(root: Path, split: str) -> bool:
    """Whether a folder holds a prepared set, finished or not, rather than folders of images."""
    is_ours = (root / NAME).is_file() or (root / UNFINISHED).is_dir()
    return is_ours and not (root / split).is_dir()


def read(root: Path) -> Manifest:
    """The manifest of a prepared set in a folder.

    Raises:
        ValueError: it is not one; FileNotFoundError: there is none.
    """
    path = root / NAME
    if not path.is_file():
        if (root / UNFINISHED).is_dir():
            raise FileNotFoundError(
                f"the set in {root} is not finished; start the same python -m "
                "mobilenetv3.data.prepare again, and it goes on"
            )
        raise FileNotFoundError(f"no {NAME} in {root}: it is no prepared set")
    with open(str(path), "rb") as file:
        return parse(file.read(MAX_BYTES + 1), str(path))


def parse(data: bytes, where: str) -> Manifest:
    """Check the content of a manifest; where names it in errors.

    Raises:
        ValueError: naming what is not as it must be.
    """
    if len(data) > MAX_BYTES:
        raise ValueError(f"{where} has more than {MAX_BYTES} bytes; it is no manifest")
    try:
        content = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is damaged: it is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{where} is not of a set that mobilenetv3.data.prepare wrote")
    if content.get("version") != VERSION:
        raise ValueError(
            f"{where} is of version {content.get('version')!r}, and this package reads {VERSION}"
        )
    try:
        found = Manifest(
            _typed(content["arguments"], dict),
            {name: _split(name, split) for name, split in _typed(content["splits"], dict).items()},
        )
    except KeyError as error:
        raise ValueError(f"{where} lacks {error}") from error
    except _Wrong as error:
        raise ValueError(f"{where}: {error}") from error
    names = [file.name for split in found.splits.values() for file in [split.index, *split.shards]]
    if len(set(names)) != len(names):
        raise ValueError(f"{where} names a file twice")
    return found


class _Wrong(Exception):
    """A part of a manifest is not what it must be."""


def _typed(value: Any, kind: type) -> Any:
    if not isinstance(value, kind) or isinstance(value, bool):
        raise _Wrong(f"expected {kind.__name__}, found {str(value)[:80]!r}")
    return value


def _split(name: str, content: Any) -> Split:
    _typed(content, dict)
    if not is_safe(name):
        raise _Wrong(f"{name[:80]!r} is no name of a split")
    classes = [_typed(item, str) for item in _typed(content["classes"], list)]
    if len(set(classes)) != len(classes):
        raise _Wrong(f"split {name} has a class twice")
    shards = [_file(shard) for shard in _typed(content["shards"], list)]
    images, index = _typed(content["images"], int), _file(content["index"])
    if not (0 < images == sum(shard.images for shard in shards) == index.images):
        raise _Wrong(f"split {name} has {images} images, and its files have others")
    if not all(shard.images for shard in shards):
        raise _Wrong(f"split {name} has a shard without images")
    return Split(name, classes, images, index, shards)


def _file(content: Any) -> File:
    _typed(content, dict)
    name, digest = content["name"], _typed(content["sha256"], str)
    size, images = _typed(content["bytes"], int), _typed(content["images"], int)
    if not is_safe(name):
        raise _Wrong(f"{str(name)[:80]!r} is not the name of a file in the set's own folder")
    if not (0 < size <= _MAX_SHARD and images >= 0 and re.fullmatch("[0-9a-f]{64}", digest)):
        raise _Wrong(f"size or sha256 of {name} cannot be")
    return File(name, size, digest, images)


def choose(found: Manifest, split: str, where: str) -> Split:
    """A split by its name.

    Raises:
        FileNotFoundError: there is none of that name.
    """
    if split not in found.splits:
        raise FileNotFoundError(
            f"{where} has no split {split!r} (it has: {', '.join(found.splits) or 'none'}); "
            "--train_split and --val_split name them"
        )
    return found.splits[split]


def map_index(path: str) -> np.ndarray:
    """The rows of an index as they lie on the disk, shared by all processes that read them.

    Raises:
        ValueError: the file is no index.
    """
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, SyntaxError, EOFError, OverflowError, MemoryError) as error:
        raise ValueError(f"{path} is damaged: no array of numpy ({error})") from error
    if rows.dtype != ROW or rows.ndim != 1:
        raise ValueError(f"{path} is damaged: not the columns of an index")
    return rows


def check_index(rows: np.ndarray, split: Split, where: str) -> None:
    """Refuse rows that lead outside of their shard, or that the manifest does not agree with.

    Raises:
        ValueError: naming the first such row.
    """
    if len(rows) != split.images:
        raise ValueError(f"{where} has {len(rows)} rows, the manifest has {split.images} images")
    numbers = np.asarray(rows["shard"])
    if numbers.max() >= len(split.shards) or (np.diff(numbers.astype(np.int64)) < 0).any() or (
            np.bincount(numbers) != [shard.images for shard in split.shards]).any():
        raise ValueError(f"{where} does not have the shards of the manifest")
    sizes = np.array([shard.bytes for shard in split.shards], np.uint64)[numbers]
    offset, length = rows["offset"], rows["length"].astype(np.uint64)
    # Compared before they are added: what comes from a file may be more than the sum can hold.
    bad = (offset < BLOCK) | (offset > sizes) | (length == 0) | (length > sizes)
    bad |= ~bad & (offset + length > sizes)
    bad |= rows["label"] >= len(split.classes)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{where}: row {row} is outside of its shard, or of the classes: {rows[row].tolist()}"
        )


def sha256(path: str, progress=None) -> str:
    """SHA-256 of a file; progress(bytes) is told what has been read."""
    digest = hashlib.sha256()
    with open(path, "rb", buffering=0) as file:
        for part in iter(lambda: file.read(1 << 20), b""):
            digest.update(part)
            if progress is not None:
                progress(len(part))
    return digest.hexdigest()


def damage(root: Path, file: File, deep: bool, progress=None) -> Optional[str]:
    """What is wrong with a file of a prepared set, None where nothing is.

    Args:
        deep: read all of it and compare the checksum, too.
    """
    path = str(root / file.name)
    try:
        size = os.stat(path).st_size
        if size != file.bytes:
            return f"{path} has {size} bytes, and should have {file.bytes}"
        if deep and sha256(path, progress) != file.sha256:
            return f"{path} is damaged: its SHA-256 is not the manifest's"
    except FileNotFoundError:
        return f"{path} is missing"
    except OSError as error:
        return f"{path} cannot be read ({error.strerror or error})"
    return None
