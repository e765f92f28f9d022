"""What the benchmarks share: cases in turn, medians, the machine, the table and the JSON file.

What else a machine does, and how warm it is, falls on all cases alike if they take turns. So every
round takes each case for --seconds / --rounds seconds, a ratio is taken within its round, and shown
are the medians over the rounds, with the lowest and the highest ratio.

    options = measure.add_options(parser, seconds=30).parse_args()
    started = measure.load()
    cases, skipped = measure.prepare({"this package": ours, "timm": theirs})
    rates = measure.take_turns(cases, options)
    rows = measure.rows(rates, "timm")
    print(measure.conditions(started, cores=1))
    measure.report(rows, skipped, options.json, "Pipeline", "images/s a core")
"""
import argparse
import importlib
import json
import os
import platform
import re
import statistics
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

Row = Dict[str, Any]
Case = Callable[[float], float]
"""Works for about so many seconds and returns its images/s."""


class Skipped(Exception):
    """A case that cannot run here; its text says why."""


def add_options(parser: argparse.ArgumentParser, seconds: float,
                rounds: int = 7) -> argparse.ArgumentParser:
    """Add --seconds, --rounds and --json; the arguments are the defaults."""
    parser.add_argument("--seconds", type=_above_zero, default=seconds, metavar="N",
                        help=f"for each case, all rounds together (default: {seconds:g})")
    parser.add_argument("--rounds", type=_count, default=rounds, metavar="N",
                        help=f"turns that each case gets (default: {rounds})")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    return parser


def _above_zero(text: str) -> float:
    number = float(text)
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


# ---- Measuring.


def prepare(makers: Mapping[str, Callable[[], Case]]) -> Tuple[Dict[str, Case], Dict[str, str]]:
    """Make every case that can run here.

    Args:
        makers: each returns a case, warm, or raises `Skipped`.

    Returns:
        the cases, and why the others were skipped; both by name.
    """
    cases, skipped = {}, {}
    for name, make in makers.items():
        try:
            cases[name] = make()
        except Skipped as reason:
            skipped[name] = str(reason)
    return cases, skipped


def take_turns(cases: Mapping[str, Case], options: argparse.Namespace) -> Dict[str, List[float]]:
    """Each case in turn, round after round: images/s of every round, by name."""
    rates: Dict[str, List[float]] = {name: [] for name in cases}
    for _ in range(options.rounds):
        for name, case in cases.items():
            rates[name].append(case(options.seconds / options.rounds))
    return rates


def rate(step: Callable[[], Any], seconds: float, images: int,
         clock: Callable[[], float] = time.perf_counter,
         wait: Callable[[], Any] = lambda: None) -> float:
    """Images per second of steps that are repeated for so long, at least one.

    Args:
        images: of one step.
        clock: what a second is; time.process_time counts the CPU time of all threads of this
            process, which leaves out what other processes do.
        wait: until the device has done all that was asked of it.
    """
    wait()
    end, done, start = time.monotonic() + seconds, 0, clock()
    while not done or time.monotonic() < end:
        step()
        done += images
    wait()
    return done / max(clock() - start, 1e-9)


# ---- Showing.


def rows(rates: Mapping[str, Sequence[float]],
         base: Union[str, Mapping[str, str]]) -> List[Row]:
    """Medians over the rounds, a row a case.

    Args:
        base: the name that ratios are to; or one for each name, where cases come in groups. A base
            that was skipped leaves the ratio out (None).
    """
    table = []
    for name, found in rates.items():
        to = base if isinstance(base, str) else base[name]
        ratios = [a / b for a, b in zip(found, rates[to])] if to in rates else []
        table.append({
            "name": name, "images_per_second": statistics.median(found),
            "ratio": statistics.median(ratios) if ratios else None, "ratio_to": to,
            "ratio_lowest": min(ratios, default=None), "ratio_highest": max(ratios, default=None),
        })
    return table


def lead(rates: Mapping[str, Sequence[float]], ours: str,
         others: Sequence[str]) -> Tuple[float, str]:
    """How many times the fastest of some other cases one case is, and which that is."""
    best = max(others, key=lambda name: statistics.median(rates[name]))
    return statistics.median(a / b for a, b in zip(rates[ours], rates[best])), best


def markdown(table: Sequence[Row], what: str = "Case", unit: str = "images/s") -> str:
    """The rows as a Markdown table; one base stands in the head, several in a column."""
    bases = {row["ratio_to"] for row in table}
    same = len(bases) == 1
    heads = [what, unit, f"to {min(bases)}" if same else "ratio", "lowest - highest"]
    lines = [heads if same else [*heads, "to"]]
    for row in table:
        cells = [row["name"], short(row["images_per_second"]), "-", "-"]
        if row["ratio"] is not None:
            cells[2] = f"{row['ratio']:.3f}"
            cells[3] = f"{row['ratio_lowest']:.3f} - {row['ratio_highest']:.3f}"
        lines.append(cells if same else [*cells, row["ratio_to"]])
    return grid(lines)


def grid(lines: Sequence[Sequence[str]]) -> str:
    """Cells as a Markdown table, the first line its head; numbers stand to the right."""
    is_number = [all(re.match(r"[-+]?\d|-?$", cell) for cell in column)
                 for column in zip(*lines[1:])] or [False] * len(lines[0])
    ruler = ["---:" if number else "---" for number in is_number]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [lines[0], ruler, *lines[1:]])


def short(number: float) -> str:
    """Three digits or more."""
    return f"{number:.0f}" if number >= 100 else f"{number:.1f}"


def report(table: Sequence[Row], skipped: Mapping[str, str], path: Optional[str],
           what: str = "Case", unit: str = "images/s") -> None:
    """Print the table and what was skipped; write the rows to a JSON file if one is named."""
    print(markdown(table, what, unit))
    tell(table, skipped, path)


def tell(table: Sequence[Row], skipped: Mapping[str, str], path: Optional[str]) -> None:
    """What follows a table: what was skipped, and the JSON file."""
    for number, (name, reason) in enumerate(skipped.items()):
        print(f"{'' if number else chr(10)}{name}: skipped, {reason}")
    if path:
        Path(path).write_text(json.dumps(list(table), indent=1) + "\n", encoding="utf-8")


# ---- The machine.


def load() -> float:
    """Processes that ran or wanted to run in the last minute, on average; 0 where unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0


def conditions(started: float, cores: int, device: Any = None,
               packages: Sequence[str] = ("torch", "torchvision", "timm")) -> str:
    """One line: processor, cores used, load at start and end, versions.

    Args:
        started: `load` when the benchmark started.
        cores: that the cases use.
        device: mobilenetv3.device's Device, whose card is named.
        packages: modules whose versions are told where they can be imported.
    """
    card = ""
    if device is not None and device.module is not None:
        named = getattr(device.module, "get_device_name", lambda index: device.type)
        card = f", {named(device.index)}"
    return (
        f"{processor()}{card}, {cores} of {cpus()} cores; load average {started:.1f} at the "
        f"start, {load():.1f} at the end; Python {platform.python_version()}{_versions(packages)}"
    )


def _versions(packages: Sequence[str]) -> str:
    found = []
    for package in packages:
        try:
            found.append(f", {package} {importlib.import_module(package).__version__}")
        except (ImportError, AttributeError):
            continue
    return "".join(found)


def cpus() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> str:
    """The CPU's name, as Linux has it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} ({platform.machine()})" if names else platform.machine()
