"""Where a run stands, as one line that is written over and over; in training and beside it.

All of it comes from the lines of the log, so whoever reads the log can tell as much as the training
itself: see `python -m mobilenetv3.report --follow RUN`.
"""
import contextlib
import logging
import math
import os
import shutil
import sys
import time
from typing import Callable, Iterable, Iterator, List, Optional

from mobilenetv3 import logfmt

_REDRAW_S = 0.1
_BAR = 16  # characters


class Course:
    """Where a run stands, from the records of its log (`logfmt`), in their order."""

    def __init__(self):
        self.run: Optional[logfmt.Run] = None
        self.train: Optional[logfmt.TrainLine] = None
        self.test: Optional[logfmt.TestLine] = None  # of a validation that is under way
        self.acc1: Optional[float] = None  # per cent, of the last validation
        self.best: Optional[float] = None
        self.is_over = False
        """Whether the last start came to its end."""
        self._validating_s = self._validation_s = 0.0  # after the last epoch, after that before

    def add(self, record: Optional[logfmt.Record]) -> None:
        """Take in one record; None (a line that is no record) changes nothing."""
        if isinstance(record, logfmt.Run):
            self.run, self.train, self.test, self.is_over = record, None, None, False
        elif isinstance(record, logfmt.TrainLine):
            if self.train is not None and record.epoch != self.train.epoch:
                self._validation_s, self._validating_s = self._validating_s, 0.0
            self.train, self.test = record, None
        elif isinstance(record, logfmt.TestLine):
            self.test = record
            if record.step + 1 == record.steps:
                self._validating_s += record.time_avg * record.steps
        elif isinstance(record, logfmt.Accuracy):
            self.acc1 = record.acc1
            if math.isfinite(record.acc1) and (self.best is None or record.acc1 > self.best):
                self.best = record.acc1
            # An evaluation; a run that was stopped in a validation begins with one, and goes on.
            self.is_over = self.train is None and (self.run is None or not self.run.epochs)
        elif isinstance(record, logfmt.Best):
            self.best, self.is_over = record.acc1, True
        elif isinstance(record, logfmt.Unscored):
            self.is_over = True

    def seconds_left(self, step: int) -> Optional[float]:
        """Of the run, after so many steps of its epoch; None where that cannot be told.

        Steps and validations that are to come take as long as those that were.
        """
        run, train = self.run, self.train
        if run is None or train is None or not run.epochs:
            return None
        total = run.max_steps or run.epochs * train.steps
        done = train.epoch * train.steps + step
        epochs = max(0, math.ceil(total / train.steps) - train.epoch - (step >= train.steps))
        validation_s = max(self._validation_s, self._validating_s)
        return max(0, total - done) * train.time_avg + epochs * validation_s

    def parts(self, step: Optional[int] = None) -> List[str]:
        """What there is to tell, the most important first.

        Args:
            step: steps done in the epoch; None: those of the last line.
        """
        run, train = self.run, self.train
        if train is None:
            return _testing(self.test) or ["starting"]
        step = train.step + 1 if step is None else step
        epochs = f"/{run.epochs}" if run is not None and run.epochs else ""
        parts = [f"epoch {train.epoch + 1}{epochs}", f"step {step}/{train.steps}"]
        if self.test is not None:
            parts = [parts[0], *_testing(self.test)]
        left = self.seconds_left(step)
        parts += [] if left is None else [f"{clock(left)} left"]
        if self.acc1 is not None:
            best = f" (best {self.best:.2f})" if self.best not in (None, self.acc1) else ""
            parts.append(f"Acc@1 {self.acc1:.2f}{best}")
        share = 100.0 * train.data_avg / train.time_avg if train.time_avg else 0.0
        return parts + [f"{train.fps:.0f} img/s", f"data wait {share:.0f} %",
                        f"loss {train.loss_avg:.3f}"]

    def line(self, width: int, step: Optional[int] = None, fancy: bool = True) -> str:
        """One line of at most `width` characters; what does not fit is left out from the end on.

        Args:
            fancy: with characters that are not ASCII.
        """
        parts, separator = self.parts(step), " · " if fancy else " | "
        while len(parts) > 1 and len(separator.join(parts)) > width:
            parts.pop()
        line = separator.join(parts)[: max(0, width)]
        bar = self._bar(step, fancy)
        return f"{bar} {line}" if bar and len(bar) + 1 + len(line) <= width else line

    def _bar(self, step: Optional[int], fancy: bool) -> str:
        train = self.train
        if train is None:
            return ""
        done = (train.step + 1 if step is None else step) / max(1, train.steps)
        full = int(_BAR * min(1.0, done))
        dark, light = ("█", "░") if fancy else ("#", ".")
        return dark * full + light * (_BAR - full)


def _testing(test: Optional[logfmt.TestLine]) -> List[str]:
    return [] if test is None else [f"validating {test.step + 1}/{test.steps}"]


def clock(seconds: float) -> str:
    """"0:09", "12:34", "1:02:03", "3 d 04:05"."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    if hours >= 24:
        return f"{hours // 24} d {hours % 24:02d}:{minutes:02d}"
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


class Line:
    """A line at the bottom of a terminal; does nothing where the stream is none.

    Args:
        stream: such as sys.stderr.
    """

    def __init__(self, stream):
        self.stream = stream
        self.is_shown = _is_terminal(stream)
        self.is_fancy = "utf" in (getattr(stream, "encoding", None) or "").lower()
        self._drawn = False

    @property
    def width(self) -> int:
        """Characters; the last column stays free, or some terminals begin a new line."""
        try:  # of this stream: standard output may be a pipe
            columns = os.get_terminal_size(self.stream.fileno()).columns
        except (AttributeError, OSError, ValueError):
            columns = 0
        return max(20, (columns or shutil.get_terminal_size().columns) - 1)

    def show(self, text: str) -> None:
        """Write the line over the one before."""
        self._write(f"\r\x1b[K{text}")
        self._drawn = True

    def clear(self) -> None:
        """Take the line away, for others to write."""
        if self._drawn:
            self._write("\r\x1b[K")
            self._drawn = False

    def _write(self, text: str) -> None:
        if self.is_shown:
            with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
                self.stream.write(text)
                self.stream.flush()


def _is_terminal(stream) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except (AttributeError, ValueError):
        return False


class Counted:
    """A loader of which somebody is told the number of each batch before it is yielded.

    Args:
        done: batches that are not to come any more.
    """

    def __init__(self, batches: Iterable, done: int, tell: Callable[[int], None]):
        self.batches, self.done, self.tell = batches, done, tell

    def __len__(self):
        return len(self.batches)

    def __iter__(self) -> Iterator:
        for step, batch in enumerate(self.batches, self.done):
            self.tell(step)
            yield batch


class Terminal(logging.Handler):
    """Standard output, and below what was last written there a line that tells where the run is.

    The line goes to standard error, and only where that is a terminal. A terminal that is gone, or
    a reader that ended, does not end the training.
    """

    def __init__(self):
        super().__init__()
        self.course, self.below = Course(), Line(sys.stderr)
        self._step: Optional[int] = None
        self._drawn_at = 0.0

    def emit(self, record):
        text = self.format(record)
        self.below.clear()
        encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
        with contextlib.suppress(OSError):
            # A name may have letters that the terminal has not: they are written as \xe9.
            sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
            sys.stdout.flush()
        if self.below.is_shown:
            self._step = None  # the record says it
            self.course.add(logfmt.parse(text))
            self._draw()

    def steps(self, batches: Iterable, done: int) -> "Counted":
        """The batches, counted.

        Args:
            done: of the epoch, in a run before this one.
        """
        return Counted(batches, done, self._at)

    def _at(self, step: int) -> None:
        if self.below.is_shown and time.monotonic() - self._drawn_at > _REDRAW_S:
            with _held(self):
                self._step = step
                self._draw()

    def end(self) -> None:
        """Take the line away for good: what comes now is how the run ended."""
        self.below.clear()
        self.below.is_shown = False

    def _draw(self) -> None:
        self._drawn_at = time.monotonic()
        if self.course.train is not None or self.course.test is not None:
            self.below.show(self.course.line(self.below.width, self._step, self.below.is_fancy))

    def close(self):
        self.end()
        super().close()


@contextlib.contextmanager
def _held(handler: logging.Handler):
    """A handler's own lock: checkpoints are logged by a thread of their own."""
    handler.acquire()
    try:
        yield
    finally:
        handler.release()
