"""A place for what a trial of a run writes; nothing of it stays."""
import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import List, Optional

from mobilenetv3 import runfolder


class Scratch:
    """A folder inside the run's, so on its disk, that is gone when the context ends.

    Gone, too, are those folders on the way to it that were made for it and are empty again.
    """

    def __init__(self):
        self._folder: Optional[Path] = None
        self._made: List[Path] = []

    def inside(self, folder: Path, is_shared: bool) -> Path:
        """Make the scratch folder in the folder that a run would write to; returns it.

        Args:
            is_shared: whether the run may find files there, as --resume may.

        Raises:
            ValueError: the run would be refused that folder.
        """
        self._made = [one for one in (folder, *folder.parents) if not one.exists()]
        runfolder.claim(folder, resume=is_shared)
        self._folder = Path(tempfile.mkdtemp(prefix=".trial.", dir=str(folder)))
        return self._folder

    def __enter__(self) -> "Scratch":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if self._folder is not None:
            shutil.rmtree(str(self._folder), ignore_errors=error is not None)
        for folder in self._made:  # the innermost first
            with contextlib.suppress(OSError):
                folder.rmdir()
