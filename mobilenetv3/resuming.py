"""Going on from a checkpoint: rank 0 chooses and reads it, and all ranks get what it read.

So a file that only one host sees is enough, and no two ranks go on from different ones.
"""
import json
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from mobilenetv3 import checkpoint, dist, keep, snapshot
from mobilenetv3.dist import Ranks


class Found(NamedTuple):
    """A checkpoint to go on from."""

    path: str
    state: Any
    lines: List[str]
    """For the log: what was passed over."""

    def notes(self, cfg: Dict[str, Any], world: int) -> List[str]:
        """What the log says of it, and of what is not as it was."""
        epoch, step = self.state["epoch"], self.state.get("step", 0)
        where = f"epoch {epoch}, step {step}" if step else f"epoch {epoch}"
        return [*self.lines, f"=> resumed from {self.path} ({where})",
                *snapshot.notes(self.state, cfg, world)]


def find(resume: str, folder: Path, who: Ranks) -> Optional[Found]:
    """The checkpoint that --resume names, or for "auto" the newest whole one of a run folder.

    None where --resume was not given, or "auto" finds none: nothing has been saved yet. Every rank
    must call it.

    Raises:
        FileNotFoundError: there is no file at the path given.
        ValueError: the file is damaged; with "auto", all are.
    """
    if not resume:
        return None
    error: Optional[Exception] = None
    found: Tuple = (None, None, [])
    if who.is_main:
        try:
            found = _read(resume, folder)
        except (ValueError, OSError) as raised:  # the others must not wait for what never comes
            error = raised
    path, state, lines = found
    told = json.dumps({"path": path and str(path), "lines": lines, "error": error and str(error)})
    told = json.loads(dist.broadcast_bytes(told.encode("utf-8", "surrogateescape")).decode(
        "utf-8", "surrogateescape"))
    if error is not None:
        raise error
    if told["error"]:
        raise ValueError(told["error"])
    if not told["path"]:
        return None
    if who.world > 1:
        content = dist.broadcast_bytes(Path(path).read_bytes() if who.is_main else None)
        state = state if who.is_main else checkpoint.loads(content)
    return Found(told["path"], state, told["lines"])


def _read(resume: str, folder: Path) -> Tuple[Optional[Path], Any, List[str]]:
    """(path, what is in it, lines for the log); no path where there is none."""
    lines: List[str] = []
    if resume == "auto":
        path, state = keep.newest(folder, lines.append) or (None, None)
        return path, state, lines
    if not Path(resume).is_file():
        raise FileNotFoundError(f"--resume {resume}: there is no such file")
    return Path(resume), checkpoint.load(resume), lines
