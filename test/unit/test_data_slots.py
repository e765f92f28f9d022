"""Batches that workers hand over in memory that both sides keep mapped."""
import ctypes
import errno
import mmap
import multiprocessing
import time

import numpy as np
import pytest
import torch

from mobilenetv3 import device
from mobilenetv3.data import badfiles, loader, slots, transforms
from mobilenetv3.data.dataset import Transformed

CPU = device.select("cpu")
needs_fork = pytest.mark.skipif(not slots.are_possible(), reason="loader processes are not forked")


class Numbered:
    """Images that show their number and epoch, as `Transformed` hands them out."""

    side = 8

    def __init__(self, images, broken=()):
        self.images, self.broken = images, broken

    def __len__(self):
        return self.images

    def __getitem__(self, key):
        epoch, index = key
        image = np.full((3, self.side, self.side), (7 * epoch + index) % 256, np.uint8)
        bad = [badfiles.BadFile(f"f{index}", "torn")] if index in self.broken else None
        return (image, index, bad) if bad else (image, index)


class InOrder:
    """A sampler of batches that are not shuffled."""

    def __init__(self, images, share):
        self.images, self.share, self.epoch, self.first = images, share, 0, 0

    def __len__(self):
        return self.images // self.share

    def __iter__(self):
        for start in range(self.first * self.share, len(self) * self.share, self.share):
            yield [(self.epoch, index) for index in range(start, start + self.share)]


def made(images=240, share=4, workers=2, **options):
    return loader.build_loader(Numbered(images, **options), InOrder(images, share), CPU, workers, 0)


def plain(found):
    """A device loader whose images are those of the files."""
    return loader.DeviceLoader(found, CPU, (0.0,) * 3, (1 / 255,) * 3)


def check(batch, number, share, epoch=0):
    images, targets = batch
    expected = torch.arange(number * share, (number + 1) * share)
    assert targets.tolist() == expected.tolist()
    shown = ((7 * epoch + expected) % 256).float()
    assert torch.equal(images, shown[:, None, None, None].expand_as(images))


@needs_fork
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_batch_stays_as_it_is_until_the_next_is_asked_for(workers):
    found = made(workers=workers)
    assert isinstance(found.collate_fn, slots.Slots)
    for epoch in (0, 1):
        found.batch_sampler.epoch, count = epoch, 0
        for number, batch in enumerate(found):
            assert isinstance(batch, slots.Parked)
            if number % 7 == 0:
                time.sleep(0.02)  # the workers run as far ahead as they may
            images, targets = batch.opened()
            check((images.permute(0, 3, 1, 2).float(), targets), number, 4, epoch)
            count += 1
        assert count == 60


@needs_fork
def test_the_workers_would_overwrite_a_batch_that_is_kept_longer():
    """What makes `test_a_batch_stays_as_it_is_until_the_next_is_asked_for` a check."""
    found = iter(made(workers=1))
    first = next(found).opened()[0]
    kept = first.clone()
    for _ in range(slots.AHEAD + 1):
        next(found)
    deadline = time.monotonic() + 20
    while torch.equal(first, kept) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not torch.equal(first, kept)


@needs_fork
def test_an_epoch_that_was_left_in_its_middle_spoils_no_batch_of_the_next():
    batches = plain(made())
    for epoch in (0, 1, 2):
        batches.set_epoch(epoch)
        for number, batch in enumerate(batches):
            check(batch, number, 4, epoch)
            if epoch < 2 and number == 5 + epoch:
                break
    assert number == 59


@needs_fork
def test_slots_and_pytorchs_own_way_give_the_same_batches(monkeypatch):
    parked = [(images.clone(), targets) for images, targets in plain(made())]
    monkeypatch.setattr(slots, "are_possible", lambda: False)
    other = made()
    assert other.collate_fn is slots.collate
    for (images, targets), (again, labels) in zip(parked, plain(other)):
        assert torch.equal(images, again) and torch.equal(targets, labels)
    assert len(parked) == 60


@needs_fork
def test_a_batch_that_does_not_fit_is_handed_over_all_the_same():
    found = slots.Slots(workers=1, size=1)
    items = [Numbered(9000)[0, index] for index in range(60)]  # 60 x 8 x 8 x 3 bytes: three pages
    assert 60 * 8 * 8 * 3 > found.size == mmap.PAGESIZE
    images, targets = found(items)
    assert torch.equal(images[:, 0, 0, 0], torch.arange(60, dtype=torch.uint8))
    assert targets.tolist() == list(range(60))


@needs_fork
def test_bad_files_come_with_their_batch():
    batches = plain(made(broken=(5, 6, 100)))
    found = []

    class Names:
        def add(self, files):
            found.extend(file.path for file in files)

    batches.bad_files = Names()
    for number, batch in enumerate(batches):
        check(batch, number, 4)
    assert found == ["f5", "f6", "f100"]


@needs_fork
def test_memory_of_the_slots_is_given_back_after_an_epoch():
    found = made(images=3000, share=300, workers=2)  # 57600 bytes a batch: 15 pages
    assert resident(found.collate_fn.memory) == 0
    batches = plain(found)
    for number, batch in enumerate(batches):
        check(batch, number, 300)
        if number == 5:
            assert resident(found.collate_fn.memory) >= 15 * 4
    assert resident(found.collate_fn.memory) == 0
    for number, batch in enumerate(batches):  # and taken again
        check(batch, number, 300)


def resident(memory):
    """Pages of a mapping that are in memory."""
    pages = len(memory) // mmap.PAGESIZE
    found = (ctypes.c_ubyte * pages)()
    libc = ctypes.CDLL(None, use_errno=True)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert libc.mincore(ctypes.c_void_p(start), ctypes.c_size_t(len(memory)), found) == 0
    return sum(page & 1 for page in found)


@needs_fork
def test_the_pinning_thread_gets_a_copy_in_memory_of_its_own(monkeypatch):
    """PyTorch's thread calls `pin_memory` of what it does not know, in every version."""
    asked = []
    monkeypatch.setattr(
        torch.Tensor, "pin_memory", lambda tensor, *to: asked.append(to) or tensor.clone())
    found = slots.Slots(1, 4 * 8 * 8 * 3, pin_device="npu")
    monkeypatch.setattr(slots, "get_worker_info", lambda: type("Worker", (), {"id": 0}))
    items = [Numbered(4, broken=(1,))[0, index] for index in range(4)]
    from torch.utils.data._utils.pin_memory import pin_memory
    images, targets, bad = pin_memory(found(items))
    assert asked == [("npu",)] * 2  # before 2.8 it would ask CUDA
    for _ in range(slots.AHEAD + 1):  # all slots are written again
        found([Numbered(9)[0, 8]] * 4)
    assert images[:, 0, 0, 0].tolist() == targets.tolist() == [0, 1, 2, 3]
    assert [file.path for file in bad] == ["f1"]


def test_workers_that_are_not_forked_hand_over_as_pytorch_does(monkeypatch):
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
    assert not slots.are_possible()
    assert made(workers=1).collate_fn is slots.collate


@needs_fork
def test_where_the_system_lends_no_memory_batches_are_handed_over_as_pytorch_does(monkeypatch):
    def refused(*_):
        raise OSError(errno.ENOMEM, "Cannot allocate memory")
    monkeypatch.setattr(slots.mmap, "mmap", refused)
    assert made(workers=1).collate_fn is slots.collate


def test_without_workers_there_are_no_slots():
    assert made(workers=0).collate_fn is slots.collate


@pytest.mark.parametrize("transform, side", [
    (transforms.train_transform(40), 40),
    (transforms.train_transform(40, no_aug=True), 40),
    (transforms.val_transform(48, 0.875), 48),
    (transforms.ByEpoch([
        transforms.Stage(0, 64, transforms.train_transform(64)),
        transforms.Stage(2, 32, transforms.train_transform(32)),
    ]), 64),
    (np.asarray, 0),
])
def test_a_transform_tells_the_side_of_its_largest_images(transform, side):
    assert Transformed([(None, 0)], transform).side == side


@pytest.mark.parametrize("channels_last", [False, True])
def test_normalising_a_line_of_pixels_at_once_changes_no_bit(channels_last):
    images = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    batches = loader.DeviceLoader([(images, torch.zeros(3))], CPU, mean, std, channels_last)
    found = batches._normalised(images)
    as_timm = [torch.tensor(value).view(1, 3, 1, 1) * 255.0 for value in (mean, std)]
    expected = images.permute(0, 3, 1, 2).float().sub_(as_timm[0]).div_(as_timm[1])
    assert torch.equal(found, expected)
    order = torch.channels_last if channels_last else torch.contiguous_format
    assert found.is_contiguous(memory_format=order)
