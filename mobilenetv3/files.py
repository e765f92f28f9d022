"""Writing a file so that a crash at any moment leaves the old one or the new one, never half."""
import os
import tempfile
from pathlib import Path
from typing import BinaryIO, Callable, Sequence, Union

PathLike = Union[str, Path]


def claim_files(paths: Sequence[PathLike], force: bool) -> None:
    """See to it, before any work, that files can be written; makes the folders that they lie in.

    Raises:
        ValueError: a file is there already and `force` is not given, or a folder is in the way.
    """
    for path in map(Path, paths):
        if path.is_dir():
            raise ValueError(f"{path} is a folder; expected the name of a file to write")
        if path.exists() and not force:
            raise ValueError(f"{path} exists already; give another name, or add --force")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{path} cannot be written: a file is in the way") from error


def write_atomically(path: PathLike, write: Callable[[BinaryIO], None]) -> None:
    """Write a file through `write(binary_file)` so that `path` always holds a complete one.

    The bytes reach the disk under a temporary name in the same folder before they take the name
    over. If writing fails, nothing is left behind.
    """
    path = Path(path)
    handle, temporary = tempfile.mkstemp(prefix="." + path.name + ".", dir=str(path.parent))
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())  # mkstemp's are for their owner's eyes only
        os.replace(temporary, str(path))
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(str(path.parent), os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut, too
    finally:
        os.close(folder)


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
