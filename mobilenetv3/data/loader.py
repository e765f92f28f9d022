"""Batches on the device: uint8 crosses the bus once, the arithmetic happens on the other side."""
import random
from typing import List, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader

from mobilenetv3 import host
from mobilenetv3.device import Device


def collate(items: List[Tuple[np.ndarray, int]]) -> Tuple[torch.Tensor, torch.Tensor]:
    """Stack N arrays (3, H, W) into uint8 (N, H, W, 3), and their labels into int64 (N,).

    Decoders write the colours of a pixel side by side, and so does the batch: what is rearranged
    here costs as much as a flip.
    """
    colours, height, width = items[0][0].shape
    images = torch.empty((len(items), height, width, colours), dtype=torch.uint8)
    for slot, (image, _) in zip(images.numpy().transpose(0, 3, 1, 2), items):
        slot[...] = image
    return images, torch.tensor([label for _, label in items])


def worker_count(wanted: int, local_ranks: int) -> int:
    """Loader processes a rank starts: as asked, but no more than its share of the usable CPUs."""
    return min(wanted, max(1, host.usable_cpus() // local_ranks))


def _single_thread(worker: int) -> None:
    """Run once in each worker: the workers are the parallelism, so each gets one thread."""
    torch.set_num_threads(1)


class DeviceLoader:
    """Wraps a DataLoader of uint8 batches; yields normalised float images and targets.

    Iterating yields images (N, 3, H, W), float32, and targets: int64 (N,), or float (N, C) with
    Mixup or CutMix. `set_epoch` comes before each epoch; it also seeds what is drawn here, so an
    epoch is the same whether or not the process was restarted before it.

    On a card the next batch is copied while the model works on this one; what is drawn at random
    is drawn when a batch is yielded, so that the order of draws is the same as without.

    Args:
        erase: RandomErasing for the normalised batch, or None.
        mixup: timm's Mixup, or None; off from epoch `mixup_off_epoch` on, if that is not 0.
    """

    def __init__(self, loader: DataLoader, device: Device, mean: Sequence[float],
                 std: Sequence[float], channels_last: bool = False,
                 erase: Optional[RandomErasing] = None, mixup: Optional[Mixup] = None,
                 mixup_off_epoch: int = 0):
        self.loader, self.device, self.module = loader, device.torch_device, device.module
        shape = (1, 3, 1, 1)
        self.mean = torch.tensor(mean, device=self.device).view(shape) * 255.0
        self.std = torch.tensor(std, device=self.device).view(shape) * 255.0
        self.format = torch.channels_last if channels_last else torch.contiguous_format
        self.erase, self.mixup, self.mixup_off_epoch = erase, mixup, mixup_off_epoch
        self._has_told = False

    def __len__(self):
        return len(self.loader)

    @property
    def images(self) -> int:
        """Number of images in the data set (all ranks)."""
        return len(self.loader.dataset)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration yields."""
        self.loader.batch_sampler.epoch = epoch
        if self.mixup is not None and self.mixup_off_epoch:
            self.mixup.mixup_enabled = epoch < self.mixup_off_epoch

    @property
    def decode_note(self) -> str:
        """How JPEGs are decoded, a line for the log; "" where there is nothing to tell."""
        return getattr(self.loader.dataset, "note", "")

    def refused_note(self) -> str:
        """How many images the fast decoder refused, so far; a line for the log, told once."""
        refused = getattr(self.loader.dataset, "refused", 0)
        if not refused or self._has_told:
            return ""
        self._has_told = True
        return (f"=> --decode fast: Pillow decoded {refused} images that simplejpeg does not take "
                "(another format, CMYK or damaged)")

    def __iter__(self):
        for images, targets in self._moved():
            images = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.format)
            images = images.sub_(self.mean).div_(self.std)
            if self.erase is not None:
                images = self.erase(images)
            if self.mixup is not None:
                images, targets = self.mixup(images, targets)
            yield images, targets

    def _moved(self):
        """Batches on the device: uint8 (N, H, W, 3), int64 (N,)."""
        if self.module is None:
            yield from self.loader
            return
        side, main = self.module.Stream(self.device), self.module.current_stream(self.device)
        copies = []
        for batch in self.loader:
            if copies:
                main.wait_stream(side)  # for the copy that is there; the next starts after this
            # Memory of earlier batches is written again: not before what was queued has read it.
            side.wait_stream(main)
            with self.module.stream(side):
                copies.append([part.to(self.device, non_blocking=True) for part in batch])
            if len(copies) == 2:
                yield copies.pop(0)
        main.wait_stream(side)
        yield from copies


def seed_epoch(device: Device, seed: int, epoch: int, rank: int) -> None:
    """Seed all generators of this process for one epoch of one rank.

    Dropout, drop-path, erasing and Mixup draw from them. Seeding by the moment, rather than once,
    makes a run that was stopped between two epochs go on exactly as if it had not been.
    """
    words = np.random.SeedSequence((seed, epoch, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    device.seed(int(words[2]))


def build_loader(dataset, sampler, device: Device, workers: int, seed: int) -> DataLoader:
    """A DataLoader of uint8 batches whose workers live as long as it does."""
    generator = torch.Generator()
    generator.manual_seed(seed)
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers, collate_fn=collate,
        persistent_workers=workers > 0, worker_init_fn=_single_thread, generator=generator,
        **device.loader_options(),
    )
