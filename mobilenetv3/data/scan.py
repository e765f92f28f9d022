"""Every file of a list opened and decoded wholly, by several processes, whatever the files do.

A file may be made to crash a decoder or to keep it busy for ever. Each process therefore tells of
every file by itself, so that one that dies, or is killed for taking too long, has named the file.
"""
import contextlib
import hashlib
import io
import multiprocessing
import os
import signal
import time
from collections import deque
from multiprocessing.connection import Connection, wait
from typing import Deque, Dict, Iterator, NamedTuple, Sequence, Tuple

from PIL import Image

from mobilenetv3.data import imagefile

SECONDS = 60.0
"""For one file; the largest that is decoded takes 2."""
_CHUNK = 32
"""Files that a process is given at a time: neighbours on the disk."""
_ALPHA = ("RGBA", "LA", "PA", "La", "RGBa")
_EXIF_ORIENTATION = 0x0112
_PNG = b"\x89PNG\r\n\x1a\n"
_NAMES = {".jpg": "JPEG", ".jpeg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".bmp": "BMP",
          ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM", ".pgm": "PPM"}


class Facts(NamedTuple):
    """What a file turned out to be."""

    index: int
    """In the list."""
    digest: bytes = bytes(16)
    """BLAKE2b of the content."""
    side: int = 0
    """The shorter side in pixels."""
    remarks: Tuple[str, ...] = ()
    reason: str = ""
    """Why the file is bad; "" for a good one."""


def look(index: int, path: str) -> Facts:
    """Open and decode one file, as training does."""
    try:
        data = imagefile.read(path)
    except imagefile.BadImage as error:
        return Facts(index, reason=str(error))
    except OSError as error:
        return Facts(index, reason=f"cannot be read: {error.strerror or error}")
    digest = hashlib.blake2b(data, digest_size=16).digest()
    try:
        image = imagefile.decode(data)
    except imagefile.BadImage as error:
        return Facts(index, digest, reason=str(error))
    except MemoryError:
        return Facts(index, digest, reason="too large: out of memory")
    return Facts(index, digest, min(image.size), tuple(_remarks(data, path)))


def _remarks(data: bytes, path: str) -> Iterator[str]:
    """What is worth knowing of a good image."""
    # Tags may be damaged where pixels are not.
    with contextlib.suppress(Exception), Image.open(io.BytesIO(data)) as image:
        if image.mode == "CMYK":
            yield "CMYK"
        elif image.mode in ("1", "L"):
            yield "grey"
        elif image.mode == "P":
            yield "palette"
        if image.mode.startswith("I") or data[:8] == _PNG and data[24] == 16:
            yield "16 bits a colour"
        if image.mode in _ALPHA or "transparency" in image.info:
            yield "alpha (dropped)"
        kind = "JPEG" if image.format == "MPO" else image.format  # a JPEG with others behind it
        if _NAMES.get(os.path.splitext(path)[1].lower(), kind) != kind:
            yield "another format than its name says"
        if kind != "JPEG" and getattr(image, "is_animated", False):
            yield "animated (its first picture is used)"
        if image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1):
            yield "turned by EXIF (not heeded)"


def scan(paths: Sequence[Tuple[str, int]], processes: int,
         seconds: float = SECONDS) -> Iterator[Facts]:
    """Look at all files of a list, in no particular order.

    Args:
        paths: (path, anything) of each; shared with the processes where they are forked.
        seconds: for one file.
    """
    waiting = deque(range(first, min(first + _CHUNK, len(paths)))
                    for first in range(0, len(paths), _CHUNK))
    workers: Dict[Connection, _Worker] = {}
    try:
        while waiting or workers:
            while waiting and len(workers) < max(1, processes):
                worker = _Worker(paths, waiting.popleft())
                workers[worker.pipe] = worker
            for pipe in wait(list(workers), timeout=1.0):
                worker = workers[pipe]
                try:
                    yield worker.receive()
                except (EOFError, ConnectionError):
                    yield _lost(workers, worker, waiting, "the decoder crashed")
                    continue
                if not worker.rest and not worker.give(waiting):
                    workers.pop(pipe).stop()
            for worker in [each for each in workers.values() if each.age() > seconds]:
                yield _lost(workers, worker, waiting, f"takes more than {seconds:g} s to decode")
    finally:
        for worker in workers.values():
            worker.stop()


def _lost(workers: Dict, worker: "_Worker", waiting: Deque[range], reason: str) -> Facts:
    """A process is gone, or is to go: what it was at is bad, and the rest of its files wait."""
    del workers[worker.pipe]
    worker.stop()
    index = worker.rest[0]
    if len(worker.rest) > 1:
        waiting.appendleft(worker.rest[1:])
    return Facts(index, reason=reason)


class _Worker:
    """A process, and the files that it has not told of yet."""

    def __init__(self, paths: Sequence[Tuple[str, int]], chunk: range):
        # Forked processes share the list, and need not import PyTorch, which the package does.
        methods = multiprocessing.get_all_start_methods()
        context = multiprocessing.get_context("fork" if "fork" in methods else None)
        self.pipe, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, paths, os.getpid()), daemon=True)
        self.process.start()
        other.close()  # so that the pipe ends with the process
        self._assign(chunk)

    def give(self, waiting: Deque[range]) -> bool:
        """Give it more to do, if there is more."""
        if waiting:
            self._assign(waiting.popleft())
        return bool(self.rest)

    def _assign(self, chunk: range) -> None:
        self.rest, self._since = chunk, time.monotonic()
        with contextlib.suppress(ConnectionError):  # a dead one is noticed when it is to tell
            self.pipe.send(chunk)

    def receive(self) -> Facts:
        """What it tells of the first of its files.

        Raises:
            EOFError, ConnectionError: it is dead.
        """
        facts = self.pipe.recv()
        self.rest, self._since = self.rest[1:], time.monotonic()
        return facts

    def age(self) -> float:
        """Seconds that it has been busy with one file."""
        return time.monotonic() - self._since

    def stop(self) -> None:
        """End the process, whatever it does."""
        self.pipe.close()
        self.process.kill()
        self.process.join()


def _serve(pipe: Connection, paths: Sequence[Tuple[str, int]], parent: int) -> None:
    """What a process does: chunks come in, facts go out, one for each file."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            while not pipe.poll(5.0):
                if os.getppid() != parent:  # was killed
                    return
            for index in pipe.recv():
                pipe.send(look(index, paths[index][0]))
