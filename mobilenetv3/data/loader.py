"""Batches on the device: uint8 crosses the bus once, the arithmetic happens on the other side."""
import random
import signal
from functools import partial
from typing import Callable, FrozenSet, Optional, Sequence

import numpy as np
import torch
from timm.data import Mixup
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader

from mobilenetv3 import cpus
from mobilenetv3.data import slots
from mobilenetv3.data.badfiles import BadFiles
from mobilenetv3.data.transforms import ByEpoch
from mobilenetv3.device import Device
from mobilenetv3.text import printable

STAY_S = 20
"""How long a worker goes on after SIGTERM; schedulers give a run about 30 s to end."""


def worker_count(wanted: int, local_ranks: int) -> int:
    """Loader processes a rank starts: as asked, but no more than its share of the usable CPUs."""
    return min(wanted, cpus.per_rank(local_ranks))


def _start_worker(own: FrozenSet[int], worker: int) -> None:
    """Run once in each worker: the workers are the parallelism, so each gets one thread.

    Args:
        own: the CPUs of the rank's workers; none where they may run on any.
    """
    cpus.bind(own)
    torch.set_num_threads(1)
    # What asks the run to end reaches its workers, too, but a step that is to be finished needs its
    # batch. SIGTERM also is how a process ends the workers that it leaves: they stay a while.
    for name in ("SIGINT", "SIGUSR1", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if hasattr(signal, "alarm"):
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, lambda number, frame: signal.alarm(STAY_S))


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

    Attributes:
        bad_files: `BadFiles`, which is given those that images of a batch stand in for. Unless it
            is set, the first of them is an error.
        observe: given the images of each batch, as they are yielded; None for nobody.
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
        self.bad_files: Optional[BadFiles] = None
        self.observe: Optional[Callable[[torch.Tensor], None]] = None
        self._has_told = False
        self._told_side = 0

    def __len__(self):
        return len(self.loader)

    @property
    def images(self) -> int:
        """Number of images in the data set (all ranks)."""
        return len(self.loader.dataset)

    @property
    def order(self) -> str:
        """What tells whether step n of an epoch is of the same images; of a training set."""
        return self.loader.batch_sampler.order.name

    def set_epoch(self, epoch: int, first: int = 0) -> None:
        """Choose the epoch that the next iteration yields, and the batch that it begins with."""
        self.loader.batch_sampler.epoch = epoch
        self.loader.batch_sampler.first = first
        if self.mixup is not None and self.mixup_off_epoch:
            self.mixup.mixup_enabled = epoch < self.mixup_off_epoch

    @property
    def decode_note(self) -> str:
        """How JPEGs are decoded, a line for the log; "" where there is nothing to tell."""
        return getattr(self.loader.dataset, "note", "")

    def size_note(self) -> str:
        """The size of the images of the epoch, where it changes from epoch to epoch and did now."""
        sampler, transform = self.loader.batch_sampler, self.loader.dataset.transform
        if not isinstance(transform, ByEpoch):
            return ""
        side, told = transform.at(sampler.epoch).side, self._told_side
        self._told_side = side
        return "" if side == told else f"=> epoch {sampler.epoch}: training images of {side}x{side}"

    def refused_note(self, over_ranks: Callable[[int], int] = int) -> str:
        """How many images the fast decoder refused, so far; a line for the log, told once.

        Args:
            over_ranks: this rank's number -> that of all; then every rank must call this.
        """
        if self._has_told:
            return ""
        refused = over_ranks(getattr(self.loader.dataset, "refused", 0))
        if not refused:
            return ""
        self._has_told = True
        return (f"=> --decode fast: Pillow decoded {refused} images that simplejpeg does not take "
                "(another format, CMYK or damaged)")

    def bad_files_note(self) -> str:
        """How many bad files all ranks have found, where there are more than at the last call.

        Every rank must call it.

        Raises:
            badfiles.TooMany: on all ranks.
        """
        if self.bad_files is None:
            return ""
        self.bad_files.share()
        return self.bad_files.note()

    def __iter__(self):
        for images, targets in self._moved():
            images = self._normalised(images)
            if self.erase is not None:
                images = self.erase(images)
            if self.mixup is not None:
                images, targets = self.mixup(images, targets)
            if self.observe is not None:
                self.observe(images)
            yield images, targets

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (N, H, W, 3) -> float32 (N, 3, H, W) in the model's memory format.

        The three colours of a pixel are too few for a CPU's vector units: with mean and deviation
        laid out for a whole line of pixels it takes a quarter of the time.
        """
        if self.format is not torch.channels_last:
            images = images.permute(0, 3, 1, 2).to(torch.float32, memory_format=self.format)
            return images.sub_(self.mean).div_(self.std)
        count, height, width, colours = images.shape
        lines = images.reshape(count * height, width * colours).to(torch.float32)
        lines.sub_(self.mean.flatten().repeat(width)).div_(self.std.flatten().repeat(width))
        return lines.view(count, height, width, colours).permute(0, 3, 1, 2)

    def _moved(self):
        """Batches on the device: uint8 (N, H, W, 3), int64 (N,)."""
        if self.module is None:
            yield from self._loaded()
            return
        side, main = self.module.Stream(self.device), self.module.current_stream(self.device)
        copies = []
        for batch in self._loaded():
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

    def _loaded(self):
        """Batches on the host, without what was reported with them.

        Images may lie in a slot: they are copied before the next batch is asked for.
        """
        for batch in self.loader:
            if isinstance(batch, slots.Parked):
                batch = batch.opened()
            if len(batch) == 3:
                if self.bad_files is None:
                    first = batch[2][0]
                    raise OSError(f"cannot read {printable(first.path)}: {printable(first.reason)}")
                self.bad_files.add(batch[2])
            yield batch[:2]
        collate = getattr(self.loader, "collate_fn", None)
        if isinstance(collate, slots.Slots):
            collate.release()


def seed_epoch(device: Device, seed: int, epoch: int, rank: int, step: int = 0) -> None:
    """Seed all generators of this process for one epoch of one rank, or for the rest of it.

    Dropout, drop-path, erasing and Mixup draw from them. Seeding by the moment, rather than once,
    makes a run that was stopped between two epochs go on exactly as if it had not been.
    """
    place = (seed, epoch, rank, step) if step else (seed, epoch, rank)
    words = np.random.SeedSequence(place).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    device.seed(int(words[2]))


def build_loader(dataset, sampler, device: Device, workers: int, seed: int,
                 own_cpus: FrozenSet[int] = frozenset()) -> DataLoader:
    """A DataLoader of uint8 batches whose workers live as long as it does.

    Args:
        own_cpus: the CPUs that the workers run on; none for any.
    """
    generator = torch.Generator()
    generator.manual_seed(seed)
    options = device.loader_options()
    if workers:
        options.update(persistent_workers=True, prefetch_factor=slots.AHEAD)
    return DataLoader(
        dataset, batch_sampler=sampler, num_workers=workers,
        collate_fn=_collate(dataset, sampler, workers, options.get("pin_memory_device", "")),
        worker_init_fn=partial(_start_worker, own_cpus), generator=generator, **options,
    )


def _collate(dataset, sampler, workers: int, pin_device: str):
    """What makes a batch of items: in shared slots where workers can, and where sizes are known."""
    size = sampler.share * 3 * getattr(dataset, "side", 0) ** 2
    if not (workers and size and slots.are_possible()):
        return slots.collate
    try:
        return slots.Slots(workers, size, pin_device)
    except OSError:  # ulimit -v, or a system that lends no memory before it is used
        return slots.collate
