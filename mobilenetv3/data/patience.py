"""Reading from a file system that may be away for a while.

An error of one file among others that can be read is that file's. Where no other can be read
either, the file system is waited for: it is a server that is started anew, or a cable.
"""
import errno
import multiprocessing
import os
import sys
import time
from typing import Any, Callable, NamedTuple, Optional, Sequence

from mobilenetv3.data.imagefile import BadImage

FIRST_PAUSE, LONGEST_PAUSE = 0.5, 8.0
"""Seconds between two tries: each pause is twice as long as the one before."""
TRIES = 3
"""Of a file that cannot be read while others can."""


class Away(OSError):
    """Nothing can be read, for as long as was to be waited."""


class Item(NamedTuple):
    """What is to be read."""

    get: Callable[[], Any]
    path: str
    """For people."""
    others: Sequence[Callable[[], Any]]
    """Reading others of the set: whether any of these can be read tells what is wrong."""


def among(get: Callable[[int], Any], index: int, count: int, path: str) -> Item:
    """Number `index` of a set of `count`; the others are beside it, and at the set's ends."""
    last = count - 1
    others = {0, last // 2, last, min(index + 1, last), max(index - 1, 0)} - {index}
    return Item(lambda: get(index), path,
                [lambda other=other: get(other) for other in sorted(others)])


class Patience:
    """Waits for data to come back, up to so many seconds; one for all loader processes of a rank.

    Args:
        seconds: from the first failure of an item to the error.
        say: told when the waiting begins and when it is over, once for all processes of the rank.
        advice: what the error ends with.
    """

    def __init__(self, seconds: float = 60.0, say: Optional[Callable[[str], None]] = None,
                 advice: str = "--data_retry_seconds is how long it is waited for"):
        self.seconds, self.say, self.advice = seconds, say or announce, advice
        self._is_told = multiprocessing.Value("b", 0)

    def read(self, item: Item):
        """What `item.get()` returns, as soon as it can be had.

        Raises:
            BadImage: this one cannot be read, and others can; or it is damaged.
            Away: nothing can be read for the time given.
        """
        started, pause, failures, error = time.monotonic(), FIRST_PAUSE, 0, None
        while True:
            try:
                found = item.get()
            except OSError as failed:
                if not may_pass(failed):
                    raise BadImage(str(failed)) from failed
                error = failed
            else:
                if error is not None:
                    self._tell(item, error, started, is_back=True)
                return found
            waited = time.monotonic() - started
            if any(map(_can_be_read, item.others)):
                failures += 1
                if failures == TRIES or waited >= self.seconds:
                    raise BadImage(f"cannot be read: {_reason(error)}") from error
            else:
                failures = 0
                if waited >= self.seconds:
                    raise Away(
                        f"cannot read {item.path} ({_reason(error)}), nor others beside it, for "
                        f"{waited:.0f} seconds; is the file system there? {self.advice}"
                    ) from error
                self._tell(item, error, started, is_back=False)
            time.sleep(min(pause, max(0.05, self.seconds - waited)))
            pause = min(2 * pause, LONGEST_PAUSE)

    def _tell(self, item: Item, error: OSError, started: float, is_back: bool) -> None:
        with self._is_told.get_lock():
            if bool(self._is_told.value) != is_back:
                return
            self._is_told.value = not is_back
        if is_back:
            waited = time.monotonic() - started
            self.say(f"the data can be read again, after {waited:.0f} seconds")
        else:
            self.say(f"cannot read {item.path} ({_reason(error)}), nor others beside it; trying "
                     f"again for up to {self.seconds:g} seconds")


def may_pass(error: OSError) -> bool:
    """Whether it may be the file system's error, not one of what is in the file."""
    passing = error.errno is not None or isinstance(error, (ConnectionError, TimeoutError))
    return passing and not isinstance(error, BadImage)


def _can_be_read(get: Callable[[], Any]) -> bool:
    """Damaged is read: the file system is there."""
    try:
        get()
    except OSError as error:
        return not may_pass(error)
    return True


def _reason(error: OSError) -> str:
    if error.errno is None:
        return str(error)
    return f"{error.strerror or error} [{errno.errorcode.get(error.errno, error.errno)}]"


def announce(sentence: str) -> None:
    """Say something on standard error, with the rank where there are several."""
    rank = f"rank {os.environ['RANK']}: " if "RANK" in os.environ else ""
    # In one piece, for several processes write there.
    sys.stderr.write(f"=> {rank}{sentence}\n")
    sys.stderr.flush()
