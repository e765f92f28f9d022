"""The result table in Markdown, and texts from outside as its cells."""
import re
from typing import Iterable, Tuple

from mobilenetv3.text import printable

from .logs import Log

COLUMNS = ("NAME", "Acc@1", "FPS", "Epochs", "AMP_Type", "Torch_Version", "Data", "Device")


def table(logs: Iterable[Log]) -> str:
    """The result table in Markdown, one row a log."""
    rows = [COLUMNS, ("---",) * len(COLUMNS)] + [tuple(map(_cell, cells(log))) for log in logs]
    return "\n".join("| {} |".format(" | ".join(row)) for row in rows)


def cells(log: Log) -> Tuple[str, ...]:
    """The cells of a log's row, as they are in the log."""
    acc1 = "-" if log.acc1 is None else f"{log.acc1:.3f}"
    fps = "-" if log.fps is None else f"{log.fps:.1f}"
    run = log.run
    if run is None:
        return (log.path.parent.name, acc1, fps, "-", "-", "-", "-", "-")
    return (f"{run.model} {run.ranks}p", acc1, fps, _epochs(log), run.amp, run.torch, run.data,
            run.device)


def _epochs(log: Log) -> str:
    """Epochs trained to their end, and of how many where those are not all."""
    if not log.is_trained:
        return "-"
    if log.epochs_done >= log.run.epochs:
        return str(log.run.epochs)
    return f"{log.epochs_done} of {log.run.epochs}" if log.epochs_done else "< 1"


def _cell(text: object) -> str:
    # A name from a log or of a folder: in Markdown neither a column of its own, nor HTML.
    shown = printable(" ".join(str(text).split()))
    return re.sub(r"([\\|`\[\]]|<(?=\S))", r"\\\1", shown) or "-"
