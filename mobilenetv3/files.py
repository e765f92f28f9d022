"""Writing a file so that a crash at any moment leaves the old one or the new one, never half."""
import contextlib
import errno
import os
import re
import shutil
from pathlib import Path
from typing import BinaryIO, Callable, List, Sequence, Union

PathLike = Union[str, Path]
LOCK_TAKEN = (errno.EACCES, errno.EAGAIN)
"""What fcntl says where another process has the lock; all else means that there are no locks."""

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
# What file systems without hard links say to link(), and some network ones to fsync() of a folder.
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV)
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


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
    temporary = write_temporary(path, write)
    rename(temporary, path)


def write_temporary(path: PathLike, write: Callable[[BinaryIO], None]) -> Path:
    """Write what is to become `path` under another name beside it, all the way to the disk.

    Returns:
        The temporary name, for `rename` or `discard`. If writing fails, there is none.
    """
    temporary = _temporary_name(Path(path))
    # Opened as any file is, so that the umask, which no thread may touch, gives the permissions.
    handle = os.open(str(temporary), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        discard(temporary)
        raise
    return temporary


def rename(temporary: Path, path: PathLike) -> None:
    """Give a temporary file its name, for good; if that fails, the temporary file is gone."""
    try:
        os.replace(str(temporary), str(path))
    except BaseException:
        discard(temporary)
        raise
    sync_folder(Path(path).parent)


def discard(temporary: Path) -> None:
    """Remove a temporary file, if that can be done: the error to tell is why it is not wanted."""
    with contextlib.suppress(OSError):
        os.unlink(str(temporary))


def link_atomically(source: PathLike, path: PathLike) -> None:
    """Make `path` another name of the file `source`, or a copy where there are no hard links.

    `path` holds, at any moment, what it held before or what `source` holds.
    """
    path = Path(path)
    if path.exists() and os.path.samefile(str(source), str(path)):
        return  # rename() between two names of one file would leave both
    temporary = _temporary_name(path)
    try:
        os.link(str(source), str(temporary))
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with open(str(source), "rb") as original:
            write_atomically(path, lambda file: shutil.copyfileobj(original, file, 1 << 20))
        return
    rename(temporary, path)


def sync_folder(folder: PathLike) -> None:
    """Make the names in a folder survive a power cut, where its file system can do that."""
    handle = os.open(str(folder), os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)


def remove_leftovers(folder: PathLike) -> List[str]:
    """Remove what a killed writer of this package left in a folder; returns the names.

    Nobody may be writing there: see `runfolder.lock`.
    """
    names = [name for name in os.listdir(str(folder)) if _TEMPORARY.fullmatch(name)]
    for name in names:
        os.unlink(os.path.join(str(folder), name))
    return names


def _temporary_name(path: Path) -> Path:
    # Not of the module random, whose numbers belong to the training.
    return path.parent / f".{path.name}.{os.urandom(4).hex()}.tmp"
