"""Prepared sets behind a URL: each shard is fetched whole, once, when it is first needed.

What was fetched lies in a folder of the user's own, and is not believed before size and SHA-256 are
those of the manifest. A set with another manifest, at the same URL or not, has another folder.
"""
import contextlib
import hashlib
import os
import queue
import threading
from pathlib import Path
from typing import BinaryIO, Callable, Iterator, List, Sequence, Set, Tuple

from mobilenetv3.data import demo, fetch, manifest, shards
from mobilenetv3.data.patience import announce
from mobilenetv3.data.samplers import WINDOW
from mobilenetv3.files import LOCK_TAKEN, write_atomically

_WITHOUT_LOCKS: Set[Path] = set()
"""Folders on file systems that have none, as far as this process has seen."""


class Damaged(OSError):
    """What came is not what the manifest says."""


def open_split(url: str, split: str, cache: str = "",
               cache_gb: float = 0.0) -> Tuple[shards.Shards, List[str], str]:
    """Open one split of the prepared set at a URL.

    Args:
        url: of the folder that holds the manifest; a query (a signature) goes with every file.
        cache: folder for what is fetched; "" for `demo.cache_root()`.
        cache_gb: GB of shards that the folder may hold, 0 for any number.

    Returns:
        its samples, its classes, and a line for the log.

    Raises:
        manifest.Lost, ValueError: in one sentence that names the URL.
    """
    base = Path(cache).expanduser() if cache else demo.cache_root() / "shards"
    where = fetch.beside(url, manifest.NAME)
    content = fetch.tried(where, lambda: _content(where, manifest.MAX_BYTES))
    found = manifest.parse(content, fetch.shown(where))
    chosen = manifest.choose(found, split, fetch.shown(url))
    folder = base / hashlib.sha256(content).hexdigest()[:32]
    limit = int(cache_gb * 1e9)
    _check_limit(limit, chosen)
    _make_private(folder)
    if not (folder / manifest.NAME).is_file():  # once all is here, it is a set like others
        write_atomically(folder / manifest.NAME, lambda file: file.write(content))
    place = Cache(url, folder, limit)
    place.fetch(chosen.index)
    shards.check(folder, chosen, shards=False)
    samples = shards.Shards(place, chosen, str(folder / chosen.index.name))
    note = f"{shards.describe(chosen)} at {fetch.shown(url)}, kept in {folder}"
    return samples, chosen.classes, note


class Cache:
    """Where `Shards` finds the shards of a set at a URL; processes of a host share it.

    Args:
        url: of the set's folder.
        root: folder for this set alone.
        limit: bytes of shards in this folder and its siblings, 0 for any number.
    """

    def __init__(self, url: str, root: Path, limit: int = 0):
        self.url, self.root, self.limit = url, root, limit
        self._ahead = None  # of the process that has the thread: its number, and the queue

    def __getstate__(self):
        return self.url, self.root, self.limit

    def __setstate__(self, state):
        self.__init__(*state)

    def open(self, shard: manifest.File) -> int:
        """A file descriptor of a shard, which is fetched first if it is not here.

        Raises:
            manifest.Lost: it cannot be had; naming its URL and the cause.
        """
        with self._lock(shard):  # else it might be dropped before it is opened
            self._fetch(shard)
            return os.open(str(self.root / shard.name), os.O_RDONLY)

    def fetch(self, file: manifest.File) -> None:
        """See to it that a file is here.

        Raises:
            manifest.Lost: it cannot be had; naming its URL and the cause.
        """
        with self._lock(file):
            self._fetch(file)

    def renew(self, shard: manifest.File) -> bool:
        """Fetch a shard again whose content is no longer what came; whether that has been done.

        Raises:
            manifest.Lost: it cannot be had; naming its URL and the cause.
        """
        with self._lock(shard):
            if manifest.damage(self.root, shard, deep=True) is None:
                return True  # another process has done so, and its file has the same name
            with contextlib.suppress(FileNotFoundError):  # it may have made room for others
                (self.root / shard.name).unlink()
            announce(f"{self.root / shard.name} is damaged and is fetched again")
            self._fetch(shard)
        return True

    def fetch_ahead(self, wanted: Sequence[manifest.File]) -> None:
        """Fetch shards that will be read soon, while the caller goes on."""
        missing = [shard for shard in wanted if not self._is_here(shard)]
        if not missing:
            return
        if self._ahead is None or self._ahead[0] != os.getpid():
            self._ahead = os.getpid(), queue.Queue()
            threading.Thread(target=_serve, args=(self._ahead[1], self.fetch), daemon=True).start()
        for shard in missing:
            self._ahead[1].put(shard)

    def _is_here(self, file: manifest.File) -> bool:
        return manifest.damage(self.root, file, deep=False) is None

    def _fetch(self, file: manifest.File) -> None:
        """The same for a caller that holds the lock of the file."""
        path = self.root / file.name
        if self._is_here(file):
            with contextlib.suppress(OSError):
                os.utime(str(path))  # used just now, as _make_room sees it
            return
        if self.limit:
            self._make_room(file.bytes)
        url = fetch.beside(self.url, file.name)
        fetch.tried(url, lambda: _save(url, path, file))

    def _make_room(self, size: int) -> None:
        """Drop the shards that were not used for the longest time, of any set that lies here."""
        found = []
        for path in self.root.parent.glob("*/*.tar"):
            with contextlib.suppress(OSError):
                state = path.stat()
                found.append((state.st_mtime, state.st_size, path))
        excess = sum(entry[1] for entry in found) + size - self.limit
        for _, length, path in sorted(found):
            if excess <= 0:
                return
            with _locked(path, wait=False) as is_ours:
                if is_ours:  # nobody opens it at this moment; who has it open keeps what he has
                    with contextlib.suppress(FileNotFoundError):
                        path.unlink()
                    excess -= length

    def _lock(self, file: manifest.File):
        return _locked(self.root / file.name)


def _serve(wanted: queue.Queue, get: Callable[[manifest.File], None]) -> None:
    """Fetch what the queue asks for; what fails is left to the reader, who will say why."""
    while True:
        with contextlib.suppress(OSError, manifest.Lost):
            get(wanted.get())


@contextlib.contextmanager
def _locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, of all processes of the host; yields whether it is held.

    It ends with the process, too. Lock files stay: one that is removed could be locked twice.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where one rank trains
        yield True
        return
    with open(f"{path}.lock", "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            state = "held"
        except OSError as error:
            state = "taken" if error.errno in LOCK_TAKEN else "none"
            if state == "none":
                _go_on_without_locks(path.parent, error)
        try:
            yield state != "taken"
        finally:
            if state == "held":
                # Not left to close(): a process that was forked meanwhile has the file open, too.
                fcntl.flock(file, fcntl.LOCK_UN)


def _go_on_without_locks(folder: Path, error: OSError) -> None:
    if folder not in _WITHOUT_LOCKS:
        _WITHOUT_LOCKS.add(folder)
        announce(f"no locks in {folder} ({error.strerror}): processes of this host may fetch a "
                 "shard twice; --shard_cache names another folder")


def _content(url: str, limit: int) -> bytes:
    found = b""
    with contextlib.closing(fetch.parts(url)) as parts:
        for part in parts:
            found += part
            if len(found) > limit:
                break
    return found


def _save(url: str, path: Path, expected: manifest.File) -> None:
    """Fetch a file, and give it its name once it is what it has to be."""
    def write(target: BinaryIO) -> None:
        digest, size = hashlib.sha256(), 0
        with contextlib.closing(fetch.parts(url)) as parts:
            for part in parts:
                size += len(part)
                if size > expected.bytes:
                    break
                digest.update(part)
                target.write(part)
        if size != expected.bytes:
            more = "more than " if size > expected.bytes else f"{size} of "
            raise Damaged(f"{more}{expected.bytes} bytes came")
        if digest.hexdigest() != expected.sha256:
            raise Damaged("its SHA-256 is not the manifest's")
    if path.parent not in _WITHOUT_LOCKS:
        for left in path.parent.glob(f".{path.name}.*"):
            left.unlink()  # of a process that was killed; the lock says that nobody writes it
    write_atomically(path, write)


def _make_private(folder: Path) -> None:
    """Make a folder that others can neither read nor write.

    Raises:
        OSError: it cannot be made.
        ValueError: other users could change what is in it.
    """
    try:
        for path in reversed([folder, *folder.parents]):
            if not path.is_dir():
                path.mkdir(mode=0o700, exist_ok=True)
        state = folder.stat()
    except OSError as error:
        raise OSError(error.errno, f"cannot make the shard cache {folder} ({error.strerror}); "
                      "--shard_cache names another folder") from error
    user = os.geteuid() if hasattr(os, "geteuid") else 0
    if user and (state.st_uid != user or state.st_mode & 0o022):
        raise ValueError(f"the shard cache {folder} can be written by other users; --shard_cache "
                         "names a folder of your own")


def _check_limit(limit: int, split: manifest.Split) -> None:
    """Refuse a limit with which the shards in use would be dropped and fetched over and over."""
    largest = max(shard.bytes for shard in split.shards)
    in_window = -(-WINDOW * len(split.shards) // split.images) + 1
    needed = min(sum(shard.bytes for shard in split.shards), 2 * in_window * largest)
    if 0 < limit < needed:
        raise ValueError(
            f"--shard_cache_gb {limit / 1e9:g} is too little: the shards that training reads at a "
            f"time, and those it reads next, take {needed / 1e9:.3g} GB"
        )
