"""The other hosts of a job, so that an error can name those that no longer answer."""
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Dict, List, Sequence

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
