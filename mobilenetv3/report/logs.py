"""What a log says of its run: the few figures of the result table and of the result files."""
import math
from pathlib import Path
from typing import List, Optional

from mobilenetv3 import logfmt


class Log:
    """What a log says, gathered line by line; what it does not say stays None or empty."""

    def __init__(self, path: Path):
        self.path = path
        self.run: Optional[logfmt.Run] = None
        self.losses: List[float] = []  # of each train line; of each test line where none trained
        self.times: List[float] = []  # seconds, of the first two train lines
        self.acc1: Optional[float] = None  # percent, best
        self.fps: Optional[float] = None  # last
        self.epochs_done = 0
        self._is_trained = False

    def add(self, record: Optional[logfmt.Record]) -> None:
        """Take in one record; None (a line that is no record) changes nothing."""
        if isinstance(record, logfmt.Run):
            self.run, self.times = record, []
        elif isinstance(record, logfmt.TrainLine):
            self._add_train(record)
        elif isinstance(record, logfmt.TestLine) and not self._is_trained:
            self.losses.append(record.loss_avg)
        elif isinstance(record, logfmt.Accuracy):
            self._add_acc1(record.acc1)
        elif isinstance(record, logfmt.Best):
            self._add_acc1(record.acc1)  # of a resumed run, the best may be from before this log
        elif isinstance(record, logfmt.Throughput):
            self.fps = record.fps if math.isfinite(record.fps) and record.fps > 0 else None

    def _add_train(self, record: logfmt.TrainLine) -> None:
        if not self._is_trained:
            self._is_trained, self.losses = True, []
        self.losses.append(record.loss)
        if len(self.times) < 2:
            self.times.append(record.time)
        if record.step + 1 == record.steps:
            self.epochs_done = record.epoch + 1

    def _add_acc1(self, acc1: float) -> None:
        if math.isfinite(acc1):
            self.acc1 = acc1 if self.acc1 is None else max(self.acc1, acc1)


def read_log(path: Path) -> Log:
    """Read a log file."""
    log = Log(path)
    # A log also holds whatever else a rank printed, in any encoding.
    with open(str(path), encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            log.add(logfmt.parse(line))
    return log


def find_log(run: Path) -> Path:
    """The log of a run: of a run folder, of a folder of test/output, or the file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return run
    own = run / "train.log"
    found = [own] if own.is_file() else sorted(run.glob("train_*.log"))
    if not found:
        raise FileNotFoundError(
            f"{run} is neither a log file nor a folder with train.log or train_<device>.log in it"
        )
    return found[0]
