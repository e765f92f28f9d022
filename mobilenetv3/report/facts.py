"""A run in words: what it is, how it stands, its chief figures, its options, its machine."""
import math
import re
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from mobilenetv3.live import clock
from mobilenetv3.options import train_parser

from .records import Records, is_running

_USER = re.compile(r"(\w://)[^/\s]+@")
_QUERY = re.compile(r"(\w://[^\s?\"']+)\?[^\s\"']+")


class Figure(NamedTuple):
    """One number to show large."""

    value: str
    unit: str
    about: str


def state(records: Records) -> Tuple[str, str]:
    """(a word, a sentence) on whether a run goes on: running, finished, stopped or ""."""
    history = records.history
    if is_running(records.folder):
        return "running", "a process writes to the run folder"
    if history.is_over:
        return "finished", ""
    if history.trained:
        point = history.trained[-1].points[-1]
        return "stopped", (f"the log ends in epoch {point.line.epoch}, after step "
                           f"{point.line.step}")
    return "", ""


def best(records: Records) -> Optional[Tuple[float, Optional[int], Optional[float]]]:
    """(Acc@1, epoch, Acc@5) of the best validation; None where there was none."""
    scored = [(found["val_acc1"], -epoch) for epoch, found in records.history.validations.items()
              if math.isfinite(found.get("val_acc1", math.nan))]
    # An evaluation in the folder of a run is not of its training.
    scored = [one for one in scored if one[1] <= 0] or scored
    if scored:
        acc1, minus_epoch = max(scored)
        acc5 = records.history.validations[-minus_epoch].get("val_acc5")
        return acc1, -minus_epoch if minus_epoch <= 0 else None, acc5
    return None if records.history.log.acc1 is None else (records.history.log.acc1, None, None)


def figures(records: Records) -> List[Figure]:
    """The chief figures of a run, the result first; what was not measured is not there."""
    history, found = records.history, []
    log, top = history.log, best(records)
    if top is not None:
        acc1, epoch, acc5 = top
        about = "best Acc@1" if epoch is None else f"Acc@1 after {_epochs(epoch + 1)}"
        found.append(Figure(f"{acc1:.2f}", "%", about))
        if acc5 is not None and math.isfinite(acc5):
            found.append(Figure(f"{acc5:.2f}", "%", "Acc@5 of the same weights"))
    if log.fps is not None:
        found.append(Figure(f"{log.fps:,.0f}" if log.fps >= 100 else f"{log.fps:.1f}", "images/s",
                            "training, after the warm-up"))
    kept = history.kept()
    if kept:
        last, run = kept[-1], history.trained[-1].run
        if run is not None and last.at >= 1:
            trained = f"{math.floor(10 * last.at + 1e-6) / 10:g}"
            found.append(Figure(trained, f"of {run.epochs}", "epochs trained"))
        else:
            found.append(Figure(f"{last.step:,}", "", "steps trained"))
        loss = last.line.loss_avg
        found.append(Figure(f"{loss:.4f}" if loss < 1000 else f"{loss:.3g}", "nats",
                            "training loss, last epoch"))
    seconds = sum(value for value in (record.get("seconds") for record in records.epochs)
                  if isinstance(value, (int, float)) and 0 <= value < 1e12)
    if seconds:
        value = clock(seconds)
        unit = "h" if value.count(":") == 2 else "" if " d " in value else "min"
        found.append(Figure(value, unit, "training and validation"))
    again = sum(len(points) for points in history.redone())
    starts = len(history.trained)
    if starts > 1:
        about = f"starts, {again} printed steps made twice" if again else "starts, no step twice"
        found.append(Figure(str(starts), "", about))
    return found


def _epochs(count: int) -> str:
    return f"{count} epochs" if count != 1 else "1 epoch"


def describe(records: Records) -> List[str]:
    """What was run, in a few words each."""
    run = records.history.log.run
    if run is None:
        return []
    ranks = f"{run.ranks} ranks" if run.ranks > 1 else "1 rank"
    return [run.model, run.data, f"{run.img_size} px", f"batch {run.batch_size}",
            f"{run.device}, {ranks}", run.amp, f"PyTorch {run.torch}"]


def without_secrets(value: object) -> str:
    """A text with what may give access taken out of the URLs in it."""
    return _QUERY.sub(r"\1?...", _USER.sub(r"\1...@", str(value)))


def by_default(rows: Sequence[Tuple[str, List[str]]]) -> Tuple[list, list]:
    """Rows of `options` of one run, parted: those that were chosen, and train.py's defaults."""
    defaults = {name: _shown(value) for name, value in train_parser().defaults().items()}
    usual = [row for row in rows if defaults.get(row[0]) == row[1][0]]
    return [row for row in rows if row not in usual], usual


def options(records: Sequence[Records]) -> List[Tuple[str, List[str]]]:
    """(option, its value in each run), by name; those that differ come first."""
    names = sorted({name for one in records for name in one.config})
    rows = [(name, [_shown(one.config[name]) if name in one.config else "-" for one in records])
            for name in names]
    return sorted(rows, key=lambda row: len(set(row[1])) == 1)


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (list, tuple)):
        return without_secrets(" ".join(map(str, value)))
    return without_secrets(value)


def environment(start: Dict[str, Any]) -> List[Tuple[str, str]]:
    """(what, its version or name) of a start."""
    found = []
    for name, value in start.items():
        if isinstance(value, dict):
            found += [(_titled(name, key), _shown(part)) for key, part in value.items()
                      if part not in ("", None)]
        elif name not in ("command", "time", "epoch", "step"):
            found.append((name, _shown(value)))
    return found


def _titled(group: str, key: str) -> str:
    if group in ("versions", "host"):
        return {"memory_gib": "memory, GiB", "cpus": "usable CPUs"}.get(key, key)
    return f"{group} {key}"
