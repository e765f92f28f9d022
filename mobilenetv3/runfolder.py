"""The folder of one run: log, metrics, configuration. One rank writes; nothing is overwritten."""
import json
import logging
import sys
import time
from pathlib import Path
from typing import Iterable, Optional

from tqdm import tqdm

from mobilenetv3 import checkpoint
from mobilenetv3.files import write_atomically

CONFIG, LOG, METRICS = "config.yaml", "train.log", "metrics.jsonl"


def choose(output: str, resume: str, model: str) -> Path:
    """Which folder a run writes to.

    `output` if it is given; else, when resuming, the run folder that holds the checkpoint; else a
    new folder under output/, named by time and model.
    """
    if output:
        return Path(output)
    if resume and (Path(resume).parent / CONFIG).is_file():
        return Path(resume).parent
    return Path("output") / f"{time.strftime('%Y%m%d-%H%M%S')}-{model}"


def claim(folder: Path, resume: bool) -> None:
    """Create the folder, or take an empty one; one with files in it only to resume there.

    Raises:
        ValueError: the folder holds something already, or is not a folder.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output {folder} cannot be a folder: a file is in the way") from error
    if not resume and any(folder.iterdir()):
        raise ValueError(
            f"--output {folder} is not empty and nothing in it will be overwritten; name a new "
            "folder, or go on with the run in it: --resume auto"
        )


def resolve_resume(resume: str, folder: Path) -> Optional[Path]:
    """The checkpoint to resume from: the path given, or for "auto" the newest in the folder.

    None when "auto" finds none: the run that is to go on has not saved anything yet.

    Raises:
        FileNotFoundError: there is no file at the path given.
    """
    if not resume:
        return None
    path = folder / checkpoint.LAST if resume == "auto" else Path(resume)
    if path.is_file():
        return path
    if resume == "auto":
        return None
    raise FileNotFoundError(f"--resume {resume}: there is no such file")


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
        if not is_main:
            return
        self._logger.addHandler(_Terminal())
        if path is None:
            return
        self._logger.addHandler(logging.FileHandler(str(path / LOG), encoding="utf-8"))
        self._trim_metrics(keep_epochs)
        if tensorboard:
            self._events = _event_writer(path, keep_epochs)

    def log(self, line: str) -> None:
        """One line to standard output and train.log."""
        self._logger.info(line)

    def metrics(self, **record) -> None:
        """One epoch's numbers: a JSON line, and TensorBoard scalars where asked for."""
        if not self.is_main or self.path is None:
            return
        with open(str(self.path / METRICS), "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._events:
            for name, value in record.items():
                if name != "epoch" and isinstance(value, (int, float)):
                    self._events.add_scalar(name, value, record["epoch"])
            self._events.flush()

    def progress(self, loader: Iterable, title: str) -> Iterable:
        """The loader behind a progress bar, which shows only where standard error is a terminal."""
        return tqdm(loader, desc=title, leave=False, disable=None if self.is_main else True)

    def close(self) -> None:
        """Write out what is still buffered."""
        for handler in self._logger.handlers:
            handler.close()
        if self._events:
            self._events.close()

    def _trim_metrics(self, keep_epochs: int) -> None:
        path = self.path / METRICS
        if not path.is_file():
            return
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = "".join(line for line in lines if _epoch_of(line) < keep_epochs)
        write_atomically(path, lambda file: file.write(kept.encode("utf-8")))


def _epoch_of(line: str) -> float:
    """Epoch of a metrics line; a line cut short by a crash belongs to no epoch that is kept."""
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class _Terminal(logging.Handler):
    """Standard output, without tearing a progress bar that shares the terminal."""

    def emit(self, record):
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def _event_writer(path: Path, first_epoch: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError(
            f"--log-tensorboard needs the package tensorboard ({error}); pip install tensorboard"
        ) from error
    return SummaryWriter(str(path / "tensorboard"), purge_step=first_epoch)
