"""The folder of one run: log, metrics, configuration. One rank writes; nothing is overwritten."""
import contextlib
import errno
import fcntl
import json
import logging
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional

from mobilenetv3 import checkpoint, keep, logfmt
from mobilenetv3.events import Events
from mobilenetv3.files import LOCK_TAKEN, write_atomically
from mobilenetv3.live import Terminal
from mobilenetv3.text import printable

CONFIG, LOG, METRICS = "config.yaml", "train.log", "metrics.jsonl"
STARTS = "environment.jsonl"
"""A line each time that a run starts or goes on: command, versions, device."""
LOCK = "run.lock"
RANGE_TEST = "lr_find"
"""What the names of a range test's results begin with; a run may begin beside them."""

_OF_A_RUN = (CONFIG, LOG, METRICS, keep.FOLDER, checkpoint.LAST, checkpoint.BEST)


def choose(output: str, resume: str, model: str) -> Path:
    """Which folder a run writes to.

    `output` if it is given; else, when resuming, the run folder that holds the checkpoint; else a
    new folder under output/, named by time and model.
    """
    if output:
        return Path(output)
    home = _home_of(resume) if resume else None
    if home is not None:
        return home
    return Path("output") / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}"


def _home_of(file: str) -> Optional[Path]:
    """The run folder that a checkpoint is in, or in whose own folder of them; None for none."""
    folder = Path(file).parent
    if (folder / CONFIG).is_file():
        return folder
    folder = Path(os.path.abspath(str(folder)))  # typed inside that folder, it has no name
    if folder.name == keep.FOLDER and (folder.parent / CONFIG).is_file():
        return folder.parent
    return None


def check_source(folder: Path, resume: str) -> None:
    """Refuse a folder with a run in it to a run that goes on from a checkpoint elsewhere.

    The folder's own checkpoints would give way to those of the other run.

    Args:
        resume: as typed; "auto" is always of the folder.

    Raises:
        ValueError: the folder holds a run, and the file is not in there.
    """
    if resume in ("", "auto") or not any((folder / name).exists() for name in _OF_A_RUN):
        return
    file = Path(os.path.abspath(resume))
    parents = {*file.parents, *file.resolve().parents}  # a link in the folder is in it, too
    if not any(folder.samefile(parent) for parent in parents):
        raise ValueError(
            f"--output {folder} holds a run that --resume {resume} is not of, and nothing in it "
            "will be overwritten; name a new folder, or go on with the run in it: --resume auto"
        )


def claim(folder: Path, resume: bool) -> None:
    """Create the folder, or take an empty one; one with files in it only to resume there.

    Raises:
        ValueError: the folder holds something already, or is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output {folder} cannot be a folder: a file is in the way") from error
    if not resume and any(path.name != LOCK and not path.name.startswith(RANGE_TEST)
                          for path in folder.iterdir()):
        raise ValueError(
            f"--output {folder} is not empty and nothing in it will be overwritten; name a new "
            "folder, or go on with the run in it: --resume auto"
        )


class Lock:
    """Says that a process writes to a run folder; `lock` takes it.

    The lock is the kernel's, of this process (POSIX): it ends with the process however that ends,
    and processes forked from it do not have it.
    """

    def __init__(self, handle: int, note: str = ""):
        self._handle, self.note = handle, note

    def release(self) -> None:
        """Let another process have the folder."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    __del__ = release


def lock(folder: Path, patience_s: float = 5.0) -> Lock:
    """Take the lock of a run folder, which must exist; only the rank that writes there does.

    Take it before the checkpoint to resume from is chosen: until then another run may write one.

    Args:
        patience_s: how long to wait for a process that is on its way out, such as one that was
            killed and has files to let go.

    Returns:
        The lock; its `note` is not empty where the file system has no locks.

    Raises:
        ValueError: another process has it; says which.
    """
    # Not truncated: whoever has the lock may have written here. And never removed, or two
    # processes could each have the lock of a file of that name.
    handle = os.open(str(folder / LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    end = time.monotonic() + patience_s
    while True:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except OSError as error:
            if error.errno not in LOCK_TAKEN:
                return Lock(handle, f"=> no lock on {folder} ({error.strerror}): nothing keeps a "
                            "second run from writing there")
        if time.monotonic() > end:
            owner = os.pread(handle, 200, 0).decode("utf-8", "replace").strip()
            os.close(handle)
            raise ValueError(
                f"another run is writing to {folder} ({owner or 'unknown process'}); wait until "
                "it ends, stop it, or name another --output"
            )
        time.sleep(0.05)
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    owner = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    os.ftruncate(handle, 0)
    os.pwrite(handle, owner.encode(), 0)
    return Lock(handle)


class RunFolder:
    """Writes a run's log and metrics; on every rank but the main one, writes nothing.

    Args:
        path: the folder; None writes the log to standard output only.
        tensorboard: write TensorBoard events beside the metrics.
        keep_epochs: epochs whose metrics stay when the run goes on (those before the epoch it
            resumes at); later ones will be written again.
    """

    def __init__(self, path: Optional[Path], is_main: bool = True, tensorboard: bool = False,
                 keep_epochs: int = 0):
        self.path, self.is_main = path, is_main
        self._logger = logging.Logger("mobilenetv3", logging.INFO)
        self._events = None
        self._unwritten = b""  # metrics that the disk has not taken yet
        if not is_main:
            return
        self._terminal = Terminal()
        self._logger.addHandler(self._terminal)
        if path is None:
            return
        _end_last_line(path / LOG)
        _end_last_line(path / STARTS)
        self._logger.addHandler(_LogFile(str(path / LOG), encoding="utf-8"))
        self._trim_metrics(keep_epochs)
        if tensorboard:
            self._events = Events(path, keep_epochs)

    def log(self, line: str) -> None:
        """One line to standard output and train.log, and the scalars in it to TensorBoard."""
        self._logger.info(printable(line))
        if self._events is not None:
            record = logfmt.parse(line)
            if isinstance(record, logfmt.TrainLine):
                self._write_events(lambda events: events.step(record))

    def metrics(self, **record) -> None:
        """One epoch's numbers: a JSON line, and TensorBoard scalars where asked for."""
        if not self.is_main or self.path is None:
            return
        self._unwritten += (json.dumps(record) + "\n").encode("utf-8")
        try:
            self._write_metrics()
        except OSError as error:
            self.log(f"=> {self.path / METRICS} cannot be written: {error.strerror}; tried again "
                     "after the next epoch")
        if self._events is not None:
            self._write_events(lambda events: events.epoch(record))

    def _write_events(self, write: Callable[[Events], None]) -> None:
        try:
            write(self._events)
        except OSError as error:
            self._events = None
            self.log(f"=> no more TensorBoard events, {LOG} and {METRICS} have all: {error}")

    def start(self, record: Dict[str, Any]) -> None:
        """What a run is started with, as a JSON line; a run that goes on adds one."""
        if not self.is_main or self.path is None:
            return
        try:
            with open(str(self.path / STARTS), "a", encoding="ascii") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            self.log(f"=> {self.path / STARTS} cannot be written: {error.strerror}")

    def progress(self, loader: Iterable, done: int = 0) -> Iterable:
        """The batches of an epoch, counted in the line that tells on a terminal where the run is.

        Args:
            done: batches of the epoch that are not to come any more.
        """
        return self._terminal.steps(loader, done) if self.is_main else loader

    def end_progress(self) -> None:
        """Leave the terminal to whatever tells how the run ended."""
        if self.is_main:
            self._terminal.end()

    def close(self) -> None:
        """Write out what is still buffered.

        Raises:
            OSError: the disk does not take it.
        """
        for handler in self._logger.handlers:
            handler.close()
        if self._events:
            self._events.close()
            self._events = None
        self._write_metrics()

    def _write_metrics(self) -> None:
        """Append the lines that are not written yet: all of them, or none."""
        if not self._unwritten:
            return
        with open(str(self.path / METRICS), "ab", buffering=0) as file:
            size = file.tell()
            try:
                if file.write(self._unwritten) != len(self._unwritten):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
        self._unwritten = b""

    def _trim_metrics(self, keep_epochs: int) -> None:
        path = self.path / METRICS
        if not path.is_file():
            return
        text = path.read_text(encoding="utf-8", errors="replace")  # a crash may leave anything
        lines = text.splitlines(keepends=True)
        kept = "".join(line for line in lines if _epoch_of(line) < keep_epochs)
        write_atomically(path, lambda file: file.write(kept.encode("utf-8")))


def _epoch_of(line: str) -> float:
    """Epoch of a metrics line; a line cut short by a crash belongs to no epoch that is kept."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


def _end_last_line(path: Path) -> None:
    """Part the lines to come from one that a full disk or a power failure cut short."""
    with contextlib.suppress(OSError), open(str(path), "rb+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


class _LogFile(logging.FileHandler):
    """train.log; a disk that does not take a line is told of once, and training goes on."""

    _is_told = False

    def handleError(self, record):
        if not self._is_told:
            self._is_told = True
            cause = sys.exc_info()[1]
            print(f"{self.baseFilename} cannot be written: {cause}", file=sys.stderr)

    def close(self):
        with contextlib.suppress(OSError):  # told already
            super().close()
