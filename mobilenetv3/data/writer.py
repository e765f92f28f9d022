"""Writing shards: in which order, each image how large, and how a killed writer goes on.

Loader processes read and resize, in the order of the shards; this process alone writes. So the
bytes do not depend on the number of processes. A finished shard has a record in the folder
`manifest.UNFINISHED`; whoever goes on trusts the shards that have one, without a gap from the
first, and writes the rest anew.
"""
import contextlib
import hashlib
import io
import json
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Tuple

import numpy as np
from tqdm import tqdm

from mobilenetv3.data import manifest, shrink
from mobilenetv3.data.patience import Away
from mobilenetv3.files import write_atomically

_END = 20 * manifest.BLOCK
"""Tar files are filled up to a multiple of this."""


class _Nothing(Exception):
    """No image was left to write."""


class SplitWriter:
    """Writes the shards of one split, or the rest of them.

    Args:
        folder: of the set.
        name: of the split.
        samples: `sources.Files`.
        root: the source's folder, to which paths are relative.
        is_shuffled: shuffle the images once, so that every shard is a mixture.
        size, quality: see `shrink.as_jpeg`.
        shard_bytes: a shard ends with the image that brings it there.
    """

    def __init__(self, folder: Path, name: str, samples, root: str, *, is_shuffled: bool,
                 size: int, quality: int, shard_bytes: int):
        self.folder, self.name, self.shard_bytes = folder, name, shard_bytes
        self.records = folder / manifest.UNFINISHED
        sequence = shrink.order(len(samples), is_shuffled)
        self.queue = shrink.Images(samples, root, sequence, size, quality)
        self.done = self._finished()

    @property
    def place(self) -> int:
        """Images that need not be looked at any more."""
        return self.done[-1]["end"] if self.done else 0

    def write(self, workers: int, progress) -> None:
        """Write all shards that are not there yet.

        Args:
            workers: loader processes, 0 for none.
            progress: told each `Ready`, and the record of each finished shard.

        Raises:
            Away: nothing of the source can be read.
            OSError: the shards cannot be written.
        """
        ready = shrink.in_order(self.queue, self.place, workers)
        try:
            while self.place < len(self.queue):
                record = self._write_shard(ready, progress)
                _save_json(self._record(len(self.done)), record)
                self.done.append(record)
                progress.finished(record)
        except Away:
            raise
        except OSError as error:  # of writing: those of reading are in what the others hand over
            raise OSError(
                f"{self.folder} cannot be written ({error.strerror or error}); the finished shards "
                "stay, and the same command goes on from them") from error
        except (RuntimeError, MemoryError) as error:
            # PyTorch raises RuntimeError wherever this process is when a loader process ends.
            if isinstance(error, RuntimeError) and "DataLoader worker" not in str(error):
                raise
            cause = "memory ran out" if isinstance(error, MemoryError) else (
                "a loader process was killed, usually because memory ran out")
            raise OSError(f"{cause}; the same command goes on from the finished shards, and fewer "
                          "--workers take less memory") from error

    def left_out(self) -> List[Tuple[str, str]]:
        """(path, reason) of each image that could not be read."""
        return [(path, reason) for record in self.done for _, path, reason in record["left_out"]]

    def finish(self, classes: List[str]) -> Dict[str, Any]:
        """Write the index; returns the split's part of the manifest."""
        shards = [record for record in self.done if record["rows"]]
        rows = np.zeros(sum(len(record["rows"]) for record in shards), manifest.ROW)
        start = 0
        for number, record in enumerate(shards):
            part = rows[start : start + len(record["rows"])]
            columns = zip(*record["rows"])
            for column, values in zip(("offset", "length", "label", "crc"), columns):
                part[column] = values
            part["shard"] = number
            start += len(part)
        content = io.BytesIO()
        np.save(content, rows, allow_pickle=False)
        name = f"{self.name}.index.npy"
        write_atomically(self.folder / name, lambda file: file.write(content.getvalue()))
        counts = np.bincount(rows["label"], minlength=len(classes))
        return {
            "images": len(rows),
            "copied": sum(record["copied"] for record in shards),
            "classes": classes,
            "per_class": counts.tolist(),
            "index": {"name": name, "bytes": len(content.getvalue()), "images": len(rows),
                      "sha256": hashlib.sha256(content.getvalue()).hexdigest()},
            "shards": [{
                "name": record["name"], "bytes": record["bytes"], "images": len(record["rows"]),
                "sha256": record["sha256"],
            } for record in shards],
            "left_out": [{"path": path, "reason": reason} for path, reason in self.left_out()],
        }

    def _record(self, number: int) -> Path:
        return self.records / f"{self.name}-{number:06d}.json"

    def _finished(self) -> List[Dict[str, Any]]:
        """Records of the shards that stand; what follows the first gap is taken away.

        A shard is written anew, with all that follow, where an image that was left out of it can be
        read by now.
        """
        found = []
        while True:
            try:
                record = json.loads(self._record(len(found)).read_text())
                size = (self.folder / record["name"]).stat().st_size if record["rows"] else 0
            except (OSError, ValueError, KeyError):
                break
            is_mended = any(not self.queue[place].error for place, _, _ in record["left_out"])
            if size != record["bytes"] or is_mended:
                break
            found.append(record)
        for path in [*self.records.glob(f"{self.name}-*.json"), *self.folder.glob("*.tar")]:
            split, _, number = path.stem.rpartition("-")
            if split == self.name and number.isdigit() and int(number) >= len(found):
                path.unlink()
        return found

    def _write_shard(self, ready: Iterator[shrink.Ready], progress) -> Dict[str, Any]:
        """Write the next shard; returns its record."""
        name = f"{self.name}-{len(self.done):06d}.tar"
        record = {"name": name, "start": self.place, "end": self.place, "bytes": 0, "sha256": "",
                  "copied": 0, "rows": [], "left_out": []}

        def write(file: BinaryIO) -> None:
            target = _Hashed(file)
            while target.size < self.shard_bytes and record["end"] < len(self.queue):
                item = next(ready)
                assert item.place == record["end"], (item.place, record["end"])
                record["end"] += 1
                progress.image(item)
                if item.error:
                    record["left_out"].append((item.place, item.path, item.error))
                    continue
                offset = self._add(target, item)
                record["rows"].append(
                    (offset, len(item.data), item.label, zlib.crc32(item.data)))
                record["copied"] += item.is_copied
            if not record["rows"]:
                raise _Nothing
            target.write(bytes(2 * manifest.BLOCK))
            target.write(bytes(-target.size % _END))
            record.update(bytes=target.size, sha256=target.digest.hexdigest())

        # _Nothing: the last images cannot be read, which makes a record without a shard.
        with contextlib.suppress(_Nothing):
            write_atomically(self.folder / name, write)
        return record

    def _add(self, target: "_Hashed", item: shrink.Ready) -> int:
        """Write a sample; returns where the content of its image begins."""
        key = f"{item.place:08d}"
        about = json.dumps({"path": item.path}).encode()
        offset = target.size + manifest.BLOCK
        for suffix, content in (("jpg", item.data), ("json", about), ("cls", b"%d" % item.label)):
            target.write(_header(f"{key}.{suffix}", len(content)))
            target.write(content)
            target.write(bytes(-len(content) % manifest.BLOCK))
        return offset


def _save_json(path: Path, content: Any) -> None:
    write_atomically(path, lambda file: file.write(json.dumps(content).encode()))


class _Hashed:
    """A file that is written from its beginning, with its size and SHA-256 so far."""

    def __init__(self, file: BinaryIO):
        self.file, self.size, self.digest = file, 0, hashlib.sha256()

    def write(self, data: bytes) -> None:
        self.file.write(data)
        self.digest.update(data)
        self.size += len(data)


def _header(name: str, size: int) -> bytes:
    """The tar header of a file; no time and no owner, so that equal content is equal bytes."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT)


class Progress:
    """Shows how far a split is: a bar on a terminal, a line a shard everywhere."""

    def __init__(self, name: str, split: SplitWriter):
        self.bar = tqdm(total=len(split.queue), initial=split.place, unit=" images", desc=name,
                        disable=None)
        self.bad = len(split.left_out())

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.bar.close()

    def image(self, ready: shrink.Ready) -> None:
        """One more image was looked at."""
        if ready.error:
            self.bad += 1
            self.bar.set_postfix(bad=self.bad, refresh=False)
        self.bar.update()

    def finished(self, record: Dict[str, Any]) -> None:
        """One more shard is written."""
        if record["rows"]:
            tqdm.write(f"=> {record['name']}: {len(record['rows']):,} images, "
                       f"{record['bytes'] / 1e6:.1f} MB", file=sys.stdout)
