"""Data sets, transforms and loaders.

    sources (where images come from) -> transforms (PIL image, or by way of decode JPEG -> uint8)
    -> samplers (which, in what order) -> loader (batches on the device)
"""
from mobilenetv3.data.loader import DeviceLoader, build_loader, seed_epoch, worker_count
from mobilenetv3.data.samplers import TrainSampler, ValSampler
from mobilenetv3.data.sources import Source, open_source
from mobilenetv3.data.transforms import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Transformed,
    train_transform,
    val_transform,
)
from mobilenetv3.device import Device


def val_loader(source: Source, device: Device, *, rank: int, world: int, batch_size: int,
               workers: int, transform, mean, std, channels_last: bool = False) -> DeviceLoader:
    """This rank's share of a validation set, every image once, as batches on the device.

    Args:
        batch_size: images a batch of this rank.
    """
    images = Transformed(source.samples, transform)
    sampler = ValSampler(len(images), batch_size, rank, world)
    loader = build_loader(images, sampler, device, workers, seed=0)
    return DeviceLoader(loader, device, mean, std, channels_last)


def train_loader(source: Source, device: Device, *, rank: int, world: int, batch_size: int,
                 workers: int, transform, mean, std, seed: int, channels_last: bool = False,
                 erase=None, mixup=None, mixup_off_epoch: int = 0,
                 fast: bool = False) -> DeviceLoader:
    """This rank's share of the shuffled training batches, on the device.

    Args:
        batch_size: images a batch of all ranks together; a multiple of `world`.
        erase: RandomErasing, mixup: timm's Mixup; None for none.
        fast: decode JPEGs no further than the crop needs (see `decode`).
    """
    images = Transformed(source.samples, transform, seed, fast)
    sampler = TrainSampler(len(images), batch_size, rank, world, seed)
    loader = build_loader(images, sampler, device, workers, seed)
    return DeviceLoader(loader, device, mean, std, channels_last, erase, mixup, mixup_off_epoch)


__all__ = [
    "IMAGENET_MEAN", "IMAGENET_STD", "DeviceLoader", "Source", "TrainSampler", "Transformed",
    "ValSampler", "build_loader", "open_source", "seed_epoch", "train_loader", "train_transform",
    "val_loader", "val_transform", "worker_count",
]
