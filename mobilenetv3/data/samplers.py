"""Which image goes where: epochs of shuffled global batches, and validation without padding.

Both yield batches of (epoch, index), so that workers that outlive an epoch know which one it is.
"""
import numpy as np
import torch
from torch.utils.data import Sampler


class TrainSampler(Sampler):
    """Shuffled batches; every rank takes its slice of the same global batch.

    The order depends on seed and epoch only. Global batch b of epoch e therefore holds the same
    images whatever the number of ranks. A last batch that is not full is left out, because
    BatchNorm's statistics and the learning rate are for full ones; the next epoch is shuffled anew.
    """

    def __init__(self, images: int, batch_size: int, rank: int, world: int, seed: int):
        assert batch_size % world == 0, (batch_size, world)
        if images < batch_size:
            raise ValueError(
                f"--batch_size {batch_size} is larger than the training set of {images} images; "
                f"use at most {images // world * world}"
            )
        self.images, self.batch_size, self.seed = images, batch_size, seed
        share = batch_size // world
        self.slice = slice(rank * share, (rank + 1) * share)
        self.epoch = 0

    def __len__(self):
        return self.images // self.batch_size

    def __iter__(self):
        generator = torch.Generator()
        words = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1)
        generator.manual_seed(int(words[0]))
        order = torch.randperm(self.images, generator=generator).tolist()
        for batch in range(len(self)):
            whole = order[batch * self.batch_size : (batch + 1) * self.batch_size]
            yield [(self.epoch, index) for index in whole[self.slice]]


class ValSampler(Sampler):
    """Every image exactly once over all ranks; ranks may differ by one image, or have none."""

    epoch = 0

    def __init__(self, images: int, batch_size: int, rank: int, world: int):
        self.indices = range(rank, images, world)
        self.batch_size = batch_size

    def __len__(self):
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self):
        for start in range(0, len(self.indices), self.batch_size):
            yield [(0, index) for index in self.indices[start : start + self.batch_size]]
