"""A run that goes on, seen from another process: its line on a terminal, its page kept current."""
import os
import sys
import time
from pathlib import Path
from typing import Callable, List, Optional

from mobilenetv3 import logfmt
from mobilenetv3.live import Course, Line
from mobilenetv3.text import printable

from .logs import find_log
from .records import folder_of, is_running, sources

POLL_S = 0.5
GRACE_S = 20.0
"""How long a run that no process writes to may be about to start again (torchrun does that)."""
PLAIN_S = 10.0
"""From one line to the next where the output is no terminal."""


class Tail:
    """A log file that grows, read on from where it was read to."""

    def __init__(self, path: Path):
        self.path, self._place, self._rest = path, 0, b""

    def lines(self) -> List[str]:
        """The whole lines that came since the last call."""
        try:
            with open(str(self.path), "rb") as file:
                if os.fstat(file.fileno()).st_size < self._place:  # another file of that name
                    self._place, self._rest = 0, b""
                file.seek(self._place)
                content = file.read()
        except OSError:
            return []
        self._place += len(content)
        *whole, self._rest = (self._rest + content).split(b"\n")
        return [line.decode("utf-8", "surrogateescape") for line in whole]


class Pulse:
    """Whether a run is still to be waited for."""

    def __init__(self, log: Path, now: Callable[[], float] = time.monotonic):
        self.log, self.now = log, now
        self.is_running: Optional[bool] = None
        """What `records.is_running` said last."""
        self._seen = now()

    def is_gone(self) -> bool:
        """Whether no process has written to its folder for a while."""
        # Looked up each time: the scripts of test/ write a log before there is a run folder.
        self.is_running = is_running(folder_of(self.log))
        if self.is_running is not False:  # None: that cannot be told
            self._seen = self.now()
        return self.now() - self._seen > GRACE_S


def follow(run: Path, stream=None) -> int:
    """Tell in a line where a run is until it ends; returns the exit status, 1 if it was stopped.

    Raises:
        FileNotFoundError: it has no log.
    """
    stream = stream or sys.stdout
    log = find_log(run)
    tail, pulse, line, course = Tail(log), Pulse(log), Line(stream), Course()
    told_at, told = 0.0, ""
    while True:
        is_gone = pulse.is_gone()  # asked first: the last lines come before the process ends
        for text in tail.lines():
            course.add(logfmt.parse(text))
        # Of several weights an evaluation scores others after an end, and its process goes on.
        if is_gone or (course.is_over and not pulse.is_running):
            break
        text = printable(course.line(line.width if line.is_shown else 200, None, line.is_fancy))
        if line.is_shown:
            line.show(text)
        elif text != told and time.monotonic() - told_at > PLAIN_S:
            print(course.line(200, None, False), file=stream, flush=True)
            told_at, told = time.monotonic(), text
        time.sleep(POLL_S)
    line.clear()
    print(_ending(course), file=stream, flush=True)
    return 0 if course.is_over else 1


def _ending(course: Course) -> str:
    best = f"best Acc@1 {course.best:.3f}" if course.best is not None else "not validated"
    if course.is_over:
        return f"finished: {best}"
    where = " | ".join(course.parts()[:2]) if course.train is not None else "before its first step"
    return f"no process writes to it any more; it stopped at {where}, {best}"


def watch(runs: List[Path], write: Callable[[bool], bool], seconds: float) -> None:
    """Write again whenever the records change, until all runs have ended or Ctrl-C.

    Args:
        write: writes the page, told whether it is to be kept current; returns whether a run has
            not come to its end.
        seconds: from one time to the next, at least; ten times as long as writing takes, so that a
            long log does not cost the training its processor.
    """
    logs = [find_log(run) for run in runs]
    pulses = [Pulse(log) for log in logs]
    seen: Optional[list] = None
    pause = seconds
    try:
        while True:
            now = [_stamp(path) for log in logs for path in sources(log)]
            # Asked first: a run may end while its page is being written.
            is_gone = sum(not pulse.is_gone() for pulse in pulses) == 0
            if now != seen:
                seen, begun = now, time.monotonic()
                if not write(True):
                    break
                pause = max(seconds, 10 * (time.monotonic() - begun))
            if is_gone:
                break
            time.sleep(pause)
    except KeyboardInterrupt:
        pass
    write(False)


def _stamp(path: Path):
    try:
        found = os.stat(str(path))
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
