"""The checkpoints of a run: written beside the training, kept by rule, found again after a crash.

    RUN/checkpoints/epoch_0003_step_000100.pth.tar     3 epochs and 100 steps done
    RUN/checkpoint.pth.tar                             another name (hard link) of the newest
    RUN/model_best.pth.tar                             another name of the best

Which one is the newest, the names say, never the files' times: clocks jump. A file has its name
only when all of it is on the disk, and an older one goes only after that, so that a crash at any
moment leaves the newest or the one before it.
"""
import errno
import itertools
import os
import re
import threading
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from mobilenetv3 import checkpoint, files

FOLDER = "checkpoints"
ASIDE = ".aside"
"""Ends the name of a checkpoint that lies beyond where a run was resumed; then .aside.2, ..."""
FAILURES = 3
"""So many checkpoints in a row that could not be written stop the run."""

_NAME = re.compile(r"epoch_([0-9]{4,})_step_([0-9]{6,})\.pth\.tar")
_REMEDIES = {
    errno.ENOSPC: "free some space there, or lower --keep_last",
    errno.EDQUOT: "free some of the quota, or lower --keep_last",
    errno.EROFS: "the file system is read-only; mount it writable",
    errno.EACCES: "give this user the right to write there",
    errno.EPERM: "give this user the right to write there",
    errno.EIO: "the disk fails; see the system's log",
}


class Position(NamedTuple):
    """Where a run is: epochs done, and steps done in the one under way."""

    epoch: int
    step: int


class NotSaved(OSError):
    """A checkpoint could not be written, and the training must not go on, or is at its end."""


def file_name(position: Position) -> str:
    """Name of the checkpoint of a position; names in alphabetical order are in order of time."""
    return f"epoch_{position.epoch:04d}_step_{position.step:06d}.pth.tar"


# ---------------------------------------------------------------------------------- writing


class Keeper:
    """Writes the checkpoints of a run, one at a time, in a thread beside the training.

    A write that fails (disk full, read-only, ...) is told in one line and leaves the older files as
    they were; training goes on, and the next checkpoint is the next try.

    Args:
        folder: the run folder, whose lock this process has (`runfolder.lock`): what a killed run
            left half-written there is removed.
        last: how many of the newest checkpoints stay.
        every: those at the end of every so many epochs stay for good; 0 for none.
        start: (epoch, step) where the run begins or was resumed. Checkpoints beyond it are damaged
            or of another course of the run; they get another name (`ASIDE`), so that they are not
            taken for its newest.
        log: takes one line; called from the writing thread, too.
    """

    def __init__(self, folder: Path, last: int = 2, every: int = 0,
                 start: Tuple[int, int] = (0, 0), log: Callable[[str], None] = print):
        self.folder, self.last, self.every, self.log = Path(folder), last, every, log
        self._thread: Optional[threading.Thread] = None
        self._error: Optional[BaseException] = None  # of the latest write
        self._failures = 0  # in a row
        for place in (self.folder, self.folder / FOLDER):
            if place.is_dir():
                files.remove_leftovers(place)
        self._set_aside(Position(*start))

    def save(self, state: Dict[str, Any], epoch: int, step: int, is_best: bool = False) -> None:
        """Take a copy of the state, and begin to write it.

        The caller may change everything in it right after. Waits for the write before this one, if
        it is still under way: no checkpoint is left out, and no more than one copy is held.

        Args:
            epoch: epochs done.
            step: steps done in the epoch under way; 0 between epochs.
            is_best: whether this is the best model so far.

        Raises:
            NotSaved: `FAILURES` writes in a row failed.
            Exception: a write failed for another reason than the disk.
        """
        self._wait()
        write = threading.Thread(
            target=self._write, args=(checkpoint.copy_of(state), Position(epoch, step), is_best),
            name="checkpoint",  # no daemon: a process that ends finishes its checkpoint
        )
        self._thread = write
        write.start()
        if self._failures == FAILURES - 1:
            self._wait()  # this one decides, and the next may be hours away

    @property
    def is_writing(self) -> bool:
        """Whether a checkpoint is under way."""
        return self._thread is not None and self._thread.is_alive()

    def flush(self) -> None:
        """Wait until all is written.

        Raises:
            NotSaved: the latest checkpoint could not be written.
        """
        self._wait()
        if self._error is not None:
            raise NotSaved(
                f"the latest checkpoint was not saved: {told(self._error, self.folder)}"
            ) from self._error

    def close(self) -> None:
        """As `flush`; for the end of the run."""
        self.flush()

    def _wait(self) -> None:
        """Wait for the write under way, and raise what must stop the run."""
        if self._thread is None:
            return
        self._thread.join()
        self._thread = None
        if self._error is None:
            self._failures = 0
            return
        if not isinstance(self._error, OSError):
            raise self._error
        self._failures += 1
        if self._failures >= FAILURES:
            raise NotSaved(
                f"stopped: {self._failures} checkpoints in a row could not be saved: "
                f"{told(self._error, self.folder)}. Go on with --resume auto"
            ) from self._error

    def _write(self, state: Dict[str, Any], position: Position, is_best: bool) -> None:
        """All of one checkpoint, in the thread."""
        self._error = None
        try:
            self._put(state, position, is_best)
        except OSError as error:
            self._error = error
            self.log(f"=> checkpoint of epoch {position.epoch}, step {position.step} was not "
                     f"saved: {told(error, self.folder)}; training goes on, and the next "
                     "checkpoint tries again")
        except BaseException as error:  # raised where the training can see it
            self._error = error

    def _put(self, state: Dict[str, Any], position: Position, is_best: bool) -> None:
        folder = self.folder / FOLDER
        folder.mkdir(exist_ok=True)
        path = folder / file_name(position)
        temporary = files.write_temporary(path, lambda file: checkpoint.write(file, state))
        try:
            if is_best:  # first: whoever finds the checkpoint may count on its best being kept
                files.link_atomically(temporary, self.folder / checkpoint.BEST)
        except BaseException:
            files.discard(temporary)
            raise
        files.rename(temporary, path)
        files.link_atomically(path, self.folder / checkpoint.LAST)
        self._rotate()

    def _rotate(self) -> None:
        """Remove what is no longer to be kept; what cannot be removed is told."""
        for position, path in listed(self.folder)[self.last:]:
            if self.every and position.step == 0 and position.epoch % self.every == 0:
                continue
            try:
                path.unlink()
            except OSError as error:
                self.log(f"=> the older checkpoint {path} cannot be removed: {error.strerror}")

    def _set_aside(self, start: Position) -> None:
        """Rename what lies beyond the start, and see to it that the other names are of the rest."""
        own = listed(self.folder)
        last, best = self.folder / checkpoint.LAST, self.folder / checkpoint.BEST
        beyond = [path for position, path in own if position > start]
        rest = [item for item in own if item[1] not in beyond]
        if last.is_file() and not _is_among(last, own):
            position = _position_in(_read(last, []))
            if position > start:
                beyond.append(last)
            elif not rest or position >= rest[0][0]:
                rest = []  # it is the newest, under this name alone
        elif not rest and beyond:
            last.unlink()
        for path in beyond:
            path.replace(_free_aside(path))
        if rest:
            files.link_atomically(rest[0][1], last)
        if not beyond:
            return
        names = ", ".join(path.name for path in beyond)
        self.log(f"=> beyond epoch {start.epoch}, step {start.step}, hence kept under another name "
                 f"({ASIDE}): {names}")
        if best.is_file() and _position_in(_read(best, [])) > start:
            self.log(f"=> beyond it, too, and kept until the next best one: {best}")


def told(error: BaseException, folder: Path) -> str:
    """Path, cause and remedy of a write that failed."""
    path = getattr(error, "filename2", None) or getattr(error, "filename", None) or folder
    cause = getattr(error, "strerror", None) or str(error)
    remedy = _REMEDIES.get(getattr(error, "errno", None), "see what is wrong there")
    return f"{path}: {cause} ({remedy})"


# ---------------------------------------------------------------------------------- finding


def listed(folder: Path) -> List[Tuple[Position, Path]]:
    """The checkpoints in a run folder's own folder of them, the newest first, by their names."""
    place = Path(folder) / FOLDER
    found = []
    for path in place.iterdir() if place.is_dir() else ():
        name = _NAME.fullmatch(path.name)
        if name:
            found.append((Position(*map(int, name.groups())), path))
    return sorted(found, reverse=True)


def newest(folder: Path, log: Callable[[str], None] = print) -> Optional[Tuple[Path, Any]]:
    """The newest whole checkpoint of a run folder, and what is in it; None where there is none.

    One that is damaged is named in a line to `log`, and the one before it is taken.

    Raises:
        ValueError: there are some, and all are damaged.
    """
    folder = Path(folder)
    damaged: List[str] = []
    found = [(position, path, None) for position, path in listed(folder)]
    last = folder / checkpoint.LAST
    if last.is_file() and not _is_among(last, listed(folder)):
        # A copy, or of a run before there was a folder of checkpoints: its content has to tell.
        state = _read(last, damaged)
        if state is not None:
            found.append((_position_in(state), last, state))
    found.sort(key=lambda item: (item[0], item[1] == last), reverse=True)
    for _, path, state in found:
        state = _read(path, damaged) if state is None else state
        if state is not None:
            for problem in damaged:
                log(f"=> skipped: {problem}")
            return path, state
    if damaged:
        raise ValueError(
            f"no checkpoint in {folder} can be resumed, all are damaged: {'; '.join(damaged)}"
        )
    return None


def _is_among(path: Path, among: List[Tuple[Position, Path]]) -> bool:
    """Whether a file is another name of one of these."""
    return any(path.samefile(other) for _, other in among)


def _free_aside(path: Path) -> Path:
    """A name to set a checkpoint aside under that no other has: of an earlier going back."""
    for number in itertools.count(1):
        aside = path.with_name(path.name + ASIDE + (f".{number}" if number > 1 else ""))
        if not os.path.lexists(str(aside)):
            return aside
    raise AssertionError("numbers do not end")


def _read(path: Path, damaged: List[str]) -> Any:
    try:
        return checkpoint.load(path)
    except (ValueError, FileNotFoundError) as error:
        damaged.append(str(error))
        return None


def _position_in(state: Any) -> Position:
    """Where a run was, from a checkpoint's content; of other files, before all others."""
    try:
        return Position(int(state["epoch"]), int(state.get("step", 0)))
    except (KeyError, TypeError, AttributeError, ValueError):
        return Position(-1, 0)
