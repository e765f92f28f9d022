"""A source with its transform: what loader processes ask for images by (epoch, index).

A training image that cannot be used gives way to another one. A validation image that cannot be
used is an error, for the score would be of other images than its name says.
"""
import contextlib
import hashlib
import itertools
import multiprocessing
import random
import struct
from typing import Callable, List, Optional

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mobilenetv3.data import decode, imagefile
from mobilenetv3.data.badfiles import BadFile
from mobilenetv3.data.patience import Patience, among
from mobilenetv3.data.transforms import ByEpoch
from mobilenetv3.text import printable

SEEDERS = {
    "random": random.seed,
    "numpy": np.random.seed,
    # Not torch.manual_seed: it seeds the cards, too, and theirs are not put back.
    "torch": torch.default_generator.manual_seed,
}
"""Of the generators that a transform may draw from."""

ADVICE = "python -m mobilenetv3.data.check lists all such files of a data set"

TRIES = 100
"""Bad files in a row, drawn at random, after which it is no use to draw another."""


class Transformed(torch.utils.data.Dataset):
    """A source with its transform; an item is asked for by (epoch, index), or (epoch, index, copy).

    Augmentation of image i in epoch e depends on (seed, e, i) alone, and on the copy where an epoch
    has several: not on the number of workers or ranks, and not on what was drawn before. A resumed
    run therefore sees the images that the run it continues would have seen. The same holds for the
    image that takes a bad one's place.

    An item is (uint8 array (3, H, W), label); where it stands in for others, (array, label, list
    of `BadFile`).

    Args:
        samples: sequence of (PIL image, label); where it has `encoded`, that is read instead: index
            -> (content of an image file, label). `path` names an image for people.
        transform: from PIL image to uint8 array, or transforms `ByEpoch`.
        seed: of the augmentation; None leaves the generators as they are.
        fast: let the transform decode (see `decode`) where the source has files and the transform
            takes JPEGs; `note` tells where not.
        replaces: put another image of the set in the place of a bad one; needs a seed.
        patience: seconds to wait for a file system that is away (see `patience`).
    """

    def __init__(self, samples, transform: Callable, seed: Optional[int] = None,
                 fast: bool = False, replaces: bool = False, patience: float = 60.0):
        assert seed is not None or not replaces
        self.samples, self.transform, self.seed, self.replaces = samples, transform, seed, replaces
        self.patience = Patience(patience)
        self.note = ""
        self._has_files = hasattr(samples, "encoded")
        takes_jpegs = hasattr(self._transform_at(0), "from_jpeg") and self._has_files
        self.is_fast = fast and takes_jpegs and decode.is_available()
        if self.is_fast:
            self.note = f"=> --decode fast: {decode.describe()}"
        elif fast and takes_jpegs:
            self.note = ("=> --decode fast needs simplejpeg, which is not installed; decoding with "
                         "Pillow")
        self._refused = multiprocessing.Value("q", 0) if self.is_fast else None  # of all workers

    def __len__(self):
        return len(self.samples)

    @property
    def side(self) -> int:
        """Of the largest images, pixels; 0 where the transform does not tell."""
        return getattr(self.transform, "side", 0)

    def __getitem__(self, key):
        return self.__getitems__([key])[0]

    def __getitems__(self, keys):
        """Several items; PyTorch 2 asks for a batch at once."""
        with contextlib.nullcontext() if self.seed is None else _generators_put_back():
            return [self._item(*key) for key in keys]

    def _transform_at(self, epoch):
        is_one = not isinstance(self.transform, ByEpoch)
        return self.transform if is_one else self.transform.at(epoch).transform

    def _item(self, epoch, index, copy=0):
        bad: List[BadFile] = []
        for chosen in self._candidates(epoch, index):
            try:
                found = self._load(epoch, index, copy, chosen)
            except imagefile.BadImage as error:
                bad.append(BadFile(self.path(chosen), str(error)))
            else:
                return (*found, bad) if bad else found
            if not self.replaces:
                advice = getattr(self.samples, "advice", ADVICE)
                raise OSError(
                    f"cannot read {printable(bad[0].path)}: {printable(bad[0].reason)}; {advice}")
        raise OSError(f"{len(bad)} training images in a row cannot be used; the last is "
                      f"{printable(bad[-1].path)} ({printable(bad[-1].reason)})")

    def _candidates(self, epoch, index):
        """An image's number, then those of images that may take its place; each once."""
        tried = {index}
        yield index
        for draw in itertools.count(1):
            if len(tried) >= min(TRIES, len(self)):
                return
            place = np.random.SeedSequence((self.seed, epoch, index, draw))
            chosen = int(place.generate_state(1)[0] % len(self))
            if chosen not in tried:
                tried.add(chosen)
                yield chosen

    def _load(self, epoch, index, copy, chosen):
        """Image `chosen`, varied as this copy of image `index` is to be in this epoch.

        Raises:
            imagefile.BadImage: it cannot be used.
            OSError: nothing can be read.
        """
        found, label = self._read(chosen)
        transform = self._transform_at(epoch)
        if self.is_fast:
            self._seed(epoch, index, copy)
            try:
                return transform.from_jpeg(found), label
            except decode.Refused:
                self._count_refused()
        image = imagefile.decode(found) if self._has_files else imagefile.to_rgb(found)
        self._seed(epoch, index, copy)
        return transform(image), label

    def _read(self, index):
        """(content of the file, label), or (PIL image, label) of a source without files."""
        get = self.samples.encoded if self._has_files else self.samples.__getitem__
        try:
            return get(index)
        except OSError:
            return self.patience.read(among(get, index, len(self), printable(self.path(index))))

    def _seed(self, epoch, index, copy):
        """Seed the generators that the transform draws from: each takes a few microseconds."""
        if self.seed is None:
            return
        place = self.seed, epoch, index, copy
        # For every image: a hash takes a seventh of the time of NumPy's SeedSequence.
        words = struct.unpack_from("<3I", hashlib.sha256(repr(place).encode()).digest())
        drawn_from = getattr(self._transform_at(epoch), "draws_from", SEEDERS)
        for (name, seed), word in zip(SEEDERS.items(), words):
            if name in drawn_from:
                seed(word)

    @property
    def refused(self) -> int:
        """Images that Pillow had to decode, so far, where the fast decoder was to."""
        return self._refused.value if self.is_fast else 0

    def _count_refused(self):
        with self._refused.get_lock():
            self._refused.value += 1

    def path(self, index: int) -> str:
        """Name of an image, for people."""
        if hasattr(self.samples, "path"):
            return self.samples.path(index)
        paths = getattr(self.samples, "samples", None)
        return paths[index][0] if paths else f"image {index}"


@contextlib.contextmanager
def _generators_put_back():
    """In the training process (workers=0) dropout must not be reseeded by each image.

    A worker process draws for images only.
    """
    if get_worker_info() is not None:
        yield
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        for put_back, state in zip((random.setstate, np.random.set_state, torch.set_rng_state),
                                   states):
            put_back(state)
