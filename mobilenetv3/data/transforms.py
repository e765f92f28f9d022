"""From a PIL image to the uint8 array that a batch is made of.

Crops and flips are torchvision's, colour and policies timm's. Images stay uint8 until they are on
the device: a quarter of the bytes to move, and the host does no arithmetic that the device does
faster. See `loader` for what happens there.
"""
import random
from typing import Callable, Optional, Sequence

import numpy as np
import torch
import torchvision
from timm.data import create_transform
from torch.utils.data import get_worker_info
from torchvision import transforms as tv

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATION = {
    "nearest": tv.InterpolationMode.NEAREST,
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
}


def to_array(image) -> np.ndarray:
    """PIL image of mode RGB -> uint8 array (3, H, W)."""
    return np.asarray(image).transpose(2, 0, 1)


def train_transform(img_size: int, *, no_aug: bool = False, scale: Sequence[float] = (0.08, 1.0),
                    ratio: Sequence[float] = (3 / 4, 4 / 3), hflip: float = 0.5,
                    vflip: float = 0.0, color_jitter: float = 0.0, aa: Optional[str] = None,
                    interpolation: str = "bilinear",
                    mean: Sequence[float] = IMAGENET_MEAN) -> Callable:
    """RandomResizedCrop, flips and colour: PIL image -> uint8 array (3, img_size, img_size).

    Args:
        no_aug: the whole image, resized and centre-cropped, and nothing random.
        interpolation: "nearest", "bilinear", "bicubic", or "random" for one of the last two.
        aa: timm's policy string for AutoAugment, RandAugment or AugMix, such as "rand-m9-mstd0.5";
            or torchvision's "imagenet" (AutoAugment) or "ta_wide" (TrivialAugment).
        mean: fills what geometric augmentation uncovers; torchvision's two leave it black, as
            torchvision's training script does.

    Raises:
        ValueError: the policy is not one that timm knows, or that this torchvision has.
    """
    if no_aug:
        fixed = "bilinear" if interpolation == "random" else interpolation
        return val_transform(img_size, 1.0, fixed)
    names = ["bilinear", "bicubic"] if interpolation == "random" else [interpolation]
    crops = [
        tv.RandomResizedCrop(img_size, tuple(scale), tuple(ratio), INTERPOLATION[name])
        for name in names
    ]
    steps = [crops[0] if len(crops) == 1 else tv.RandomChoice(crops)]
    if hflip:
        steps.append(tv.RandomHorizontalFlip(hflip))
    if vflip:
        steps.append(tv.RandomVerticalFlip(vflip))
    if aa or color_jitter:
        steps.append(_colour(img_size, color_jitter, aa, interpolation, mean))
    return tv.Compose([*steps, to_array])


TORCHVISION_POLICIES = {"imagenet": "AutoAugment", "ta_wide": "TrivialAugmentWide"}
"""torchvision's names of policies -> its transforms."""


def _colour(img_size, color_jitter, aa, interpolation, mean) -> Callable:
    """The part between crop and tensor: the policy, or colour jitter where there is none."""
    if aa in TORCHVISION_POLICIES:
        if not hasattr(tv, TORCHVISION_POLICIES[aa]):
            raise ValueError(
                f"--aa {aa} is torchvision's {TORCHVISION_POLICIES[aa]}, which version "
                f"{torchvision.__version__} does not have; use a newer one, or a policy of timm's"
            )
        fixed = "bilinear" if interpolation == "random" else interpolation
        return getattr(tv, TORCHVISION_POLICIES[aa])(interpolation=INTERPOLATION[fixed])
    try:
        _, colour, _ = create_transform(
            img_size, is_training=True, separate=True, color_jitter=color_jitter or None,
            auto_augment=aa, interpolation=interpolation, mean=tuple(mean),
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise ValueError(
            f"--aa {aa!r} is not a policy timm knows ({error or type(error).__name__}); expected "
            "for instance rand-m9-mstd0.5, original or augmix-m3-w3"
        ) from error
    return colour


def val_transform(img_size: int, crop_pct: float = 0.875,
                  interpolation: str = "bilinear") -> Callable:
    """Resize the shorter side to img_size / crop_pct, crop the centre, as torchvision and timm do.

    Returns:
        PIL image -> uint8 array (3, img_size, img_size)
    """
    return tv.Compose([
        tv.Resize(int(img_size / crop_pct), INTERPOLATION[interpolation]),
        tv.CenterCrop(img_size),
        to_array,
    ])


class Transformed(torch.utils.data.Dataset):
    """A source with its transform; an item is asked for by (epoch, index).

    Augmentation of image i in epoch e depends on (seed, e, i) alone: not on the number of workers
    or ranks, and not on what was drawn before. A resumed run therefore sees the images that the
    run it continues would have seen.
    """

    def __init__(self, samples, transform: Callable, seed: Optional[int] = None):
        self.samples, self.transform, self.seed = samples, transform, seed

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, key):
        epoch, index = key
        try:
            image, label = self.samples[index]
        except OSError as error:
            raise OSError(f"cannot read {self._path(index)}: {error}") from error
        if image.mode != "RGB":
            image = image.convert("RGB")
        if self.seed is None:
            return self.transform(image), label
        with _seeded((self.seed, epoch, index)):
            return self.transform(image), label

    def _path(self, index):
        paths = getattr(self.samples, "samples", None)
        return paths[index][0] if paths else f"image {index}"


class _seeded:
    """Seeds the three generators that transforms draw from.

    In the training process (workers=0) their states are put back: dropout must not be reseeded by
    each image. A worker process draws for images only.
    """

    def __init__(self, key):
        self.words = np.random.SeedSequence(key).generate_state(3)

    def __enter__(self):
        self.kept = None
        if get_worker_info() is None:
            self.kept = random.getstate(), np.random.get_state(), torch.get_rng_state()
        for seed, word in zip((random.seed, np.random.seed, torch.manual_seed), self.words):
            seed(int(word))

    def __exit__(self, *error):
        if self.kept:
            random.setstate(self.kept[0])
            np.random.set_state(self.kept[1])
            torch.set_rng_state(self.kept[2])
