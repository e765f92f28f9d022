"""What the fuzzers share: damage to bytes, a child process that takes cases, a table of outcomes.

A fuzzer makes cases from a seed and gives each to a judge in a child process. The judge returns a
word for a good outcome and raises for a bad one. The parent waits SECONDS for an answer; the
child's address space may grow by CEILING over what it had before the first case. A child that dies,
hangs or runs out of memory is a fault of the case, and the next case gets a new child.
"""
import argparse
import collections
import multiprocessing
import os
import pickle
import resource
import sys
import tempfile
import time
import traceback
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

SECONDS = 10
CEILING = 1 << 30
_SHOWN = 1500  # characters of a fault


class Case(NamedTuple):
    """One input."""

    kind: str
    """The row of the table that it counts in."""
    payload: Any
    """What the judge gets; anything that can be pickled."""


class Totals:
    """Outcomes by kind, and the faults in full."""

    def __init__(self, title: str):
        self.title = title
        self.counts = collections.defaultdict(collections.Counter)
        self.faults: List[Tuple[str, str]] = []
        self.slowest_s, self.slowest = 0.0, ""

    def add(self, number: int, kind: str, outcome: str, seconds: float, fault: str = "") -> None:
        """Count a case, `fault` being what went wrong."""
        place = f"{self.title}, case {number} ({kind})"
        self.counts[kind]["FAULT" if fault else outcome] += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = seconds, place
        if fault:
            self.faults.append((place, fault))

    @property
    def cases(self) -> int:
        return sum(sum(counter.values()) for counter in self.counts.values())

    def table(self) -> str:
        """Markdown: a row a kind, a column an outcome; then the slowest case and the faults."""
        outcomes = sorted({name for counter in self.counts.values() for name in counter},
                          key=lambda name: (name == "FAULT", name))
        lines = [f"| {self.title} | cases | {' | '.join(outcomes)} |",
                 "|---|" + "---:|" * (len(outcomes) + 1)]
        total = collections.Counter()
        for kind, counter in sorted(self.counts.items()):
            total.update(counter)
            lines.append(self._row(kind, counter, outcomes))
        lines.append(self._row("all", total, outcomes))
        lines.append(f"\nslowest: {self.slowest_s:.2f} s, {self.slowest}; faults: "
                     f"{len(self.faults)}")
        for place, text in self.faults:
            lines.append(f"\n--- {place}\n{text[-_SHOWN:]}")
        return "\n".join(lines)

    @staticmethod
    def _row(name: str, counter, outcomes: Sequence[str]) -> str:
        cells = [str(sum(counter.values())), *(str(counter[outcome]) for outcome in outcomes)]
        return f"| {name} | {' | '.join(cells)} |"


# ------------------------------------------------------------------------------------------- damage


def mutate(data: bytes, rng, hot: Sequence[Tuple[int, int]] = (), other: bytes = b"") -> bytes:
    """A damaged copy: one to four changes of random kinds at random places.

    Args:
        rng: random.Random.
        hot: spans (begin, end) that half of the changes fall into, such as a header.
        other: another file, for splices; the file itself if empty.
    """
    content = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = _place(len(content), rng, hot)
        rng.choice(_CHANGES)(content, at, rng, other or data)
    return bytes(content)


def _place(size: int, rng, hot: Sequence[Tuple[int, int]]) -> int:
    if hot and rng.random() < 0.5:
        begin, end = rng.choice(hot)
        return min(rng.randrange(begin, max(begin + 1, end)), max(0, size - 1))
    return rng.randrange(max(1, size))


def _flip(content, at, rng, other):
    if at < len(content):
        content[at] ^= 1 << rng.randrange(8)


def _overwrite(content, at, rng, other):
    values = bytes(rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256)))
                   for _ in range(rng.choice((1, 2, 4, 8))))
    content[at:at + len(values)] = values[:len(content) - at]


def _number(content, at, rng, other):
    """A number of a header: a size, a count, an offset."""
    size = rng.choice((1, 2, 4, 8))
    value = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1,
                        rng.randrange(2 ** (8 * size))))
    content[at:at + size] = value.to_bytes(size, rng.choice(("little", "big")))[:len(content) - at]


def _truncate(content, at, rng, other):
    del content[at:]


def _remove(content, at, rng, other):
    del content[at:at + rng.randrange(1, 64)]


def _double(content, at, rng, other):
    content[at:at] = content[at:at + rng.randrange(1, 64)]


def _insert(content, at, rng, other):
    content[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 16)))


def _zero(content, at, rng, other):
    end = min(len(content), at + rng.randrange(1, 4096))
    content[at:end] = bytes(end - at)


def _swap(content, at, rng, other):
    """Two blocks change places, as where a disk mixes up its sectors."""
    size = min(rng.choice((16, 512, 4096)), len(content) // 2)
    there = rng.randrange(max(1, len(content) - size))
    at = min(at, max(0, len(content) - size))
    if abs(at - there) >= size:
        content[at:at + size], content[there:there + size] = (
            content[there:there + size], content[at:at + size])


def _splice(content, at, rng, other):
    """The rest is that of another file, or of the same from another place."""
    content[at:] = other[rng.randrange(max(1, len(other))):]


def _append(content, at, rng, other):
    content += other[:rng.randrange(1, 4096)]


_CHANGES = (_flip, _flip, _flip, _overwrite, _number, _number, _truncate, _remove, _double, _insert,
            _zero, _swap, _splice, _append)


# ------------------------------------------------------------------------------------------ running


class _Child:
    """A process that judges cases until it dies."""

    def __init__(self, judge: Callable[[Any, str], str], folder: str):
        # Forked, so that what took seconds to import is there.
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(judge, theirs, self.pipe, folder),
                                       daemon=True)
        self.process.start()
        theirs.close()

    def judge(self, payload: Any, seconds: float) -> Tuple[str, str]:
        """("ok", outcome) or ("fault", what went wrong); the child is usable after the former."""
        try:
            self.pipe.send_bytes(pickle.dumps(payload))
            if not self.pipe.poll(seconds):
                return "fault", f"no answer after {seconds} s"
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, ConnectionError):
            self.process.join(5)
            return "fault", f"the process died with status {self.process.exitcode}"

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _serve(judge, pipe, parents, folder):
    parents.close()
    ceiling = _address_space() + CEILING
    resource.setrlimit(resource.RLIMIT_AS, (ceiling, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.chdir(folder)
    while True:
        try:
            payload = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = "ok", judge(payload, folder)
        except BaseException as error:  # noqa: BLE001  (whatever a case brings about)
            words = "out of memory: " if is_out_of_memory(error) else ""
            answer = "fault", words + traceback.format_exc()
        pipe.send_bytes(pickle.dumps(answer))


def _address_space() -> int:
    """Bytes that this process has mapped."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def is_out_of_memory(error: Optional[BaseException]) -> bool:
    """Whether a lack of memory is behind an error, also where it was made into another one."""
    while error is not None:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def judge_all(title: str, cases: Iterable[Case], judge: Callable[[Any, str], str],
              keep: Optional[str] = None) -> Totals:
    """Give every case to `judge(payload, private folder)` in a child process.

    Args:
        keep: folder that gets the payloads of faults, pickled.
    """
    totals, child = Totals(title), None
    with tempfile.TemporaryDirectory(prefix="mobilenetv3-fuzz-") as folder:
        for number, case in enumerate(cases):
            child = child or _Child(judge, folder)
            started = time.monotonic()
            kind, text = child.judge(case.payload, SECONDS)
            seconds = time.monotonic() - started
            if kind == "ok":
                totals.add(number, case.kind, text, seconds)
                continue
            totals.add(number, case.kind, "", seconds, fault=text)
            child.end()
            child = None
            if keep:
                _keep(keep, f"{title.replace(' ', '_')}-{number}.pickle", case.payload)
        if child:
            child.end()
    return totals


def _keep(folder: str, name: str, payload: Any) -> None:
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, name), "wb") as file:
        pickle.dump(payload, file)


def check_sentence(text: str, most: int = 4000) -> None:
    """Assert that a message is one clear line: for a terminal, and not a trace of our insides."""
    assert text and "\n" not in text and "Traceback" not in text, text
    assert all(c.isprintable() or c == "\t" for c in text), ascii(text)
    assert len(text) <= most, f"{len(text)} characters: {text[:200]}"


def command(run: Callable[..., Totals], about: str, count: int,
            argv: Optional[Sequence[str]] = None) -> int:
    """The command line of one fuzzer; returns the exit status, 1 where there are faults."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--count", type=int, default=count, metavar="N", help=f"cases ({count})")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the cases (0)")
    parser.add_argument("--keep", metavar="DIR", help="folder for the inputs that went wrong")
    args = parser.parse_args(argv)
    totals = run(args.count, args.seed, args.keep)
    print(totals.table(), flush=True)
    return 1 if totals.faults else 0


# The fuzzers are commands of their own, and import the package and the makers of the unit tests.
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
for _folder in (os.path.join(ROOT, "test", "unit"), ROOT):
    if _folder not in sys.path:
        sys.path.insert(0, _folder)
