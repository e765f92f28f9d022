"""From a PIL image, or from a JPEG, to the uint8 array that a batch is made of.

Crops and flips are torchvision's, colour and policies timm's. Images stay uint8 until they are on
the device: a quarter of the bytes to move, and the host does no arithmetic that the device does
faster. See `loader` for what happens there, and `decode` for the short way from a JPEG to a crop.
"""
import functools
import math
import random
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
import torchvision
from PIL import Image
from timm.data import create_transform
from torchvision import transforms as tv

from mobilenetv3.data import decode

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

INTERPOLATION = {
    "nearest": tv.InterpolationMode.NEAREST,
    "bilinear": tv.InterpolationMode.BILINEAR,
    "bicubic": tv.InterpolationMode.BICUBIC,
}
STRIP = 50
"""A longer side of so many times the shorter one is cut to that before it is resized whole."""


def to_array(image) -> np.ndarray:
    """PIL image of mode RGB, or uint8 tensor (3, H, W) -> uint8 array (3, H, W)."""
    if isinstance(image, torch.Tensor):
        return image.numpy()
    return np.asarray(image).transpose(2, 0, 1)


def train_transform(img_size: int, *, no_aug: bool = False, scale: Sequence[float] = (0.08, 1.0),
                    ratio: Sequence[float] = (3 / 4, 4 / 3), hflip: float = 0.5,
                    vflip: float = 0.0, color_jitter: float = 0.0, aa: Optional[str] = None,
                    interpolation: str = "bilinear",
                    mean: Sequence[float] = IMAGENET_MEAN) -> Callable:
    """RandomResizedCrop, flips and colour: PIL image -> uint8 array (3, img_size, img_size).

    The result is a `TrainTransform`, which takes JPEGs as well, unless `no_aug`.

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
    flips = [
        flip(share) for flip, share in
        ((tv.RandomHorizontalFlip, hflip), (tv.RandomVerticalFlip, vflip)) if share
    ]
    if not aa and not color_jitter:
        return TrainTransform(crops, flips)
    colour = _colour(img_size, color_jitter, aa, interpolation, mean)
    return TrainTransform(crops, flips, colour)


class TrainTransform:
    """One of several crops, flips, and colour; the same random numbers from an image and a JPEG.

    Args:
        crops: RandomResizedCrops, which differ in their interpolation.
        colour: from PIL image to PIL image; None for none.
    """

    def __init__(self, crops: Sequence[tv.RandomResizedCrop], flips: Sequence[Callable],
                 colour: Optional[Callable] = None):
        self.crops, self.flips, self.colour = crops, flips, colour
        self.side = crops[0].size[0]
        self.draws_from = ("torch",)  # torchvision's crop and flips; see `dataset.SEEDERS`
        if colour is not None or len(crops) > 1:
            self.draws_from = ("random", "numpy", "torch")

    def __call__(self, image) -> np.ndarray:
        """PIL image of mode RGB -> uint8 array (3, H, W)."""
        image = self._crop()(image)
        for flip in self.flips:
            image = flip(image)
        return to_array(image if self.colour is None else self.colour(image))

    def from_jpeg(self, data: bytes) -> np.ndarray:
        """JPEG -> uint8 array (3, H, W), as of the decoded image but for what `decode` tells.

        Raises:
            decode.Refused: it must be decoded in another way.
        """
        header = decode.read_header(data)
        crop = self._crop()
        box = draw_box(crop.scale, crop.ratio, header.height, header.width)
        image = decode.crop(data, box, crop.size[0], crop.interpolation.value, header)
        for flip in self.flips:
            image = flip(image)
        if self.colour is None:
            return to_array(image)
        if isinstance(image, torch.Tensor):
            image = Image.fromarray(np.ascontiguousarray(image.permute(1, 2, 0).numpy()))
        return to_array(self.colour(image))

    def _crop(self) -> tv.RandomResizedCrop:
        return self.crops[0] if len(self.crops) == 1 else random.choice(self.crops)


def draw_box(scale: Sequence[float], ratio: Sequence[float], height: int,
             width: int) -> decode.Box:
    """What `RandomResizedCrop.get_params` of torchvision draws for an image, number for number.

    That makes tensors of the image's size and of the ratios anew for each image, which takes 1.5 %
    of the time that a prepared one has.
    """
    low, high = _log(tuple(ratio))
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(scale[0], scale[1]).item()
        aspect = torch.empty(1).uniform_(low, high).exp_().item()
        columns = int(round(math.sqrt(area * aspect)))
        rows = int(round(math.sqrt(area / aspect)))
        if 0 < columns <= width and 0 < rows <= height:
            top = torch.randint(0, height - rows + 1, (1,)).item()
            left = torch.randint(0, width - columns + 1, (1,)).item()
            return decode.Box(int(top), int(left), rows, columns)
    # Nothing fits, as in a long strip: its middle, as near to the whole as the ratios allow.
    rows, columns = height, width
    if width / height < min(ratio):
        rows = int(round(width / min(ratio)))
    elif width / height > max(ratio):
        columns = int(round(height * max(ratio)))
    return decode.Box((height - rows) // 2, (width - columns) // 2, rows, columns)


@functools.lru_cache(maxsize=None)
def _log(ratio: Tuple[float, ...]) -> List[float]:
    return torch.log(torch.tensor(ratio)).tolist()  # in float32, as torchvision has it


class Stage(NamedTuple):
    """Part of a run with training images of one size."""

    epoch: int
    """The first, from 0."""
    side: int
    """Of the square, pixels."""
    transform: Callable


class ByEpoch:
    """Another transform from certain epochs on; the first stage begins at epoch 0."""

    def __init__(self, stages: Sequence[Stage]):
        assert stages[0].epoch == 0
        self.stages = list(stages)
        self.side = max(stage.side for stage in stages)

    def at(self, epoch: int) -> Stage:
        """The stage that an epoch belongs to."""
        return [stage for stage in self.stages if stage.epoch <= epoch][-1]


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


def without_ends(image: Image.Image) -> Image.Image:
    """The middle of an image that is a strip; any other as it is.

    Resized by its shorter side, a line of a million pixels would have 17 billion; a centre crop
    sees none but the middle.
    """
    width, height = image.size
    across, along = (width - STRIP * height) // 2, (height - STRIP * width) // 2
    if across > 0:
        return image.crop((across, 0, width - across, height))
    if along > 0:
        return image.crop((0, along, width, height - along))
    return image


def val_transform(img_size: int, crop_pct: float = 0.875,
                  interpolation: str = "bilinear") -> Callable:
    """Resize the shorter side to img_size / crop_pct, crop the centre, as torchvision and timm do.

    Only of strips, see `without_ends`, pixels may differ from theirs, by a fraction of a pixel.

    Returns:
        PIL image -> uint8 array (3, img_size, img_size)
    """
    return ValTransform([
        without_ends,
        tv.Resize(int(img_size / crop_pct), INTERPOLATION[interpolation]),
        tv.CenterCrop(img_size),
        to_array,
    ], img_size)


class ValTransform(tv.Compose):
    """Several in a row, and the side of the squares that they make, in pixels."""

    def __init__(self, steps: Sequence[Callable], side: int):
        super().__init__(steps)
        self.side = side
