"""Images in the shards of a prepared set, each to be had at once by its number.

A sample is read where the index says, by one read of the open tar file; no tar file is unpacked or
walked through. What was read is compared with the checksum in the index, so that a damaged image is
an error rather than a picture of something else.
"""
import collections
import json
import os
import tarfile
import threading
import zlib
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from mobilenetv3.data import imagefile, manifest
from mobilenetv3.text import printable

OPEN_FILES = 128
"""Shards that a process keeps open; a window of `samplers` has fewer, unless shards are tiny."""


class Folder:
    """Shards that lie in a folder.

    Args:
        root: with the manifest in it.
    """

    def __init__(self, root: Path):
        self.root = root

    def open(self, shard: manifest.File) -> int:
        """A file descriptor of the shard.

        Raises:
            OSError: it cannot be opened now.
            manifest.Lost: it is gone, and the rest of the set is not.
        """
        try:
            return os.open(str(self.root / shard.name), os.O_RDONLY)
        except FileNotFoundError as error:
            if not (self.root / manifest.NAME).is_file():
                raise  # all of it is away, and may come back
            raise manifest.Lost(f"{self.root / shard.name} is gone") from error

    def fetch_ahead(self, shards: Sequence[manifest.File]) -> None:
        """These will be read soon; they are here already."""

    def renew(self, shard: manifest.File) -> bool:
        """Whether a damaged shard has been replaced by a good one: there is none."""
        return False


class Shards:
    """The samples of one split: item i is (PIL image of mode RGB, int).

    It can be pickled, and inherited by a forked process: each process opens files of its own. The
    index is mapped from the disk, so that processes share it.

    Args:
        place: `Folder`, or `remote.Cache`: where shards are.
        split: of the manifest.
        index: path of the checked index.
    """

    advice = "python -m mobilenetv3.data.prepare --verify DST tells which files are damaged"
    """What to do about an image that cannot be read."""

    def __init__(self, place: Any, split: manifest.Split, index: str):
        self.place, self.split, self.index = place, split, index
        self._start()

    def _start(self):
        self._rows = manifest.map_index(self.index)
        self._open = collections.OrderedDict()  # shard's number: descriptor; the last used last
        self._lock = threading.Lock()

    def __getstate__(self):
        return self.place, self.split, self.index

    def __setstate__(self, state):
        self.place, self.split, self.index = state
        self._start()

    def __del__(self):
        for descriptor in getattr(self, "_open", {}).values():
            os.close(descriptor)

    def __len__(self):
        return self.split.images

    def __getitem__(self, index):
        data, label = self.encoded(index)
        return imagefile.decode(data), label

    def encoded(self, index: int) -> Tuple[bytes, int]:
        """(the JPEG, label).

        Raises:
            imagefile.BadImage: it is not what was written; `path` tells where it is.
            OSError: it cannot be read now.
            manifest.Lost: its shard is gone.
        """
        offset, length, shard, label, crc = self._rows[index].item()
        data = self._read(shard, offset, length)
        if zlib.crc32(data) != crc and self._is_renewed(shard):
            data = self._read(shard, offset, length)
        if len(data) != length:
            raise imagefile.BadImage("damaged: the shard ends before the image does")
        if zlib.crc32(data) != crc:
            raise imagefile.BadImage("damaged: its checksum is not the one in the index")
        return data, label

    def _is_renewed(self, number: int) -> bool:
        """Whether a shard was damaged where it lies, and has been fetched anew."""
        is_new = self.place.renew(self.split.shards[number])
        if is_new:
            with self._lock:
                if number in self._open:
                    os.close(self._open.pop(number))
        return is_new

    def path(self, index: int) -> str:
        """Where a sample is, for people: shard, key, and the path that the image once had."""
        shard = self.split.shards[self._rows["shard"][index]]
        key, original = self._member(index)
        origin = f" (was {original})" if original else ""
        return f"{self.place.root / shard.name}: {key}{origin}"

    @property
    def shard_sizes(self) -> List[int]:
        """Samples in each shard; those of a shard lie side by side, in the order of the index."""
        return [shard.images for shard in self.split.shards]

    def fetch_ahead(self, numbers: Sequence[int]) -> None:
        """Tell that the shards of these numbers will be read next."""
        self.place.fetch_ahead([self.split.shards[number] for number in numbers])

    def _read(self, number: int, offset: int, length: int) -> bytes:
        with self._lock:
            descriptor = self._descriptor(number)
            try:
                data = os.pread(descriptor, length, offset)
                while 0 < len(data) < length:  # a signal, or a file system over a network
                    more = os.pread(descriptor, length - len(data), offset + len(data))
                    if not more:
                        break
                    data += more
            except OSError:
                # Of a file system that went away and came back: the next try opens the file anew.
                os.close(self._open.pop(number))
                raise
        return data

    def _descriptor(self, number: int) -> int:
        """The open file of a shard; the caller holds the lock."""
        if number in self._open:
            self._open.move_to_end(number)
            return self._open[number]
        shard = self.split.shards[number]
        descriptor = self.place.open(shard)
        size = os.fstat(descriptor).st_size
        if size != shard.bytes:
            os.close(descriptor)
            path = self.place.root / shard.name
            raise manifest.Lost(f"{path} has {size} bytes by now, and should have {shard.bytes}")
        # A shard that gave way to others in its cache takes its room until it is closed.
        for other in [key for key, file in self._open.items() if not os.fstat(file).st_nlink]:
            os.close(self._open.pop(other))
        if len(self._open) >= OPEN_FILES:
            os.close(self._open.popitem(last=False)[1])
        self._open[number] = descriptor
        return descriptor

    def _member(self, index: int) -> Tuple[str, Optional[str]]:
        """Key and original path of a sample, as far as its shard can still tell."""
        offset, length, shard, _, _ = self._rows[index].item()
        key = f"sample {index}"
        try:
            head = tarfile.TarInfo.frombuf(
                self._read(shard, offset - manifest.BLOCK, manifest.BLOCK), "utf-8", "replace")
            key = os.path.splitext(head.name)[0]
            start = offset + -(-length // manifest.BLOCK) * manifest.BLOCK
            about = tarfile.TarInfo.frombuf(
                self._read(shard, start, manifest.BLOCK), "utf-8", "replace")
            text = self._read(shard, start + manifest.BLOCK, min(about.size, 1 << 16))
            return printable(key), printable(json.loads(text.decode("utf-8"))["path"])
        except (OSError, manifest.Lost, ValueError, KeyError, TypeError, tarfile.TarError):
            return printable(key), None


def open_split(root: Path, split: str) -> Tuple[Shards, List[str], str]:
    """Open one split of the prepared set in a folder.

    Returns:
        its samples, its classes, and a line for the log.

    Raises:
        FileNotFoundError, ValueError: a file is missing, or is not what the manifest says.
    """
    chosen = manifest.choose(manifest.read(root), split, str(root))
    check(root, chosen)
    samples = Shards(Folder(root), chosen, str(root / chosen.index.name))
    return samples, chosen.classes, describe(chosen)


def check(root: Path, split: manifest.Split, shards: bool = True) -> None:
    """See to it that a split's index can be trusted, and that its shards have their sizes.

    Raises:
        ValueError: naming the file and what is wrong with it.
    """
    wrong = manifest.damage(root, split.index, deep=True)
    for shard in split.shards if shards else ():
        wrong = wrong or manifest.damage(root, shard, deep=False)
    if wrong:
        raise ValueError(
            f"{wrong}; python -m mobilenetv3.data.prepare --verify {root} looks at all files"
        )
    path = str(root / split.index.name)
    manifest.check_index(manifest.map_index(path), split, path)


def describe(split: manifest.Split) -> str:
    """A line for the log."""
    size = sum(shard.bytes for shard in split.shards)
    shown = f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
    return f"=> {split.name}: {split.images:,} images in {len(split.shards)} shards ({shown})"
