"""Read training logs: a result table of any runs, and the result files of the scripts in test/.

    python -m mobilenetv3.report output/* test/output/0      # Markdown, one row a run
    python -m mobilenetv3.report --case acc --seconds 3600 test/output/0/train_0.log

The meaning of a number is the same wherever it is printed. FPS: images per second over all ranks,
warm-up, validation and checkpoints left out (the last ` * FPS@all` line). Accuracy: the best Acc@1
in percent over the whole validation set. A number that was not measured is left out ("-" in the
table), never guessed.
"""

import argparse
import math
import platform
import re
import sys
from pathlib import Path
from typing import Iterable, List, Optional, Tuple

from mobilenetv3 import logfmt
from mobilenetv3.arguments import COUNT, PlainParser
from mobilenetv3.text import printable

# Ascend ModelZoo's names of its own two networks; every other model goes by its own name.
NETWORKS = {
    "mobilenetv3_large_100": "MobileNetV3-Large_ID1784_for_PyTorch",
    "mobilenetv2_100": "MobileNetV2_ID0098_for_PyTorch",
}
COLUMNS = ("NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version", "Data", "Device")


class Log:
    """What a log says, gathered line by line; what it does not say stays None or empty."""

    def __init__(self, path: Path):
        self.path = path
        self.run: Optional[logfmt.Run] = None
        self.losses: List[float] = []  # of each train line; of each test line where none trained
        self.times: List[float] = []  # seconds, of the first two train lines
        self.acc1: Optional[float] = None  # percent, best
        self.fps: Optional[float] = None  # last
        self.epochs_done = 0
        self._is_trained = False

    def add(self, record: Optional[logfmt.Record]) -> None:
        """Take in one record; None (a line that is no record) changes nothing."""
        if isinstance(record, logfmt.Run):
            self.run, self.times = record, []
        elif isinstance(record, logfmt.TrainLine):
            self._add_train(record)
        elif isinstance(record, logfmt.TestLine) and not self._is_trained:
            self.losses.append(record.loss_avg)
        elif isinstance(record, logfmt.Accuracy):
            self._add_acc1(record.acc1)
        elif isinstance(record, logfmt.Best):
            self._add_acc1(record.acc1)  # of a resumed run, the best may be from before this log
        elif isinstance(record, logfmt.Throughput):
            self.fps = record.fps if math.isfinite(record.fps) and record.fps > 0 else None

    def _add_train(self, record: logfmt.TrainLine) -> None:
        if not self._is_trained:
            self._is_trained, self.losses = True, []
        self.losses.append(record.loss)
        if len(self.times) < 2:
            self.times.append(record.time)
        if record.step + 1 == record.steps:
            self.epochs_done = record.epoch + 1

    def _add_acc1(self, acc1: float) -> None:
        if math.isfinite(acc1):
            self.acc1 = acc1 if self.acc1 is None else max(self.acc1, acc1)


def read_log(path: Path) -> Log:
    """Read a log file."""
    log = Log(path)
    # A log also holds whatever else a rank printed, in any encoding.
    with open(str(path), encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            log.add(logfmt.parse(line))
    return log


def find_log(run: Path) -> Path:
    """The log of a run: of a run folder, of a folder of test/output, or the file itself.

    Raises:
        FileNotFoundError: there is none.
    """
    if run.is_file():
        return run
    own = run / "train.log"
    found = [own] if own.is_file() else sorted(run.glob("train_*.log"))
    if not found:
        raise FileNotFoundError(
            f"{run} is neither a log file nor a folder with train.log or train_<device>.log in it"
        )
    return found[0]


def table(logs: Iterable[Log]) -> str:
    """The result table in Markdown, one row a log."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)] + [_row(log) for log in logs]
    return "\n".join("| {} |".format(" | ".join(row)) for row in rows)


def _row(log: Log) -> Tuple[str, ...]:
    acc1 = "-" if log.acc1 is None else f"{log.acc1:.3f}"
    fps = "-" if log.fps is None else f"{log.fps:.1f}"
    run = log.run
    if run is None:
        return (_cell(log.path.parent.name), acc1, fps, "-", "-", "-", "-", "-")
    cells = (f"{run.model} {run.ranks}p", acc1, fps, _epochs(log), run.amp, run.torch, run.data)
    return tuple(map(_cell, cells + (run.device,)))


def _epochs(log: Log) -> str:
    """Epochs trained to their end, and of how many where those are not all."""
    if not log.times:
        return "-"
    if log.epochs_done >= log.run.epochs:
        return str(log.run.epochs)
    return f"{log.epochs_done} of {log.run.epochs}" if log.epochs_done else "< 1"


def _cell(text: object) -> str:
    # A name from a log or of a folder: in Markdown neither a column of its own, nor HTML.
    shown = printable(" ".join(str(text).split()))
    return re.sub(r"([\\|`\[\]]|<(?=\S))", r"\\\1", shown) or "-"


def case_name(run: logfmt.Run, kind: str) -> str:
    """ModelZoo's name of a result: network, global batch, ranks, kind ("acc", "perf", "eval")."""
    network = NETWORKS.get(run.model) or re.sub(r"[^\w.-]", "_", run.model) + "_for_PyTorch"
    return f"{network}_bs{run.batch_size}_{run.ranks}p_{kind}"


def case_entries(log: Log, kind: str, seconds: int) -> List[Tuple[str, str]]:
    """Keys and values of <CaseName>.log in ModelZoo's order.

    TrainingTime is milliseconds a step at the measured FPS; CompileTime the seconds of the first
    two steps, in which a device compiles its operators; ActualLoss the last printed loss.
    """
    run, is_eval = log.run, kind == "eval"
    name = case_name(run, kind)
    entries: List[Tuple[str, object]] = [
        ("Network", name[: name.rindex("_bs")]),
        ("RankSize", run.ranks),
        ("BatchSize", run.batch_size),
        ("DeviceType", platform.machine()),
        ("CaseName", name),
    ]
    if log.fps is not None and not is_eval:
        entries.append(("ActualFPS", f"{log.fps:.3f}"))
        entries.append(("TrainingTime", f"{run.batch_size * 1000 / log.fps:.3f}"))
    if log.acc1 is not None and kind != "perf":
        entries.append(("TrainAccuracy", f"{log.acc1:.3f}"))
    if log.losses and math.isfinite(log.losses[-1]):
        entries.append(("ActualLoss", f"{log.losses[-1]:.4f}"))
    entries.append(("E2ETrainingTime", seconds))
    if kind == "perf" and run.ranks == 1 and len(log.times) == 2:
        entries.append(("CompileTime", f"{sum(log.times):.3f}"))
    return [(key, str(value)) for key, value in entries]


def final_result(log: Log, kind: str, seconds: int) -> str:
    """The lines that ModelZoo's scripts end with; one that has no number is not there."""
    lines = ["------------------ Final result ------------------"]
    if log.fps is not None and kind != "eval":
        lines.append(f"Final Performance images/sec : {log.fps:.3f}")
    if log.acc1 is not None and kind != "perf":
        lines.append(f"Final Train Accuracy : {log.acc1:.3f}")
    lines.append(f"E2E Training Duration sec : {seconds}")
    return "\n".join(lines)


def check_complete(log: Log, kind: str) -> None:
    """Raise ValueError where the log lacks what a result of this kind is about."""
    if log.run is None:
        raise ValueError(f"{log.path} does not say what was run (no `=> run` line): no result")
    if kind == "perf" and log.fps is None:
        raise ValueError(
            f"{log.path} has no FPS: the run must take more than the {log.run.fps_warmup} warm-up "
            "steps that FPS leaves out"
        )
    if kind != "perf" and log.acc1 is None:
        raise ValueError(f"{log.path} has no validation accuracy (no ` * Acc@1` line): no result")


def write_case(log: Log, kind: str, seconds: int) -> None:
    """Write <CaseName>.log and train_<CaseName>_loss.txt beside the log."""
    entries = case_entries(log, kind, seconds)
    name = dict(entries)["CaseName"]
    text = "".join(f"{key} = {value}\n" for key, value in entries)
    losses = "".join(f"{loss:.4f}\n" for loss in log.losses)
    log.path.with_name(f"{name}.log").write_text(text, encoding="utf-8")
    log.path.with_name(f"train_{name}_loss.txt").write_text(losses, encoding="utf-8")


def _arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = PlainParser(
        prog="python -m mobilenetv3.report",
        description="Print the result table of training runs, in Markdown.",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", type=Path,
                        help="run folder, folder of test/output, or log file")
    parser.add_argument("--case", choices=("acc", "perf", "eval"),
                        help="instead of the table: write the ModelZoo result files of one run "
                        "beside its log and print its final result")
    parser.add_argument("--seconds", type=COUNT, default=0, metavar="N",
                        help="with --case: how long the run took from end to end")
    arguments = parser.parse_args(argv)
    if arguments.case and len(arguments.runs) > 1:
        parser.error(f"--case is about one run; {len(arguments.runs)} were named")
    return arguments


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns its exit status, 1 where a result is missing."""
    arguments = _arguments(argv)
    try:
        logs = [read_log(find_log(run)) for run in arguments.runs]
        if arguments.case:
            check_complete(logs[0], arguments.case)
            write_case(logs[0], arguments.case, arguments.seconds)
            print(final_result(logs[0], arguments.case, arguments.seconds))
            return 0
    except (OSError, ValueError) as error:
        print(f"[Error] {printable(error)}", file=sys.stderr)
        return 1
    # The folders of ranks 1 to 7 hold logs without a result; `test/output/*` names them as well.
    filled = [log for log in logs if log.run or log.losses or log.acc1 is not None]
    for log in logs:
        if log not in filled:
            print(f"note: nothing to report in {printable(log.path)}", file=sys.stderr)
    if filled:
        print(table(filled))
    return 0 if filled else 1


if __name__ == "__main__":
    sys.exit(main())
