"""The training images that could not be used: counted and listed, and too many of them an error.

Loader processes put another image in the place of a bad one (see `dataset`), and hand over what
they found with the batch. Here the processes that train bring it together.
"""
import json
import re
from pathlib import Path
from typing import Callable, Iterable, List, NamedTuple, Optional

from mobilenetv3.text import printable

NAME = "bad_files.txt"
"""In the run's folder: a line a file, PATH, a tab, and the reason."""
SHARE, LEAST = 0.001, 10
"""Files that a run bears unless told otherwise: of the training set, and at least."""


class BadFile(NamedTuple):
    """A file that could not be used."""

    path: str
    reason: str


class TooMany(OSError):
    """More files are bad than the run is to bear."""


def default_limit(images: int) -> int:
    """How many bad files of a training set are borne where nobody says."""
    return max(LEAST, int(images * SHARE))


def escaped(text: str) -> str:
    r"""A name that stays in its line and its column: \n, \t, \\ and \x1b for such letters."""
    return re.sub(r"[\x00-\x1f\x7f\x85\u2028\u2029\\]",
                  lambda found: found.group().encode("unicode_escape").decode("ascii"), text)


class BadFiles:
    """All bad files that a run finds from its start on, or from where it was resumed.

    On several ranks each `add`s what it has found, and `share` brings it together: all ranks call
    it at the same steps, have the same files after it, and stop together.

    Args:
        limit: files that are borne; None for `default_limit`.
        images: in the training set.
        folder: of the run, for the list; None for no list. Files that the list has from before
            are not listed again.
        writes: whether this rank writes the list.
        log: told of the first file; `note` tells of the others.
        gather: bytes of this rank -> those of all ranks; None for one rank.
    """

    def __init__(self, limit: Optional[int], images: int, folder: Optional[Path] = None,
                 writes: bool = True, log: Callable[[str], None] = print,
                 gather: Optional[Callable[[bytes], List[bytes]]] = None):
        self.limit = default_limit(images) if limit is None else limit
        self.images, self.log, self.gather = images, log, gather
        self.path = None if folder is None else folder / NAME
        self.writes = writes and self.path is not None
        self.found = {}
        """path -> reason, in the order in which they were found."""
        self._waiting: List[BadFile] = []  # not shared yet
        self._listed = _paths_in(self.path) if self.writes else set()
        self._told = 0

    def add(self, files: Iterable[BadFile]) -> None:
        """Take note of what came with a batch of this rank.

        Raises:
            TooMany: where there is one rank.
        """
        known = self.found.keys() | {file.path for file in self._waiting}
        for file in files:
            if file.path not in known:
                known.add(file.path)
                self._waiting.append(file)
        if self.gather is None:
            self.share()

    @property
    def is_waiting(self) -> bool:
        """Whether this rank has found what it has not shared."""
        return bool(self._waiting)

    def share(self) -> None:
        """Bring together what the ranks have found; every rank must call it.

        Raises:
            TooMany: on all ranks.
        """
        own, self._waiting = self._waiting, []
        if self.gather is not None:
            parts = self.gather(json.dumps(own).encode("ascii") if own else b"")
            own = [BadFile(*pair) for part in parts if part for pair in json.loads(part)]
        new = []
        for file in own:
            if file.path not in self.found:
                self.found[file.path] = file.reason
                new.append(file)
        if not new:
            return
        if self.writes:
            self._write(new)
        if len(self.found) == len(new):
            first = new[0]
            self.log(f"=> bad file: {printable(first.path)} ({printable(first.reason)}); another "
                     f"image takes its place{self._where()}")
            self._told = 1
        if len(self.found) > self.limit:
            last = new[-1]
            raise TooMany(
                f"{len(self.found):,} of the {self.images:,} training images cannot be used, more "
                f"than --max_bad_files {self.limit}; the last is {printable(last.path)} "
                f"({printable(last.reason)}){self._where()}"
            )

    def note(self) -> str:
        """A line for the log where more were found since the last one; "" else."""
        count = len(self.found)
        if count == self._told:
            return ""
        self._told = count
        return (f"=> {count} bad files so far (--max_bad_files {self.limit}); other images take "
                f"their places{self._where()}")

    def _where(self) -> str:
        return "" if self.path is None else f"; all are listed in {self.path}"

    def _write(self, files: List[BadFile]) -> None:
        lines = "".join(f"{escaped(file.path)}\t{escaped(file.reason)}\n" for file in files
                        if escaped(file.path) not in self._listed)
        if not lines:
            return
        try:
            # One write, at the end of the file whatever else has been written there.
            with open(str(self.path), "ab", buffering=0) as target:
                target.write(lines.encode("utf-8", "surrogateescape"))
        except OSError as error:  # a full disk does not end the run
            self.log(f"=> {len(files)} bad files are not written to {self.path}: {error.strerror}")


def _paths_in(path: Path) -> set:
    """The paths that a list has, escaped; a last line that was cut off by a crash is completed."""
    if not path.is_file():
        return set()
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(str(path), "ab") as file:
            file.write(b"\n")
    lines = content.decode("utf-8", "surrogateescape").split("\n")
    return {line.split("\t")[0] for line in lines if "\t" in line}
