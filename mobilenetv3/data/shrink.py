"""From the images of a folder to the smaller JPEGs of a prepared set, in loader processes."""
import io
import os
import threading
import time
from typing import Iterator, List, NamedTuple, Tuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

from mobilenetv3.data import imagefile
from mobilenetv3.data.patience import Away, Patience, among
from mobilenetv3.text import printable

SEED = 0
"""Of the one shuffle of the training images."""
SUBSAMPLING = "4:2:0"
"""Colour at half the resolution, as nearly all photographs have it, and quicker to decode."""
MAX_SIDE = 65500
"""Pixels: libjpeg writes no longer JPEG."""
_BASELINE = 0xC0
"""Kind of a JPEG's frame."""
_CHUNK = 16
"""Images that a loader process hands over at a time."""


class Ready(NamedTuple):
    """An image as it goes into a shard, or why it cannot."""

    place: int
    """Its number in the order of writing."""
    label: int
    path: str
    """Below the source's folder."""
    data: bytes
    is_copied: bool
    error: str
    """"" for none."""


def order(count: int, shuffled: bool) -> np.ndarray:
    """Numbers of the images in the order of writing; the same everywhere, as RandomState's is."""
    if not shuffled:
        return np.arange(count)
    return np.random.RandomState(SEED).permutation(count)


def as_jpeg(data: bytes, size: int, quality: int) -> Tuple[bytes, bool]:
    """An image as the JPEG that goes into a shard, and whether it is the very file.

    The shorter side becomes `size`, the longer one what torchvision's Resize makes of it. Images
    that are no larger keep their size, and as baseline JPEGs of three colours also their bytes. The
    orientation in EXIF is not applied: training does not apply it, either. Of Pillow's filters
    Lanczos keeps most detail, and training resizes once more, by filters that keep less.

    Of a strip that would be longer than a JPEG can be, its middle is kept, which is all that a
    centre crop sees.

    Raises:
        imagefile.BadImage: it is none, or a damaged one.
    """
    image = imagefile.decode(data)  # all of it, also where the bytes are kept
    is_plain = image.format == "JPEG"  # it is None once the colours are converted
    frame = imagefile.jpeg_frame(data) if is_plain else None
    width, height = image.size
    shorter = min(width, height)
    if shorter <= size and frame is not None and frame.kind == _BASELINE:
        return data, True
    image = _without_ends(image, shorter, min(shorter, size))
    width, height = image.size
    if shorter > size:
        image = image.resize(
            (int(size * width / shorter), int(size * height / shorter)), Image.LANCZOS)
    image.info.clear()  # comments would be written again
    target = io.BytesIO()
    image.save(target, "JPEG", quality=quality, subsampling=SUBSAMPLING)
    return target.getvalue(), False


def _without_ends(image: Image.Image, shorter: int, then: int) -> Image.Image:
    """The middle of what would be longer than MAX_SIDE once its shorter side is `then` pixels."""
    width, height = image.size
    longest = MAX_SIDE * shorter // then
    left, top = max(0, width - longest) // 2, max(0, height - longest) // 2
    if max(width, height) <= longest:
        return image
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


class Images(torch.utils.data.Dataset):
    """Images of a source made ready to be written; runs in loader processes.

    A file system that is away for a while makes no image a bad one: it would be left out for good.
    """

    def __init__(self, samples, root: str, sequence: np.ndarray, size: int, quality: int):
        self.samples, self.root, self.sequence = samples, root, sequence
        self.size, self.quality = size, quality
        self.patience = Patience(advice="when it is back, the same command goes on from the "
                                        "finished shards")

    def __len__(self):
        return len(self.sequence)

    def __getitem__(self, place: int) -> Ready:
        index = int(self.sequence[place])
        path, label = self.samples.samples[index]
        item = among(self.samples.encoded, index, len(self.samples), printable(path))
        path = os.path.relpath(path, self.root)
        try:
            data, is_copied = as_jpeg(self.patience.read(item)[0], self.size, self.quality)
        except Away:
            raise
        except OSError as error:
            return Ready(place, label, path, b"", False, error.strerror or str(error))
        return Ready(place, label, path, data, is_copied, "")


def in_order(queue: Images, start: int, workers: int) -> Iterator[Ready]:
    """The images from a place in the order of writing on, in that order.

    Args:
        workers: loader processes, 0 for none.
    """
    batches = [
        range(first, min(first + _CHUNK, len(queue)))
        for first in range(start, len(queue), _CHUNK)
    ]
    loader = DataLoader(queue, batch_sampler=batches, num_workers=workers,
                        collate_fn=_as_they_are, worker_init_fn=_end_with_the_writer)
    for items in loader:
        yield from items


def _as_they_are(items: List[Ready]) -> List[Ready]:
    return items


def _end_with_the_writer(worker: int) -> None:
    """Run once in each loader process: end it when the process that writes is gone.

    PyTorch's own watch does not end one that waits to hand over what nobody takes any more.
    """
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    torch.set_num_threads(1)
    threading.Thread(target=watch, daemon=True).start()
