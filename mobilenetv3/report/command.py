"""The command: python -m mobilenetv3.report."""
import argparse
import sys
from pathlib import Path
from typing import List, Optional, Sequence

from mobilenetv3 import drawing
from mobilenetv3.arguments import COUNT, POSITIVE_INT, PlainParser
from mobilenetv3.files import write_atomically
from mobilenetv3.text import printable

from . import case, facts, page, palette, panels, pictures, records
from .follow import follow, watch
from .logs import find_log, read_log
from .result import table

PAGE, PICTURES = "report.html", "report"
"""The page, and the folder beside it that the pictures go to."""


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status, 1 where a result is missing."""
    arguments = _arguments(argv)
    try:
        if arguments.case:
            return _case(arguments.runs[0], arguments.case, arguments.seconds)
        if arguments.follow:
            return follow(arguments.runs[0])
        if arguments.watch:
            return _watch(arguments)
        return _report(arguments)
    except KeyboardInterrupt:
        return 130
    except (OSError, ValueError) as error:
        print(f"[Error] {printable(error)}", file=sys.stderr)
        return 1


def _arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = PlainParser(
        prog="python -m mobilenetv3.report",
        description="Print the result table of training runs, in Markdown, and write a page with "
        "their curves, report.html, and the curves as PNGs.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path,
                        help="run folder, folder of test/output, or log file")
    parser.add_argument("--output", metavar="DIR", type=Path,
                        help="folder for report.html and report/*.png (default: the run folder; of "
                        "several runs ./report)")
    parser.add_argument("--table", action="store_true",
                        help="print the table only, and write nothing")
    parser.add_argument("--watch", action="store_true",
                        help="write the page again whenever the run has come further, until it "
                        "ends or Ctrl-C; the page reads itself again")
    parser.add_argument("--interval", type=POSITIVE_INT, default=10, metavar="SECONDS",
                        help="with --watch: from one time to the next (default: 10)")
    parser.add_argument("--follow", action="store_true",
                        help="instead of all that: one line that tells where a run is, until it "
                        "ends or Ctrl-C")
    parser.add_argument("--case", choices=("acc", "perf", "eval"),
                        help="instead of all that: write the ModelZoo result files of one run "
                        "beside its log and print its final result")
    parser.add_argument("--seconds", type=COUNT, default=0, metavar="N",
                        help="with --case: how long the run took from end to end")
    arguments = parser.parse_args(argv)
    for name in ("case", "follow"):
        if getattr(arguments, name) and len(arguments.runs) > 1:
            parser.error(f"--{name} is about one run; {len(arguments.runs)} were named")
    if arguments.table and arguments.watch:
        parser.error("--table writes nothing, and --watch a page: choose one of them")
    return arguments


def _case(run: Path, kind: str, seconds: int) -> int:
    log = read_log(find_log(run))
    case.check_complete(log, kind)
    case.write_case(log, kind, seconds)
    print(case.final_result(log, kind, seconds))
    return 0


def _report(arguments: argparse.Namespace) -> int:
    found = _filled(records.read(_with_logs(arguments.runs)))
    if not found:
        return 1
    print(table([one.history.log for one in found]), flush=True)
    if not arguments.table:
        for line in write(found, _folder(arguments.output, found)):
            print(printable(line), file=sys.stderr)
    return 0


def _with_logs(runs: Sequence[Path]) -> List[Path]:
    """The runs that have a log, where one of several has.

    Raises:
        FileNotFoundError: none has.
    """
    kept, faults = [], []
    for run in runs:
        try:
            find_log(run)
            kept.append(run)
        except FileNotFoundError as fault:
            faults.append(fault)
    if not kept:
        raise faults[0]
    for fault in faults:
        print(f"note: left out: {printable(fault)}", file=sys.stderr)
    return kept


def _filled(found: Sequence[records.Records]) -> List[records.Records]:
    """Those that have something to report: the logs of ranks 1 to 7 hold no result."""
    filled = []
    for one in found:
        log = one.history.log
        if log.run or log.losses or log.acc1 is not None:
            filled.append(one)
        else:
            print(f"note: nothing to report in {printable(log.path)}", file=sys.stderr)
    return filled


def _watch(arguments: argparse.Namespace) -> int:
    told: List[str] = []

    runs = _with_logs(arguments.runs)

    def update(is_live: bool) -> bool:
        found = records.read(runs)
        lines = write(found, _folder(arguments.output, found),
                      arguments.interval if is_live else 0, has_pictures=not is_live)
        for line in lines:
            if line not in told:
                print(printable(line), file=sys.stderr, flush=True)
                told.append(line)
        return any(facts.state(one)[0] != "finished" for one in found)

    watch(runs, update, arguments.interval)
    print(table([one.history.log for one in records.read(runs)]))
    return 0


def _folder(output: Optional[Path], found: Sequence[records.Records]) -> Path:
    if output is not None:
        return output
    return found[0].folder if len(found) == 1 else Path(PICTURES)


def write(found: Sequence[records.Records], folder: Path, reload_s: float = 0.0,
          has_pictures: bool = True) -> List[str]:
    """Write the page and the pictures of some runs; returns what is to be said.

    Args:
        reload_s: seconds after which the page reads itself again; 0: never.

    Raises:
        ValueError: what is in the way was not written by this command.
        OSError: they cannot be written.
    """
    names = [one.name for one in found]
    curves = panels.curves([one.history for one in found])
    target = folder / PAGE
    if target.exists() and not page.is_ours(target):
        raise ValueError(f"{target} is there already and was not written by this command; move it, "
                         "or name another --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"--output {folder} cannot be a folder: a file is in the way") from error
    said, faults = [], [page.fault(), drawing.fault()]
    if has_pictures and not faults[1]:
        drawn = pictures.write_all(folder / PICTURES, curves, names)
        said += [f"pictures: {folder / PICTURES} ({len(drawn)} PNGs)"] if drawn else []
    if not faults[0]:
        text = page.page(found, curves, reload_s).encode("utf-8", "replace")
        write_atomically(target, lambda file: file.write(text))
        said.insert(0, f"page: {target.resolve()}")
    colours = len(palette.CURVES["light"])
    if len(found) > colours:
        said.append(f"note: {len(found)} runs share {colours} colours; those of {colours} or fewer "
                    "can be told apart in a picture")
    said += [f"note: no {what}: {fault}" for what, fault in zip((PAGE, "pictures"), faults)
             if fault]
    return said
