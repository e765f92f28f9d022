"""CIFAR-10 (Krizhevsky 2009): photographs of ten classes, as torchvision reads and fetches them.

32x32 pixels, 50,000 images to train on and 10,000 to test with, in one archive of 170 MB, whose
address and checksum torchvision holds.
"""
import contextlib
from pathlib import Path
from typing import Iterator

from torchvision import datasets

from mobilenetv3.data import demo
from mobilenetv3.data.patience import announce


def default_folder() -> Path:
    """Where CIFAR-10 is looked for, and put, where no data path says otherwise."""
    return demo.cache_root() / "cifar10"


def open_cifar10(root: Path, train: bool, download: bool) -> datasets.CIFAR10:
    """torchvision's data set: (PIL image of mode RGB, int).

    Args:
        root: folder of cifar-10-batches-py.
        download: fetch it, if it is not complete there. Of several processes that ask for it on one
            host, one fetches it and the others wait.

    Raises:
        FileNotFoundError: it is not there, or cannot be fetched.
    """
    try:
        return datasets.CIFAR10(str(root), train=train)
    except RuntimeError as error:  # not there, or not complete
        if not download:
            raise FileNotFoundError(
                f"no CIFAR-10 in {root}; add --dataset_download, or name the folder of "
                "cifar-10-batches-py with --data_path"
            ) from error
    root.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(root / ".download.lock"):
        try:
            return datasets.CIFAR10(str(root), train=train)  # another process has fetched it
        except RuntimeError:
            return _fetch(root, train)


def _fetch(root: Path, train: bool) -> datasets.CIFAR10:
    try:
        return datasets.CIFAR10(str(root), train=train, download=True)
    except (RuntimeError, OSError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        kind = datasets.CIFAR10
        raise FileNotFoundError(
            f"CIFAR-10 could not be fetched from {kind.url} ({reason}); get {kind.filename} where "
            f"there is a network, and unpack it in {root}"
        ) from error


@contextlib.contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; other processes of the host wait for it.

    A lock, not a collective: it serves ranks that were started by hand and separate runs alike, and
    no timeout of the ranks counts the seconds of a slow download.
    """
    try:
        import fcntl
    except ImportError:  # Windows, where one rank trains
        yield
        return
    with open(str(path), "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:  # a file system without locks
            announce(f"no lock on {path.parent} ({error.strerror}): nothing keeps a second process "
                     "from fetching CIFAR-10 there")
        yield
