"""Breaks: a run stops for a signal, or pauses for a checkpoint, at the same step on every rank.

SIGTERM (schedulers, ModelArts, Kubernetes), SIGINT (Ctrl-C), SIGUSR1 (Slurm's warning) and SIGHUP
(a terminal that closes) ask the run to end: it finishes the step, saves, and exits with 128 + the
signal's number. A second signal that comes more than GRACE seconds after the first stops the
process at once; one that comes sooner is the same wish, passed on twice by a terminal and a
launcher.
"""
import os
import signal
import time
from typing import Any, Callable, Iterable, Iterator, List, Optional

import torch

from mobilenetv3 import dist, peers
from mobilenetv3.peers import Pulse

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
                if hasattr(signal, name))
GRACE = 1.0
"""Seconds after a signal in which another one is taken for the same."""


class Watch:
    """What may break into an epoch: signals, and checkpoints that are due.

    The ranks agree on a break by exchanging three numbers between the hosts. The exchange that
    begins at one update ends at the next, so nobody waits for it, and no card is asked.

    Args:
        every_steps: steps of an epoch from one checkpoint to the next; 0 for none.
        every_minutes: minutes from one checkpoint to the next, by a clock that nobody sets; 0 for
            none. The rank counts whose minutes are over first.
        pulse: told where this rank is; None for nobody.
        bad_files: shared between the ranks when one of them has found some; None for none.
    """

    def __init__(self, every_steps: int = 0, every_minutes: float = 0.0,
                 pulse: Optional[Pulse] = None, bad_files=None,
                 now: Callable[[], float] = time.monotonic):
        self.every_steps, self.seconds, self.pulse, self.now = (
            every_steps, every_minutes * 60.0, pulse, now)
        self.bad_files = bad_files
        self.received: Optional[int] = None
        """The signal that this rank has received."""
        self.agreed: Optional[int] = None
        """The signal that all ranks stop for."""
        self._first = 0.0  # when it came
        self._saved = now()
        self._step = 0
        self._exchange = None  # (its handle, the numbers)
        self._is_stale = False  # whether the exchange under way may ask for what has been done

    def listen(self) -> None:
        """Take the signals over. Only the main thread of a process can."""
        for number in SIGNALS:
            # nohup's wish is that the run outlives its terminal.
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, self._receive)

    def _receive(self, number, frame) -> None:
        if self.received is None:
            self.received, self._first = number, self.now()
        elif self.now() - self._first > GRACE:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def at(self, what: str, epoch: int, step: int) -> None:
        """Note where this rank is, for the others to ask when they wait for it."""
        if self.pulse is not None:
            self.pulse.at(what, epoch, step)

    def wants_break(self, step: int) -> bool:
        """Whether to leave the epoch now, after `step` of its steps; every rank gets one answer.

        Every rank must ask after every update.

        Raises:
            data.badfiles.TooMany: on all ranks.
        """
        is_due = bool(self.seconds) and self.now() - self._saved >= self.seconds
        has_bad = self.bad_files is not None and self.bad_files.is_waiting
        number, due, bad = self._agree(self.received or 0, int(is_due), int(has_bad))
        if self._is_stale:  # asked before the checkpoint that answered it
            self._is_stale, due = False, 0
        if bad:
            self.bad_files.share()
        self.agreed = number or None
        before, self._step = self._step, step
        every = self.every_steps
        return bool(number or due or (every and step // every > before // every))

    def begin(self, step: int) -> None:
        """An epoch begins, or goes on after `step` of its steps."""
        self._step = step

    def saved(self) -> None:
        """A checkpoint was taken: the next one is due so many minutes from now."""
        self._saved = self.now()
        self._is_stale = self._exchange is not None

    def _agree(self, *numbers: int) -> List[int]:
        """The largest of each number over the ranks, as they were one update ago."""
        if not dist.is_parallel():
            return list(numbers)
        found = [0] * len(numbers)
        if self._exchange is not None:
            self._exchange[0].wait()
            found = self._exchange[1].tolist()
        values = torch.tensor(numbers, dtype=torch.int32)
        self._exchange = dist.start_max(values), values
        return found

    def close(self) -> None:
        """End what is under way between the ranks."""
        if self._exchange is not None:
            self._exchange[0].wait()
            self._exchange = None
        if self.pulse is not None:
            self.pulse.close()

    def guard(self, batches: Iterable) -> "Guarded":
        """A loader of a validation, which ends where this rank has received a signal."""
        return Guarded(batches, self)

    def on_any_rank(self) -> Optional[int]:
        """The signal that any of the ranks has received; every rank must ask."""
        asked = dist.gather_bytes(b"%d" % (self.received or self.agreed or 0))
        return max(map(int, asked)) or None


class Guarded:
    """A loader whose iteration a signal breaks off.

    Ranks have different numbers of batches in a validation, so none waits here for another. All of
    them meet where the score is summed up, also those that were broken off: a rank that left there
    would keep the others waiting, and nothing would be saved.
    """

    def __init__(self, batches: Iterable, watch: Watch):
        self.batches, self.watch = batches, watch

    def __len__(self):
        return len(self.batches)

    def __iter__(self) -> Iterator:
        """Yield the batches, up to a signal; then ask `Watch.on_any_rank`."""
        for batch in self.batches:
            if self.watch.received or self.watch.agreed:
                return
            yield batch


def start_pulse(who: dist.Ranks, timeout_s: float) -> Optional[Pulse]:
    """Begin to tell the other ranks where this one is; None where there are none."""
    store = dist.store()
    if store is None:
        return None
    pulse = Pulse(who.rank, who.world, timeout_s, store)
    dist.barrier()  # everyone is there before anyone is asked for
    pulse.start()
    peers.listen_to(pulse)
    return pulse


def leave_together(keeper: Any) -> None:
    """Finish the checkpoint before any rank ends: a launcher kills the others when one does.

    Args:
        keeper: the main rank's, None on the others.
    """
    try:
        if keeper is not None:
            keeper.close()
    finally:
        dist.part()
