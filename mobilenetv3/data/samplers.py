"""Which image goes where: epochs of shuffled global batches, and validation without padding.

Both yield batches of (epoch, index), so that workers that outlive an epoch know which one it is;
with repeated augmentation of (epoch, index, copy).
"""
import bisect
import hashlib
from typing import Callable, List, NamedTuple, Sequence

import numpy as np
import torch
from torch.utils.data import Sampler

WINDOW = 1 << 14
"""Images among which those of neighbouring shards are shuffled, at least."""


class Drawn(NamedTuple):
    """The order of one epoch."""

    indices: np.ndarray
    """int64 (images,): every number once."""
    starts: List[int]
    """Places in `indices` where a new window of shards begins."""
    shards: List[List[int]]
    """Numbers of the shards of each window."""


class FlatOrder:
    """All images shuffled among each other; for files that can be read at random."""

    name = "the order of a folder"
    """Of two orders with other names an image has another place; for people, too."""

    def __init__(self, images: int):
        self.images = images

    def draw(self, generator: torch.Generator) -> Drawn:
        """An order of all images."""
        return Drawn(torch.randperm(self.images, generator=generator).numpy(), [], [])

    def fetch_ahead(self, shards: List[int]) -> None:
        """There are no shards."""


class WindowOrder:
    """Shards shuffled, then the images of a few neighbouring ones among each other.

    A disk or a network then reads a few shards at a time from end to end, rather than a set larger
    than memory at random. A set of no more than a window is shuffled as a whole.

    Args:
        shard_sizes: images in each shard; the first shard has the first numbers.
        window: images that are shuffled among each other, at least; whole shards are taken.
        fetch_ahead: called with the numbers of shards, when they are soon to be read.
    """

    def __init__(self, shard_sizes: Sequence[int], window: int = WINDOW,
                 fetch_ahead: Callable[[List[int]], None] = lambda shards: None):
        self.sizes, self.window = np.asarray(shard_sizes, np.int64), window
        self.fetch_ahead = fetch_ahead
        self.firsts = np.cumsum(self.sizes) - self.sizes
        digest = hashlib.sha256(repr((window, self.sizes.tolist())).encode()).hexdigest()[:16]
        self.name = f"the order of {len(self.sizes)} shards of sizes {digest}"

    def draw(self, generator: torch.Generator) -> Drawn:
        """An order of all images."""
        shards = torch.randperm(len(self.sizes), generator=generator).tolist()
        windows = self._windows(shards)
        parts, starts, place = [], [], 0
        for window in windows:
            images = np.concatenate(
                [np.arange(self.sizes[shard]) + self.firsts[shard] for shard in window])
            parts.append(images[torch.randperm(len(images), generator=generator).numpy()])
            starts.append(place)
            place += len(images)
        return Drawn(np.concatenate(parts), starts, windows)

    def _windows(self, shards: List[int]) -> List[List[int]]:
        windows, images = [[]], 0
        for shard in shards:
            if images >= self.window:
                windows.append([])
                images = 0
            windows[-1].append(shard)
            images += int(self.sizes[shard])
        if images < self.window and len(windows) > 1:  # what is left over is too little to shuffle
            windows[-2:] = [windows[-2] + windows[-1]]
        return windows


def order_of(samples):
    """The order for a source: one that keeps to its shards, where it has any."""
    sizes = getattr(samples, "shard_sizes", None)
    if sizes is None:
        return FlatOrder(len(samples))
    return WindowOrder(sizes, fetch_ahead=samples.fetch_ahead)


class TrainSampler(Sampler):
    """Shuffled batches; every rank takes its slice of the same global batch.

    The order depends on seed and epoch only. Global batch b of epoch e therefore holds the same
    images whatever the number of ranks. A last batch that is not full is left out, because
    BatchNorm's statistics and the learning rate are for full ones; the next epoch is shuffled anew.

    With `repeats` of N each image stands N times in a row, and an epoch, which is no longer, ends
    after 1/N of the images. The copies of one go to different ranks, as far as there are enough of
    them: rank r takes every world-th image from the r-th on. Source: Berman et al. 2019
    (MultiGrain), and the samplers of DeiT and timm, from which this differs in that an epoch has
    all full batches, not a multiple of 256 images.

    Args:
        batch_size: images in a global batch; a multiple of `world`.
        order: see `order_of`; None for a `FlatOrder`.
        repeats: copies of an image in an epoch.
    """

    def __init__(self, images: int, batch_size: int, rank: int, world: int, seed: int,
                 order=None, repeats: int = 1):
        assert batch_size % world == 0 and repeats >= 1, (batch_size, world, repeats)
        if images < batch_size:
            raise ValueError(
                f"--batch_size {batch_size} is larger than the training set of {images} images; "
                f"use at most {images // world * world}"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        self.share = share = batch_size // world  # images in a batch of this rank
        self.slice = slice(rank * share, (rank + 1) * share)
        if repeats > 1:
            self.slice = slice(rank, None, world)
        self.order, self.repeats = order or FlatOrder(images), repeats
        self.epoch = self.first = 0
        """What the next iteration yields: an epoch, from one of its batches on."""

    def __len__(self):
        return self.images // self.batch_size

    def __iter__(self):
        generator = torch.Generator()
        words = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator.manual_seed(int(words[0]))
        drawn = self.order.draw(generator)
        told = 0
        for batch in range(self.first, len(self)):
            start = batch * self.batch_size
            told = self._tell(drawn, start // self.repeats, told)
            places = np.arange(start, start + self.batch_size)[self.slice]
            indices = drawn.indices[places // self.repeats].tolist()
            if self.repeats == 1:
                yield [(self.epoch, index) for index in indices]
            else:
                copies = (places % self.repeats).tolist()
                yield [(self.epoch, index, copy) for index, copy in zip(indices, copies)]

    def _tell(self, drawn: Drawn, place: int, told: int) -> int:
        """Ask for the shards of the window that a place is in and of the one after.

        Returns:
            number of the first window that was not asked for yet.
        """
        # Windows that begin at the place or before it, and one more.
        wanted = bisect.bisect_right(drawn.starts, place) + 1
        current = max(told, wanted - 2)  # an epoch may be entered in its middle
        for shards in drawn.shards[current:wanted]:
            self.order.fetch_ahead(shards)
        return max(told, wanted)


class ValSampler(Sampler):
    """Every image exactly once over all ranks; ranks may differ by one image, or have none."""

    epoch = 0

    def __init__(self, images: int, batch_size: int, rank: int, world: int):
        self.indices = range(rank, images, world)
        self.batch_size = self.share = batch_size

    def __len__(self):
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]
