"""Images as a person names them, and what was found in them, as text, CSV and JSON."""
import collections
import csv
import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Sequence, Tuple, Union

from torchvision.datasets.folder import is_image_file

from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.text import cell


class Prediction(NamedTuple):
    """What was found in one image."""

    file: str
    top: List[Dict[str, Any]]
    """Dicts with class, label (its number) and score (its probability), best first."""
    error: str = ""
    """Why there is nothing, in one line."""


def find_images(paths: Iterable[str], recursive: bool = True) -> Tuple[List[str], List[str]]:
    """Every file that is named, and the images of every folder that is named, in sorted order.

    In a folder an image is known by its ending; hidden files and folders are passed over. Links to
    folders are followed, each folder once.

    Returns:
        The files, and the folders in which there are none.
    """
    found, empty = [], []
    for path in map(os.path.expanduser, paths):
        if not os.path.isdir(path):
            found.append(path)
            continue
        images = list(_in_folder(path, recursive))
        found += images
        if not images:
            empty.append(path)
    return found, empty


def _in_folder(root: str, recursive: bool) -> Iterator[str]:
    seen = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        about = os.stat(folder)
        if (about.st_dev, about.st_ino) in seen:
            folders.clear()
            continue
        seen.add((about.st_dev, about.st_ino))
        folders[:] = sorted(name for name in folders if name[0] != ".") if recursive else []
        for name in sorted(files):
            if name[0] != "." and is_image_file(name):
                yield os.path.join(folder, name)


def opened(files: Iterable[str], read: Callable[[str], Any], threads: int,
           ahead: int) -> Iterator[Tuple[str, Union[Any, Exception]]]:
    """Read files by several threads; yields (file, what `read` gave or raised), in order.

    Args:
        ahead: files that are read before their turn, at most: what is held in memory.
    """
    with ThreadPoolExecutor(threads) as pool:
        waiting = collections.deque()
        for file in files:
            waiting.append((file, pool.submit(read, file)))
            if len(waiting) > ahead:
                yield _outcome(*waiting.popleft())
        while waiting:
            yield _outcome(*waiting.popleft())


def _outcome(file: str, future) -> Tuple[str, Union[Any, Exception]]:
    try:
        return file, future.result()
    except (ValueError, OSError) as error:
        return file, error


def predict(images: Iterable[Tuple[str, Union[Any, Exception]]],
            classify: Callable[[Iterable[Any]], Iterator[Dict[str, Any]]]) -> Iterator[Prediction]:
    """Classify those images that could be read; yields a prediction for every one, in order.

    Args:
        images: as `opened` yields them.
        classify: images -> results, in order and lazily, as `inference.classify` gives them.
    """
    turn = collections.deque()  # taken from `images` and not yielded yet: (file, error)

    def readable():
        for file, image in images:
            if isinstance(image, Exception):
                reason = str(image).replace(file, shown(file))
                turn.append((file, " ".join(reason.split()) or type(image).__name__))
            else:
                turn.append((file, ""))
                yield image

    for result in classify(readable()):
        while turn[0][1]:
            file, error = turn.popleft()
            yield Prediction(file, [], error)
        yield Prediction(turn.popleft()[0], result["top"])
    for file, error in turn:
        yield Prediction(file, [], error)


# ----------------------------------------------------------------------------------------- results


def shown(text: str) -> str:
    """A text for one line of a terminal: in quotes, with escapes, where it would break the line."""
    return text if text.isprintable() and text == text.strip() else json.dumps(text)


def line(prediction: Prediction) -> str:
    """`cat.jpg: 61.2% tabby, tabby cat | 20.1% tiger cat`, without the error if there is one."""
    words = (f"{100.0 * one['score']:.1f}% {shown(one['class'])}" for one in prediction.top)
    return f"{shown(prediction.file)}: {' | '.join(words)}"


def write_csv(path: PathLike, predictions: Sequence[Prediction]) -> None:
    """One line an image: file, error, then class_1, index_1, score_1 and so on.

    UTF-8; bytes of a file name that are no UTF-8 stand in it as they are, and a name that a
    spreadsheet would compute behind an apostrophe.
    """
    most = max((len(one.top) for one in predictions), default=0)
    head = [f"{name}_{rank}" for rank in range(1, most + 1) for name in ("class", "index", "score")]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["file", "error", *head])
    for one in predictions:
        cells = [item for best in one.top
                 for item in (cell(best["class"]), best["label"], f"{best['score']:.6f}")]
        table.writerow([cell(one.file), cell(one.error), *cells, *[""] * (len(head) - len(cells))])
    content = text.getvalue().encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write(content))


def as_json(prediction: Prediction) -> Dict[str, Any]:
    """One image for a file of results."""
    if prediction.error:
        return {"file": prediction.file, "error": prediction.error}
    return {"file": prediction.file, "predictions": [
        {"class": one["class"], "index": one["label"], "score": one["score"]}
        for one in prediction.top
    ]}
