"""What a validation saw: which class was taken for which, and images to look at, as JSON.

The best validation of a run leaves it in the run folder, for the report. During the validation
nothing is read from the device; what was counted is brought together over all ranks afterwards.
"""
import base64
import io
import json
import os
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import torch
from PIL import Image

from mobilenetv3 import confusion, dist, inference, metrics
from mobilenetv3.data.manifest import Lost
from mobilenetv3.files import write_atomically

FILE = "validation.json"
SAMPLES, MISTAKES = 32, 24
"""Images of the fixed sample, and wrong ones that the network was surest of."""
SIDE = 112
"""Pixels of the longer side of a small image, at most."""


class Seen:
    """Keeps labels and likeliest classes of each image, where the model runs; see engine.evaluate.

    Two numbers an image are kept for each of up to five classes: 60 bytes an image.
    """

    def __init__(self):
        self.labels: List[torch.Tensor] = []
        self.ranked: List[torch.Tensor] = []
        self.shares: List[torch.Tensor] = []

    def __call__(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        """Keep a batch: logits (N, C) and class indices (N,)."""
        ranked = metrics.ranked(output)
        self.labels.append(targets)
        self.ranked.append(ranked)
        self.shares.append(output.detach().float().softmax(1).gather(1, ranked))

    def on_host(self) -> "Rows":
        """All images of this rank, in the order of its loader."""
        if not self.labels:
            return Rows(np.zeros(0, np.int64), np.zeros((0, 1), np.int64), np.zeros((0, 1)))
        return Rows(*(torch.cat(parts).cpu().numpy()
                      for parts in (self.labels, self.ranked, self.shares)))


class Rows(NamedTuple):
    """Images in some order."""

    labels: np.ndarray
    """int64 (N,)"""
    ranked: np.ndarray
    """int64 (N, up to 5): the likeliest classes, best first."""
    shares: np.ndarray
    """float (N, up to 5): their probabilities."""


class Examiner:
    """Looks at validations, and writes down what the best of them saw.

    Args:
        loader: of the validation, a `data.DeviceLoader`.
        classes: names of the data set's classes.
        folder: the run folder; None to write nothing.
        is_main: whether this rank writes.
        log: takes a line.
    """

    def __init__(self, loader, classes: Sequence[str], folder: Optional[Path], is_main: bool, log):
        self.loader, self.folder, self.is_main, self.log = loader, folder, is_main, log
        self.classes = list(classes)
        self._pictures: Dict[int, str] = {}

    def write(self, seen: Seen, about: Dict[str, Any]) -> None:
        """Write FILE. Every rank must call it.

        Args:
            about: goes into the file as it is: epoch, scores, which weights.
        """
        rows, indices = seen.on_host(), self._indices()
        pairs = np.stack([rows.labels, rows.ranked[:, 0]], 1).astype("<i4")
        sample = set(spread(self.loader.images, SAMPLES))
        chosen = [place for place, index in enumerate(indices) if index in sample]
        own = {"samples": _entries(rows, indices, chosen),
               "mistakes": _entries(rows, indices, surest_mistakes(rows))}
        all_pairs = dist.gather_bytes(pairs.tobytes())
        parts = [json.loads(part.decode()) for part in dist.gather_bytes(json.dumps(own).encode())]
        if not self.is_main or self.folder is None:
            return
        counts = _counted(np.frombuffer(b"".join(all_pairs), "<i4").reshape(-1, 2))
        samples = sorted((one for part in parts for one in part["samples"]),
                         key=lambda one: one["index"])
        mistakes = sorted((one for part in parts for one in part["mistakes"]),
                          key=lambda one: (-one["top"][0][1], one["index"]))[:MISTAKES]
        outputs = 1 + max([len(self.classes) - 1, *(row[1] for row in counts)])
        names = inference.class_names(len(self.classes), self.classes)
        content = dict(about, classes=confusion.names_of(names, outputs), confusion=counts)
        try:
            content["samples"] = [self._with_picture(one) for one in samples]
            content["mistakes"] = [self._with_picture(one) for one in mistakes]
            text = json.dumps(content) + "\n"
            write_atomically(self.folder / FILE, lambda file: file.write(text.encode("ascii")))
        except (OSError, Lost) as error:  # Lost: an image is behind a URL that answers no more
            self.log(f"=> {self.folder / FILE} is not written: {error}")

    def _indices(self) -> List[int]:
        """The numbers of this rank's images in the data set, in the order of its loader."""
        return [index for batch in self.loader.loader.batch_sampler for _, index in batch]

    def _with_picture(self, entry: Dict[str, Any]) -> Dict[str, Any]:
        index, dataset = entry["index"], self.loader.loader.dataset
        if index not in self._pictures:
            picture = picture_of(dataset[(0, index)][0])
            if index not in spread(self.loader.images, SAMPLES):
                return dict(entry, file=_short(dataset.path(index)), image=picture)
            self._pictures[index] = picture
        return dict(entry, file=_short(dataset.path(index)), image=self._pictures[index])


def spread(images: int, wanted: int) -> List[int]:
    """Numbers of images evenly over a set, each once; so they are of many classes."""
    wanted = min(images, wanted)
    return [(2 * place + 1) * images // (2 * wanted) for place in range(wanted)]


def surest_mistakes(rows: Rows) -> np.ndarray:
    """Places of the wrong images whose likeliest class had the highest probability."""
    wrong = np.nonzero(rows.ranked[:, 0] != rows.labels)[0]
    return wrong[np.argsort(-rows.shares[wrong, 0], kind="stable")[:MISTAKES]]


def picture_of(pixels: np.ndarray) -> str:
    """uint8 (3, H, W), as the network sees it, as a small image in a data URL."""
    image = Image.fromarray(np.ascontiguousarray(np.asarray(pixels).transpose(1, 2, 0)))
    kind = "PNG" if max(image.size) <= SIDE // 2 else "JPEG"
    image.thumbnail((SIDE, SIDE), Image.BICUBIC)
    content = io.BytesIO()
    image.save(content, kind, **({"quality": 85} if kind == "JPEG" else {"optimize": True}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(content.getvalue()).decode()}"


def _entries(rows: Rows, indices: Sequence[int], places: Sequence[int]) -> List[Dict[str, Any]]:
    return [{"index": int(indices[place]), "label": int(rows.labels[place]),
             "top": [[int(label), round(float(share), 4)] for label, share
                     in zip(rows.ranked[place], rows.shares[place])]}
            for place in places]


def _counted(pairs: np.ndarray) -> List[List[int]]:
    """(N, 2) of true and predicted class -> [true, predicted, images] of each that was."""
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [[*map(int, pair), int(count)] for pair, count in zip(found, counts)]


def _short(path: str) -> str:
    """An image's name with the folder it lies in."""
    return os.sep.join(str(path).split(os.sep)[-2:])
