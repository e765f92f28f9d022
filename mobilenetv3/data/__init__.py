"""Data sets, transforms and loaders.

    sources (where images come from) -> transforms (PIL image, or by way of decode JPEG -> uint8)
    -> dataset (both together; bad images replaced) -> samplers (which, in what order)
    -> loader (batches on the device)
"""
from typing import FrozenSet

from mobilenetv3.data.badfiles import BadFiles
from mobilenetv3.data.dataset import Transformed
from mobilenetv3.data.loader import DeviceLoader, build_loader, seed_epoch, worker_count
from mobilenetv3.data.samplers import TrainSampler, ValSampler, order_of
from mobilenetv3.data.sources import Source, check_pair, open_source
from mobilenetv3.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ByEpoch,
    Stage,
    train_transform,
    val_transform,
)
from mobilenetv3.device import Device


def val_loader(source: Source, device: Device, *, rank: int, world: int, batch_size: int,
               workers: int, transform, mean, std, channels_last: bool = False,
               patience: float = 60.0,
               own_cpus: FrozenSet[int] = frozenset()) -> DeviceLoader:
    """This rank's share of a validation set, every image once, as batches on the device.

    Args:
        batch_size: images a batch of this rank.
        patience: seconds to wait for a file system that is away.
        own_cpus: CPUs that the workers run on; none for any.
    """
    images = Transformed(source.samples, transform, patience=patience)
    sampler = ValSampler(len(images), batch_size, rank, world)
    loader = build_loader(images, sampler, device, workers, seed=0, own_cpus=own_cpus)
    return DeviceLoader(loader, device, mean, std, channels_last)


def train_loader(source: Source, device: Device, *, rank: int, world: int, batch_size: int,
                 workers: int, transform, mean, std, seed: int, channels_last: bool = False,
                 erase=None, mixup=None, mixup_off_epoch: int = 0, repeats: int = 1,
                 fast: bool = False, replaces: bool = False,
                 patience: float = 60.0,
                 own_cpus: FrozenSet[int] = frozenset()) -> DeviceLoader:
    """This rank's share of the shuffled training batches, on the device.

    Args:
        batch_size: images a batch of all ranks together; a multiple of `world`.
        erase: RandomErasing, mixup: timm's Mixup; None for none.
        repeats: copies of an image in an epoch, each augmented anew.
        fast: decode JPEGs no further than the crop needs (see `decode`).
        replaces: put other images in the place of bad ones, and report these to the loader's
            `bad_files`.
        patience: seconds to wait for a file system that is away.
        own_cpus: CPUs that the workers run on; none for any.
    """
    images = Transformed(source.samples, transform, seed, fast, replaces, patience)
    order = order_of(source.samples)
    sampler = TrainSampler(len(images), batch_size, rank, world, seed, order, repeats)
    loader = build_loader(images, sampler, device, workers, seed, own_cpus)
    return DeviceLoader(loader, device, mean, std, channels_last, erase, mixup, mixup_off_epoch)


__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "BadFiles", "ByEpoch", "DeviceLoader", "Source", "Stage",
    "TrainSampler", "Transformed", "ValSampler", "build_loader", "check_pair", "open_source",
    "seed_epoch", "train_loader", "train_transform", "val_loader", "val_transform", "worker_count",
]
