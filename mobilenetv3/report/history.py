"""The course of a run as its log tells it: starts, printed steps, validations, remarks."""
import collections
import math
from pathlib import Path
from typing import Any, Deque, Dict, List, NamedTuple, Optional

from mobilenetv3 import logfmt
from mobilenetv3.live import Course

from .logs import Log

MOST_NOTES = 400
_ODD = 10 ** 9  # an epoch or a step that no training has


class Point(NamedTuple):
    """A printed step."""

    at: float
    """Epochs trained when it was done."""
    step: int
    """Steps done since the run's first, this one included."""
    line: logfmt.TrainLine


class Start(NamedTuple):
    """A process that trained, from its first line to its last."""

    run: Optional[logfmt.Run]
    points: List[Point]

    @property
    def at(self) -> float:
        """Epochs trained when it began."""
        line = self.points[0].line
        return line.epoch + line.step / line.steps

    @property
    def step(self) -> int:
        """Steps trained when it began."""
        return self.points[0].step - 1


class History:
    """What a log says, line by line; the same reading gives the figures of its result (`log`)."""

    def __init__(self, path: Path):
        self.log = Log(path)
        self.starts: List[Start] = []
        self.validations: Dict[int, Dict[str, float]] = {}
        """By epoch, -1 without training: val_loss, val_acc1, val_acc5, and these with an ending for
        each other set of weights ("_ema", "_trained")."""
        self.notes: Deque[str] = collections.deque(maxlen=MOST_NOTES)
        """The last ones: those of the end say how it came."""
        self._course = Course()
        self._test: Optional[logfmt.TestLine] = None

    def add(self, text: str) -> None:
        """Take in one line of the log."""
        record = logfmt.parse(text)
        if isinstance(record, logfmt.TrainLine) and not _is_plausible(record):
            return
        self.log.add(record)
        if not self.log.is_aside:
            self._course.add(record)
        if isinstance(record, logfmt.TrainLine):
            self._add_step(record)
        elif isinstance(record, logfmt.Run):
            self.starts.append(Start(record, []))
        elif isinstance(record, logfmt.TestLine):
            self._test = record
        elif isinstance(record, logfmt.Column):
            found = self._validation()
            for name in ("loss", "acc1", "acc5"):
                found[f"val_{name}_{record.weights}"] = getattr(record, name)
        elif isinstance(record, logfmt.Accuracy):
            self._add_accuracy(record)
        if record is None and text.startswith("=> "):
            self.notes.append(text.rstrip("\r\n")[3:])

    def _add_step(self, line: logfmt.TrainLine) -> None:
        if not self.starts:
            self.starts.append(Start(None, []))
        if not self.starts[-1].points:  # what came after the checkpoint that it goes on from
            self.validations = {epoch: found for epoch, found in self.validations.items()
                                if epoch < line.epoch}
        at = line.epoch + (line.step + 1) / line.steps
        step = line.epoch * line.steps + line.step + 1
        self.starts[-1].points.append(Point(at, step, line))

    def _validation(self) -> Dict[str, float]:
        """The numbers of the validation that is under way."""
        # A run that was stopped in a validation begins with it when it goes on.
        trained = [] if self.log.is_aside else self.trained
        epoch = trained[-1].points[-1].line.epoch if trained else -1
        return self.validations.setdefault(epoch, {})

    def _add_accuracy(self, record: logfmt.Accuracy) -> None:
        found = self._validation()
        found["val_acc1"], found["val_acc5"] = record.acc1, record.acc5
        if self._test is not None and self._test.step + 1 == self._test.steps:
            found["val_loss"] = self._test.loss_avg
        self._test = None

    @property
    def is_over(self) -> bool:
        """Whether the last start came to its end."""
        return self._course.is_over

    @property
    def trained(self) -> List[Start]:
        """The starts that printed a step."""
        return [start for start in self.starts if start.points]

    def kept(self) -> List[Point]:
        """The steps that led to the weights: of those made twice, the latter."""
        return [point for start, end in self._with_ends()
                for point in start.points if point.at <= end]

    def redone(self) -> List[List[Point]]:
        """The steps of each start that a later one made again from an earlier checkpoint."""
        return [[point for point in start.points if point.at > end]
                for start, end in self._with_ends()]

    def _with_ends(self):
        """Each start with the place at which the one after it went on."""
        found, end = [], math.inf
        for start in reversed(self.trained):
            found.append((start, end))
            end = min(end, start.at + 1e-9)
        return found[::-1]


def _is_plausible(line: logfmt.TrainLine) -> bool:
    return 0 <= line.step < line.steps < _ODD and 0 <= line.epoch < _ODD


def read(path: Path) -> History:
    """Read a log file, whatever else is in it, in any encoding."""
    history = History(path)
    with open(str(path), encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            history.add(line)
    return history


def add_metrics(history: History, records: List[Dict[str, Any]]) -> None:
    """Put the numbers of metrics.jsonl, which are exact, over those of the log."""
    for record in records:
        epoch = record.get("epoch")
        if type(epoch) is not int or not 0 <= epoch < _ODD:
            continue
        found = history.validations.setdefault(epoch, {})
        found.update((name, float(value)) for name, value in record.items()
                     if type(value) in (int, float) and abs(value) < 1e300 or value != value)
