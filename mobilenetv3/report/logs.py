"""What a log says of its run: the few figures of the result table and of the result files."""
import math
from pathlib import Path
from typing import Dict, List, Optional

from mobilenetv3 import logfmt


class Log:
    """What a log says, gathered line by line; what it does not say stays None or empty."""

    def __init__(self, path: Path):
        self.path = path
        self.run: Optional[logfmt.Run] = None
        self.losses: List[float] = []  # of each train line; of each test line where none trained
        self.times: List[float] = []  # seconds, of the first two train lines
        self.fps: Optional[float] = None  # last
        self.epochs_done = 0
        self.is_trained = False
        self.has_ended = False  # the last start of a training
        self.is_aside = False  # in an evaluation into the folder of a run that was trained
        self._acc1: Dict[int, float] = {}  # by epoch, -1 without training
        self._epoch = -1  # of the last train line
        self._is_new = False  # no train line since the last start

    def add(self, record: Optional[logfmt.Record]) -> None:
        """Take in one record; None (a line that is no record) changes nothing."""
        if isinstance(record, logfmt.Run):
            self.is_aside = self.is_trained and not record.epochs
        if self.is_aside:
            return
        if isinstance(record, (logfmt.Run, logfmt.Best, logfmt.Unscored)):
            self.has_ended = not isinstance(record, logfmt.Run)
        if isinstance(record, logfmt.Run):
            self.run, self.times, self._is_new = record, [], True
        elif isinstance(record, logfmt.TrainLine):
            self._add_train(record)
        elif isinstance(record, logfmt.TestLine) and not self.is_trained:
            self.losses.append(record.loss_avg)
        elif isinstance(record, logfmt.Accuracy):
            self._add_acc1(record.acc1, self._epoch)
        elif isinstance(record, logfmt.Best):
            self._add_acc1(record.acc1, record.epoch)  # which may be from before this log
        elif isinstance(record, logfmt.Throughput):
            self.fps = record.fps if math.isfinite(record.fps) and record.fps > 0 else None

    def _add_train(self, record: logfmt.TrainLine) -> None:
        if not self.is_trained:
            self.is_trained, self.losses = True, []
        if self._is_new:  # what came after the checkpoint that it goes on from counts no more
            self._acc1 = {epoch: acc1 for epoch, acc1 in self._acc1.items() if epoch < record.epoch}
            self.epochs_done = min(self.epochs_done, record.epoch)
        self._is_new, self._epoch = False, record.epoch
        self.losses.append(record.loss)
        if len(self.times) < 2:
            self.times.append(record.time)
        if record.step + 1 == record.steps:
            self.epochs_done = record.epoch + 1

    def _add_acc1(self, acc1: float, epoch: int) -> None:
        if math.isfinite(acc1):
            self._acc1[epoch] = max(acc1, self._acc1.get(epoch, acc1))

    @property
    def acc1(self) -> Optional[float]:
        """The best, in per cent."""
        return max(self._acc1.values()) if self._acc1 else None


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
