"""The other ranks of a job and their hosts, so that an error can name those that do not answer."""
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Dict, List, Optional, Sequence

SILENT = 0.8
"""Share of the ranks' time-out after which a rank says for whom it waits."""

_ranks: Dict[str, List[int]] = {}  # address of another host -> its ranks


def address_towards(host: str) -> str:
    """This host's address in the network in which it reaches another; its name if there is none."""
    try:
        family, kind, _, _, target = socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(target)  # sends nothing: it asks the routing table
            return probe.getsockname()[0]
    except OSError:
        return socket.gethostname()


def remember(addresses: Sequence[str], rank: int) -> None:
    """Note where the ranks are.

    Args:
        addresses: of the ranks, in their order.
        rank: this one.
    """
    _ranks.clear()
    for number, address in enumerate(addresses):
        if address != addresses[rank]:
            _ranks.setdefault(address, []).append(number)


def silent(seconds: float = 3.0) -> str:
    """The hosts that do not answer now, such as "10.0.0.2 (ranks 8 to 15)"; "" if all do.

    Where nothing listens a host that is up refuses a connection; one that is down, or out of reach,
    says nothing. So does a firewall: an answer is proof, silence is a hint.
    """
    if not _ranks:
        return ""
    with ThreadPoolExecutor(max_workers=min(32, len(_ranks))) as pool:
        answers = list(pool.map(lambda address: _answers(address, seconds), _ranks))
    return ", ".join(
        f"{address} ({_span(ranks)})"
        for (address, ranks), answered in zip(_ranks.items(), answers) if not answered
    )


def _answers(address: str, seconds: float) -> bool:
    try:
        socket.create_connection((address, 9), timeout=seconds).close()
    except ConnectionRefusedError:
        return True
    except OSError:
        return False
    return True


def _span(ranks: List[int]) -> str:
    return f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks {ranks[0]} to {ranks[-1]}"


class Pulse:
    """Tells the other ranks where this one is, and says whom it waits for.

    A thread writes where the rank is into the job's store, which all ranks reach, and reads the
    others' where nothing has moved here for long. It also works while the rank waits in a
    collective, in a read of a file, or anywhere in a library that lets other threads run.

    Args:
        timeout_s: how long a rank waits for another before it gives up.
        store: torch.distributed's, or anything with its set and get.
    """

    def __init__(self, rank: int, world: int, timeout_s: float, store,
                 say: Optional[Callable[[str], None]] = None):
        self.rank, self.world, self.timeout_s, self.store = rank, world, timeout_s, store
        self.say = say or _to_standard_error
        self._place = (0, "starting")
        self._stop = threading.Event()
        store.set(self._key(rank), self._text())
        self._thread = threading.Thread(target=self._beat, name="pulse", daemon=True)

    def start(self) -> None:
        """Begin; every rank must have been created before one of them starts."""
        self._thread.start()

    def at(self, what: str, epoch: int, step: int) -> None:
        """This rank begins something. Nothing is sent here."""
        self._place = (self._place[0] + 1, f"{what} (epoch {epoch}, step {step})")

    def close(self) -> None:
        self._stop.set()

    def laggards(self, patience_s: float = 3.0) -> str:
        """The ranks that are behind the others, and where; "" where none is or nothing is known.

        Args:
            patience_s: how long to wait for the store; where the network is gone it never answers.
        """
        found: List[str] = []
        # A thread of its own, because nothing else ends a read that gets no answer.
        reader = threading.Thread(target=lambda: found.append(self._behind()), daemon=True)
        reader.start()
        reader.join(patience_s)
        return found[0] if found else ""

    def _behind(self) -> str:
        try:
            places = [self._read(rank) for rank in range(self.world)]
        except Exception:  # noqa: BLE001  (the store may be gone with the host that has it)
            return ""
        places[self.rank] = self._place
        behind = min(count for count, _ in places)
        if behind == max(count for count, _ in places):
            return ""
        return ", ".join(f"rank {rank}: {what}" for rank, (count, what) in enumerate(places)
                         if count == behind)

    def _read(self, rank: int):
        count, _, what = self.store.get(self._key(rank)).decode().partition(" ")
        return int(count), what

    def _key(self, rank: int) -> str:
        return f"mobilenetv3/pulse/{rank}"

    def _text(self) -> str:
        return "{} {}".format(*self._place)

    def _beat(self) -> None:
        sent, since, has_told = self._place, time.monotonic(), False
        while not self._stop.wait(min(2.0, self.timeout_s / 10.0)):
            if self._place != sent:
                sent, since, has_told = self._place, time.monotonic(), False
                try:
                    self.store.set(self._key(self.rank), self._text())
                except Exception:  # noqa: BLE001  (see above)
                    return
            waited = time.monotonic() - since
            if has_told or waited < SILENT * self.timeout_s:
                continue
            has_told = True
            behind = self.laggards()
            if behind:
                self.say(f"rank {self.rank} has waited {waited:.0f} s for another rank; behind "
                         f"are {behind}; --dist_timeout ends the run after {self.timeout_s:g} s")


def _to_standard_error(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


_pulse: Optional[Pulse] = None


def listen_to(pulse: Optional[Pulse]) -> None:
    """Note whom to ask where the other ranks are."""
    global _pulse
    _pulse = pulse


def behind() -> str:
    """The ranks that are behind this one, and where they are; "" where nothing is known."""
    return _pulse.laggards() if _pulse is not None else ""
