"""How a command ends: exit status 0, or one clear sentence on standard error and another status."""
import os
import re
import signal
import sys
import traceback
from typing import Callable

from mobilenetv3 import faults, peers
from mobilenetv3.text import printable

# What the person who typed the command can cause. Anything else is our bug and keeps its traceback.
_THEIRS = (ValueError, OSError)

# What collectives say when another rank is gone, and not why. gloo names its source file in most of
# it, but not in what it says to all others that are under way when one of them has timed out.
_LOST = re.compile(
    r"\[\S*gloo/transport/\w+/(pair|buffer|unbound_buffer)\.cc:\d+\]"
    r"|Timed out waiting|Application timeout caused pair closure"
    r"|Connection closed by peer|Connection reset by peer")


class Interrupted(Exception):
    """A signal ended the run.

    Args:
        number: the signal's.
        where: what of the run is on the disk, and how to go on.
    """

    def __init__(self, number: int, where: str = "nothing was saved"):
        self.number = number
        super().__init__(f"interrupted by {signal.Signals(number).name}; {where}")


def run(main: Callable, cfg, program: str) -> int:
    """Run `main(cfg)` and return the exit status of the command.

    0 when it returns; 1 after an error; 128 + its number after a signal, as a shell reports it. A
    user's error is told in one sentence; MOBILENETV3_TRACEBACK=1 shows where it arose, too.
    """
    try:
        main(cfg)
    except Interrupted as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"{program}: {error}", file=sys.stderr)
        return 128 + error.number
    except KeyboardInterrupt:
        print(f"{program}: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except Exception as error:
        is_theirs = isinstance(error, _THEIRS) or getattr(error, "is_theirs", False)
        fault = None if is_theirs else faults.explain(error, cfg)
        is_lost = not (is_theirs or fault) and bool(_LOST.search(str(error)))
        if not (is_theirs or fault or is_lost) or os.environ.get("MOBILENETV3_TRACEBACK") == "1":
            traceback.print_exc()
        if fault or is_lost:
            error = RuntimeError(fault or _lost(error))
        rank = f" (rank {os.environ['RANK']})" if "RANK" in os.environ else ""
        print(f"{program}: error{rank}: {sentence(error)}", file=sys.stderr)
        return 1
    finally:
        try:
            sys.stdout.flush()
        except OSError:  # whoever read it is gone; Python would try again, and complain
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _lost(error: BaseException) -> str:
    """What is to be said of another rank's silence."""
    silent, behind = peers.silent(), peers.behind()
    cause = "its own log says why, or the network between them is down"
    if behind:
        cause = f"behind are {behind}"
    if silent:
        cause = f"no answer from {silent}: that host, or the network to it, is down"
    return (f"another rank stopped answering ({sentence(error)}); {cause}; --dist_timeout is how "
            "long a rank waits")


def sentence(error: BaseException) -> str:
    """The message of an error as one line.

    A loader process hands its error over as a text that ends with the error itself, after a whole
    traceback; only that end says what happened.
    """
    lines = str(error).strip().splitlines()
    if not lines:
        return type(error).__name__
    if lines[0].startswith("Caught ") and "Traceback" in str(error):
        return printable(lines[-1].split(": ", 1)[-1])
    return printable(" ".join(line.strip() for line in lines))
