"""Which images an image folder holds: listed once, then read from the cache.

The list is torchvision's ImageFolder's: the same files, order and classes. Folders are read by
several threads, because on a network file system each is a question that waits for its answer.

A list of SMALL images or more is kept in the cache. It holds as long as no folder below has
changed, which every start asks of each folder, not of each file. Changes are told by mtime and by
ctime: what copies files with their times (rsync, tar) puts back a folder's mtime, not its ctime.
"""
import contextlib
import errno
import hashlib
import io
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from mobilenetv3.data import demo, filelist
from mobilenetv3.data.filelist import FileList
from mobilenetv3.files import discard, rename, write_temporary

SMALL = 10000
"""Sets of fewer images are listed anew at each start, which takes less than 0.1 s."""
KEEP = 4
"""Lists kept of one folder."""
UNUSED_S = 30 * 24 * 3600
"""After so many seconds without use other lists of its path go, too. They are of the folder as it
was before, or of other hosts' folders, which share this cache and are not to lose their lists."""
GRANULARITY_NS = 3 * 10**9
"""A folder that changed less than this before it was listed may change again without its times
telling: clocks of file systems tick every 4 ms (ext4) to 2 s (FAT)."""
UNKNOWN = 2**63 - 1
"""Time of a last change that is not over: a list with such a folder is not kept."""
_THREADS = 16


class Folder(NamedTuple):
    """A folder, and what lies directly in it."""

    path: str
    """Below the root."""
    stamp: Tuple[int, int]
    """mtime and ctime in ns, of before it was read; the latter is UNKNOWN where a change to what is
    in the folder may not show in either."""
    images: List[str]
    """Names, sorted."""
    others: List[str]
    """Files that are not images by their names."""
    folders: List[str]


def list_images(root: str) -> FileList:
    """The images below the class folders of a folder; those of classes without images are none.

    Raises:
        OSError: a folder cannot be read.
        ValueError: a folder is a link to one that it lies in.
    """
    of = os.path.realpath(root)
    found = _from_cache(root, of)
    if found is None:
        started = time.time_ns()
        found = flat(root, walk(root))
        if len(found) >= SMALL and _is_settled(found, started):
            found = _into_cache(found, of)
    return found


def classes(files: FileList) -> List[str]:
    """The names of the class folders, in the order of the labels; also those without images."""
    found = map(files.folder, range(1, files.folders))
    return [name for name in found if os.sep not in name]


def is_image(name: str) -> bool:
    """Whether a file is an image by its name."""
    return name.lower().endswith(IMG_EXTENSIONS)


# ------------------------------------------------------------------------------------ from the disk


def walk(root: str) -> Iterator[Tuple[int, Folder]]:
    """(label, folder) of the root, whose label is -1, and of all folders below, class by class."""
    top = read_folder(root, "")
    yield -1, top
    found = _in_threads(lambda name: _below(root, name), top.folders)
    for label, folders in enumerate(found):
        for folder in folders:
            yield label, folder


def _below(root: str, name: str) -> List[Folder]:
    """A class folder and those below it, in torchvision's order: by path, letter by letter."""
    found, waiting = [], [(name, frozenset())]
    while waiting:
        path, above = waiting.pop()
        status = os.stat(os.path.join(root, path))
        own = (status.st_dev, status.st_ino)
        if own in above:
            raise ValueError(
                f"{os.path.join(root, path)} is a link to a folder that it lies in, so its images "
                "would be listed without end; remove the link"
            )
        folder = read_folder(root, path)
        found.append(folder)
        waiting.extend((os.path.join(path, inner), above | {own}) for inner in folder.folders)
    return sorted(found, key=lambda folder: folder.path)


def read_folder(root: str, path: str) -> Folder:
    """What lies in a folder. Its times are taken first, so that a later change is one to them."""
    whole = os.path.join(root, path)
    stamp = _stamp(whole)
    images, others, folders = [], [], []
    with os.scandir(whole) as entries:
        for entry in entries:
            kind = folders if _is_folder(entry) else images if is_image(entry.name) else others
            kind.append(entry.name)
            if kind is not folders and _leads_nowhere(entry):
                # Once its target is there, as when a disk is mounted, it may be a class.
                stamp = stamp[0], UNKNOWN
    return Folder(path, stamp, sorted(images), sorted(others), sorted(folders))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _leads_nowhere(entry: os.DirEntry) -> bool:
    try:
        if entry.is_symlink():
            entry.stat()  # known by now of those that lead somewhere
    except OSError as error:
        return error.errno != errno.ELOOP  # which a link to itself always is
    return False


def _stamp(path: str) -> Tuple[int, int]:
    status = os.stat(path)
    return status.st_mtime_ns, status.st_ctime_ns


def _in_threads(work: Callable, items: List) -> Iterator:
    if len(items) < 2 * _THREADS:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(_THREADS) as threads:
        yield from threads.map(work, items)


def flat(root: str, found: Iterable[Tuple[int, Folder]]) -> FileList:
    """The arrays of what a walk finds, which is not kept as it goes."""
    letters, lengths, paths, stamps, labels, counts = [], [], [], [], [], []
    for label, folder in found:
        images = folder.images if label >= 0 else []  # those beside class folders have no class
        packed = filelist.pack(images)
        letters.append(packed[0])
        lengths.append(packed[1])
        paths.append(folder.path)
        stamps.append(folder.stamp)
        labels.append(label)
        counts.append(len(images))
    folders, folder_lengths = filelist.pack(paths)
    return FileList(root, filelist.Parts(
        np.concatenate(letters), filelist.edges(np.concatenate(lengths)),
        folders, filelist.edges(folder_lengths), filelist.edges(counts)[:-1],
        np.repeat(np.asarray(labels, np.int32), counts), np.asarray(stamps, np.int64),
    ))


# ------------------------------------------------------------------------------------- the cache


def _folder() -> Path:
    # One for each user: those of a shared cache must not depend on each other's files.
    return demo.cache_root() / f"lists-{os.getuid()}"


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put a file there."""
    try:
        status = os.lstat(str(folder))
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() \
        and not status.st_mode & 0o022


def _key(of: str) -> str:
    return hashlib.blake2b(os.fsencode(of), digest_size=16).hexdigest()


def _begin(of: str, stamp: Tuple[int, int]) -> str:
    """What the names of a folder's lists begin with: its path, and what tells it from the folders
    of other hosts at that path."""
    mtime, ctime = map(int, stamp)
    return f"{_key(of)}-{_key(f'{mtime} {ctime}')[:16]}"


def _lists(folder: Path, begin: str) -> List[Path]:
    """The cached lists whose names begin so, the latest used first."""
    return sorted(folder.glob(f"{begin}-*{filelist.SUFFIX}"), key=_used, reverse=True)


def _used(path: Path) -> float:
    """When a list was last used; a moment ago if it has just been taken away."""
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return time.time()


def _to_drop(folder: Path, of: str, begin: str) -> List[Path]:
    """Lists of a path that are not needed any more, and what killed processes left."""
    since = time.time() - UNUSED_S
    unused = {path for path in _lists(folder, _key(of)) if _used(path) < since}
    return [*unused.union(_lists(folder, begin)[KEEP:]), *_left_behind(folder)]


def _from_cache(root: str, of: str) -> Optional[FileList]:
    folder = _folder()
    if not _is_ours(folder):
        return None
    try:
        begin = _begin(of, _stamp(root))
    except OSError:
        return None
    for path in _lists(folder, begin):
        with contextlib.suppress(OSError):
            try:
                found = filelist.read(str(path), root, of)
            except filelist.Unusable:
                path.unlink()
                continue
            if _is_unchanged(found):
                with contextlib.suppress(OSError):  # of a folder that may be read and not written
                    os.utime(str(path))
                return found
    return None


def _is_unchanged(files: FileList) -> bool:
    """Whether every folder has the times that it was listed with."""
    def is_same(number):
        try:
            return _stamp(os.path.join(files.root, files.folder(number))) == tuple(
                files.parts.stamps[number].tolist())
        except OSError:
            return False
    return all(_in_threads(is_same, range(files.folders)))


def _is_settled(files: FileList, started: int) -> bool:
    """Whether a later change to any folder will show in its times.

    A ctime in the future is a clock that went wrong. An mtime there may have been set by hand.
    """
    mtimes, ctimes = files.parts.stamps.T
    since = started - GRANULARITY_NS
    return not ((ctimes > since) | ((mtimes > since) & (mtimes <= started))).any()


def _into_cache(files: FileList, of: str) -> FileList:
    """Write a list and map it; as it was where it cannot be written."""
    folder = _folder()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            folder.mkdir(0o700)
        if not _is_ours(folder):
            return files
        content = io.BytesIO()
        filelist.write(files, of, content)
        begin = _begin(of, files.parts.stamps[0])
        name = f"{begin}-{filelist.digest(content.getbuffer())}{filelist.SUFFIX}"
        _write_once(folder / name, content.getbuffer())
        for old in _to_drop(folder, of, begin):
            old.unlink()
        return filelist.read(str(folder / name), files.root, of)
    except (OSError, filelist.Unusable):
        return files


def _write_once(path: Path, content) -> None:
    """Write a file, whole or not at all, unless it is there.

    A list is never written over: other processes have it mapped, and those of another host would
    lose it, were it on a network file system.
    """
    temporary = write_temporary(path, lambda file: file.write(content))
    try:
        os.link(str(temporary), str(path))
    except FileExistsError:
        pass
    except OSError:  # a file system without links
        rename(temporary, path)
        return
    discard(temporary)


def _left_behind(folder: Path) -> List[Path]:
    """Temporary files of processes that were killed while they wrote."""
    yesterday = time.time() - 24 * 3600
    return [path for path in folder.glob(".*") if path.stat().st_mtime < yesterday]
