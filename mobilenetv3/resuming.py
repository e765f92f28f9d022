"""Going on from a checkpoint: rank 0 chooses and reads it, and all ranks get what it read.

So a file that only one host sees is enough, and no two ranks go on from different ones.
"""
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from mobilenetv3 import checkpoint, dist, files, keep, logfmt, models, snapshot
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
        if cfg["evaluate"]:
            which = ", averaged" if self.state.get("state_dict_ema") else ""
            return [*self.lines, f"=> weights loaded: {self.path} ({where}{which})"]
        return [*self.lines, f"=> resumed from {self.path} ({where})",
                *snapshot.notes(self.state, cfg, world)]

    def model(self, arch: str) -> Dict[str, Any]:
        """What the model was made with, for what the user leaves open; {} of another network.

        A run that began with the weights of a file has its BatchNorm from there, and goes on
        without that file.
        """
        saved = self.state.get("model") if isinstance(self.state, dict) else None
        is_same = isinstance(saved, dict) and saved.get("arch") == models.canonical_name(arch)
        return saved if is_same else {}


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


def bring_best(found: Found, folder: Path, log: Callable[[str], None]) -> None:
    """Give a run that goes on in another folder the best weights so far, where they are to be had.

    It may not do better; its own folder would then be without any. Only the main rank calls this.
    """
    best, file = snapshot.best_of(found.state), Path(found.path)
    if best is None or (folder / checkpoint.BEST).exists():
        return
    home = file.parent.parent if file.parent.name == keep.FOLDER else file.parent
    is_best = (found.state["epoch"], found.state.get("step", 0)) == (best["epoch"] + 1, 0)
    source = file if is_best else home / checkpoint.BEST
    if is_best or kept_best(home) == best:
        try:
            files.link_atomically(source, folder / checkpoint.BEST)
            return
        except OSError as error:
            log(f"=> {folder / checkpoint.BEST} cannot be written: {error.strerror}")
    log(f"=> the best weights so far (Acc@1 {best['acc1']:.3f}, epoch {best['epoch']}) are not in "
        f"{folder}, and will be only if this run does better")


def kept_best(folder: Path) -> Optional[Dict[str, Any]]:
    """The validation of the best weights that a run folder holds: "acc1" and "epoch", else None.

    The file tells: the write of a better one may have failed, or it was of another course.
    """
    try:
        return snapshot.best_of(checkpoint.load(folder / checkpoint.BEST))
    except (FileNotFoundError, ValueError):
        return None


def last_lines(folder: Path, best: Optional[Dict[str, Any]]) -> List[str]:
    """Where the weights of a run are, for the end of its log.

    Args:
        best: the best validation of the run; None for none.
    """
    last, path = ((folder / name).resolve() for name in (checkpoint.LAST, checkpoint.BEST))
    if best is None:
        return [logfmt.Unscored(str(last)).line()]
    kept = kept_best(folder)
    if kept == best:
        return [logfmt.Best(best["acc1"], best["epoch"], str(path)).line()]
    lines = [f"=> the best weights (Acc@1 {best['acc1']:.3f}, epoch {best['epoch']}) are not in "
             f"{folder}; the newest ones: {last}"]
    if kept is None:
        return [*lines, logfmt.Best(best["acc1"], best["epoch"], f"not in {folder}").line()]
    return [*lines, logfmt.Best(kept["acc1"], kept["epoch"], str(path)).line()]
