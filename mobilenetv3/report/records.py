"""The records of a run, read with the distrust that files of a shared folder deserve.

Whatever is missing, cut short or of another shape is left out; only a log must be there.
"""
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

from mobilenetv3.text import printable

from . import history
from .logs import find_log

LARGEST = 64 << 20
"""Bytes of a file beside the log that is still read."""
_IMAGE = re.compile(r"data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")


class Example(NamedTuple):
    """An image of the validation set, and what the network took it for."""

    image: str
    """Data URL."""
    file: str
    label: int
    top: List[List[float]]
    """[class, probability] of the likeliest classes, best first."""

    @property
    def is_right(self) -> bool:
        return int(self.top[0][0]) == self.label


class Validation(NamedTuple):
    """What a validation saw (`validated.FILE`)."""

    about: Dict[str, Any]
    classes: List[str]
    counts: List[List[int]]
    """[true class, predicted class, images]."""
    samples: List[Example]
    mistakes: List[Example]


class Records(NamedTuple):
    """All that is known of a run."""

    name: str
    folder: Path
    """The run folder, or that of the log."""
    history: history.History
    epochs: List[Dict[str, Any]]
    """The lines of metrics.jsonl."""
    config: Dict[str, Any]
    starts: List[Dict[str, Any]]
    """The lines of environment.jsonl."""
    validation: Optional[Validation]


def read(runs: Sequence[Path]) -> List[Records]:
    """The records of runs, with names that tell them apart.

    Raises:
        FileNotFoundError: there is no log.
    """
    logs = [find_log(run) for run in runs]
    return [_read(log, name) for log, name in zip(logs, _names([log.parent for log in logs]))]


def _read(log: Path, name: str) -> Records:
    folder = folder_of(log)
    found = history.read(log)
    epochs = _json_lines(folder / "metrics.jsonl")
    history.add_metrics(found, epochs)
    return Records(name, folder, found, epochs, _config(folder),
                   _json_lines(folder / "environment.jsonl"),
                   _validation(folder / "validation.json"))


def folder_of(log: Path) -> Path:
    """The run folder of a log: its own, or the one that the scripts of test/ make beside it."""
    beside = log.parent / "ckpt"
    return beside if log.name != "train.log" and (beside / "config.yaml").is_file() else log.parent


def sources(log: Path) -> List[Path]:
    """The files that the records of a run come from."""
    folder, names = folder_of(log), ("metrics.jsonl", "environment.jsonl", "validation.json")
    return [log, *(folder / name for name in names), *_configs(folder)]


def is_running(folder: Path) -> Optional[bool]:
    """Whether a process writes to a run folder; None where that cannot be told.

    That process has a lock (`runfolder.lock`). It is asked for here, shared, and given back at
    once.
    """
    try:
        handle = os.open(str(folder / "run.lock"), os.O_RDONLY)
    except OSError:
        return None
    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except PermissionError:
        return True
    except OSError:
        return None
    finally:
        os.close(handle)
    return False


def _names(folders: Sequence[Path]) -> List[str]:
    """The last parts of the folders' paths, as many as tell them apart."""
    parts = [folder.absolute().parts for folder in folders]
    for length in range(1, 1 + max(map(len, parts))):
        names = ["/".join(path[-length:]) for path in parts]
        if len(set(names)) == len(set(parts)):
            break
    return [f"{name} ({names[:place].count(name) + 1})" if names.count(name) > 1 else name
            for place, name in enumerate(names)]


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > LARGEST:
            return ""
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _json_lines(path: Path) -> List[Dict[str, Any]]:
    found = [_json(line) for line in _text(path).splitlines()]
    return [record for record in found if isinstance(record, dict)]


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _configs(folder: Path) -> List[Path]:
    """The options of each start, the first one's first."""
    later = [(_stamp(path), path) for path in folder.glob("config.from_epoch_*.yaml")]
    return [folder / "config.yaml", *(path for _, path in sorted(later))]


def _stamp(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def _config(folder: Path) -> Dict[str, Any]:
    """The options of the last start that trained; of an evaluation where none did."""
    import yaml

    last: Dict[str, Any] = {}
    for path in _configs(folder):
        try:
            found = yaml.safe_load(_text(path))
        except (yaml.YAMLError, ValueError, RecursionError):
            continue
        if isinstance(found, dict) and (not last or not found.get("evaluate")):
            last = {str(name): value for name, value in found.items()}
    return last


def _validation(path: Path) -> Optional[Validation]:
    found = _json(_text(path))
    if not isinstance(found, dict):
        return None
    classes = found.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        return None
    counts = [row for row in _rows(found.get("confusion")) if _is_count(row, len(classes))]
    lists = [[_example(one, len(classes)) for one in _rows(found.get(name), dict)]
             for name in ("samples", "mistakes")]
    about = {name: value for name, value in found.items() if isinstance(value, (int, float))}
    return Validation(about, [printable(name) for name in classes], counts,
                      *([one for one in examples if one] for examples in lists))


def _rows(value: Any, kind: type = list) -> List[Any]:
    return [row for row in value if isinstance(row, kind)] if isinstance(value, list) else []


def _is_count(row: List[Any], classes: int) -> bool:
    if len(row) != 3 or any(type(value) is not int for value in row):
        return False
    return 0 <= row[0] < classes and 0 <= row[1] < classes and 0 <= row[2] < 10 ** 12


def _example(found: Dict[str, Any], classes: int) -> Optional[Example]:
    image, label, top = (found.get(name) for name in ("image", "label", "top"))
    if not isinstance(image, str) or not _IMAGE.fullmatch(image) or type(label) is not int:
        return None
    pairs = [pair for pair in _rows(top) if len(pair) == 2 and type(pair[0]) is int
             and 0 <= pair[0] < classes and isinstance(pair[1], (int, float))
             and 0 <= pair[1] <= 1]
    if not pairs or not 0 <= label < classes:
        return None
    return Example(image, printable(found.get("file", "")), label, pairs)
