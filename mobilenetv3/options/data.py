"""Options of the images: where they are, how they are loaded and how they are varied."""
import argparse
import re
from typing import Any, List

from mobilenetv3.arguments import (
    ABOVE_ZERO,
    BELOW_ONE,
    COUNT,
    NOT_NEGATIVE,
    PATH,
    POSITIVE,
    POSITIVE_INT,
    SHARE,
    TEXT,
    Choice,
    Flag,
    Number,
    Text,
)

PREPARE = ("img_size", "crop_pct", "interpolation", "mean", "std")
"""The options that say how images are prepared; weights say it, too."""
IMG_SIZE = Number(int, "an integer of 32 or more", lambda n: n >= 32)


class Stages(Text):
    """Sides of images, each from an epoch on: "128@0,224@60" -> [[128, 0], [224, 60]].

    Each begins at an epoch or at a share of --epochs ("224@66%" -> [224, "66%"], see `stages`), the
    first at epoch 0; each later one is larger. In YAML it is the same text, or the list.
    """

    __name__ = "SIZE@EPOCH,..."

    def __call__(self, text: str) -> List[list]:
        parts = re.split(r"[, ]+", text.strip())
        found = [re.fullmatch(r"([0-9]{1,5})@([0-9]{1,6})(%?)", part) for part in parts]
        sides, starts = ([int(part[group]) for part in found if part] for group in (1, 2))
        units = {part[3] for part in found[1:] if part}
        if (len(sides) < len(parts) or sides[0] < 32 or starts[0] or not _grow(sides)
                or not _grow(starts) or len(units) > 1 or "%" in units and starts[-1] >= 100):
            raise argparse.ArgumentTypeError(
                "expected sides of 32 or more that grow, each with the epoch that it begins at, "
                "the first with 0, such as 128@0,160@30,224@60, or with shares of --epochs, such "
                f"as 128@0,160@33%,224@66%; got {text!r}"
            )
        return [[side, f"{start}%" if start and "%" in units else start]
                for side, start in zip(sides, starts)]

    def from_yaml(self, value: Any) -> List[list]:
        if isinstance(value, list) and value:
            value = ",".join("@".join(map(str, pair)) if isinstance(pair, list) else str(pair)
                             for pair in value)
        return self(value if isinstance(value, str) else repr(value))


def _grow(numbers: List[int]) -> bool:
    return all(one < two for one, two in zip(numbers, numbers[1:]))


def stages(schedule: List[list], epochs: int) -> List[List[int]]:
    """[side, first epoch] of the images in a run of so many epochs, as `Stages` has read them.

    A share begins at the epoch that it falls into; a side whose epochs the next one takes, too, in
    a run of few, is left out.
    """
    found = {}
    for side, start in schedule:
        found[start if isinstance(start, int) else int(start[:-1]) * epochs // 100] = side
    return [[side, start] for start, side in found.items()]


def sides(cfg: argparse.Namespace) -> List[List[int]]:
    """[side, first epoch] of a run's training images, in the order of epochs."""
    if not cfg.res_schedule:
        return [[cfg.train_img_size or cfg.img_size, 0]]
    return stages(cfg.res_schedule, cfg.epochs)


def data(parser):
    """The images, in training and in validation."""
    add = parser.add_argument_group("data").add_argument
    add("data", nargs="?", type=PATH, metavar="DATA", help="the same as --data_path")
    add("--data_path", "--data", "--data_dir", metavar="DIR", type=PATH, default="",
        help="the data set's folder, or a prepared set's folder or URL, see docs/data.md (default: "
             "the built-in demo set)")
    add("--dataset", type=Choice("imagenet", "folder", "cifar10", "demo"),
        help="imagenet is a folder of 1000 classes (default: folder with a data path, else demo)")
    add("--dataset_download", action=Flag,
        help="fetch CIFAR-10, if it is not there yet, into the data path (default: "
             "~/.cache/mobilenetv3/cifar10)")
    add("--train_split", metavar="NAME", type=TEXT, default="train",
        help="folder of the training images")
    add("--val_split", metavar="NAME", type=TEXT, default="val",
        help="folder of the validation images")
    add("--val_labels", metavar="FILE", type=PATH, default="",
        help="labels of validation images that lie in one folder without class folders: lines of "
             "NAME and class (a training folder's name, a synset, or a number from 0), or "
             "ImageNet's own files (python -m pydoc mobilenetv3.data.labels)")
    add("--shard_cache", metavar="DIR", type=PATH, default="",
        help="where shards from a URL are kept (default: ~/.cache/mobilenetv3/shards)")
    add("--shard_cache_gb", metavar="GB", type=NOT_NEGATIVE, default=0.0,
        help="room for them: those not used for the longest time give way (default: no limit)")
    add("--img_size", metavar="PIXELS", type=IMG_SIZE, default=224,
        help="side of the square that the model sees")
    add("--batch_size", "-b", metavar="IMAGES", type=POSITIVE_INT, default=64,
        help="images in one step, all ranks together")
    add("--val_batch_size", "--validation_batch_size", "-vb", metavar="IMAGES", type=POSITIVE_INT,
        help="images in one step of validation (default: as --batch_size)")
    add("--workers", "-j", "--num_parallel_workers", metavar="N", type=COUNT, default=4,
        help="loader processes of each rank; 0 loads in the training process")
    add("--pin_workers", action=Flag, default=True,
        help="where several ranks are on a host, the loader processes of each run on CPUs of its "
             "own; =false leaves them to the system, as a launcher does that binds ranks itself")
    add("--data_retry_seconds", metavar="SECONDS", type=NOT_NEGATIVE, default=60.0,
        help="how long to wait for a file system that is away; then it is an error")
    if parser.trains:
        add("--max_bad_files", metavar="N", type=COUNT,
            help="training files that cannot be used, each replaced by another image and listed "
                 "in the run's bad_files.txt, before the run stops (default: 10, or 0.1%% of the "
                 "training set if that is more)")
    add("--pin_mem", action=Flag, help="accepted; host memory is pinned wherever there is a card")
    add("--mean", type=SHARE, nargs=3, metavar=("R", "G", "B"),
        help="mean of images scaled to 0..1 (default: ImageNet's)")
    add("--std", type=ABOVE_ZERO, nargs=3, metavar=("R", "G", "B"),
        help="standard deviation of images scaled to 0..1 (default: ImageNet's)")
    add("--crop_pct", type=ABOVE_ZERO, default=0.875,
        help="side of validation's centre crop, as a share of the resized shorter side")
    add("--interpolation", type=Choice("bilinear", "bicubic", "nearest"), default="bilinear",
        metavar="METHOD", help="of validation's resize: bilinear, bicubic or nearest")


def augmentation(parser):
    """What is done to training images."""
    add = parser.add_argument_group("augmentation of training images").add_argument
    add("--decode", type=Choice("fast", "exact"), default="fast", metavar="HOW",
        help="fast decodes of a JPEG what its random crop needs (with simplejpeg), exact is "
             "Pillow's to the bit; the crops are the same, and the pixels differ by 0.06 of 255 on "
             "average (ImageNet at 224); validation is always exact")
    add("--no_aug", action=Flag,
        help="resize and centre crop in place of random crops, flips and colours, as in timm")
    add("--train_img_size", "--train_crop_size", metavar="PIXELS", type=IMG_SIZE,
        help="side of the square in training (default: as --img_size, which validation has)")
    add("--res_schedule", metavar="SIZE@EPOCH,...", type=Stages(),
        help="begin with smaller training images: 128@0,160@30,224@60 has 128 pixels from epoch 0 "
             "on, 160 from epoch 30 and from epoch 60 the full size, which is that of "
             "--train_img_size or --img_size; 160@33%% begins at a third of --epochs; the batch "
             "stays (default: always the full size)")
    add("--aug_repeats", "--ra_reps", metavar="N", type=COUNT, default=0,
        help="repeated augmentation: each image of an epoch is in it N times, varied anew each "
             "time, and the epoch has as many steps, thus only 1/N of the images; 0 and 1 are off")
    add("--train_interpolation", type=Choice("bilinear", "bicubic", "nearest", "random"),
        metavar="METHOD", default="bilinear",
        help="of the random crop's resize: bilinear, bicubic, nearest or random")
    add("--scale", type=ABOVE_ZERO, nargs=2, metavar=("LOW", "HIGH"), default=[0.08, 1.0],
        help="share of the image's area that a random crop takes")
    add("--ratio", type=POSITIVE, nargs=2, metavar=("LOW", "HIGH"), default=[0.75, 1.3333333],
        help="aspect ratio of a random crop")
    add("--hflip", type=SHARE, default=0.5, help="probability of a horizontal flip")
    add("--vflip", type=SHARE, default=0.0, help="probability of a vertical flip")
    add("--color_jitter", type=NOT_NEGATIVE, default=0.0, help="strength of colour jitter")
    add("--aa", metavar="POLICY", type=TEXT,
        help="timm's AutoAugment, RandAugment or AugMix policy, such as rand-m9-mstd0.5; or "
             "torchvision's imagenet (AutoAugment) or ta_wide (TrivialAugment)")
    add("--reprob", type=SHARE, default=0.0, help="probability of random erasing")
    add("--remode", type=Choice("const", "rand", "pixel"), default="const",
        help="erased parts become the mean colour, one random colour, or random pixels")
    add("--recount", metavar="N", type=POSITIVE_INT, default=1, help="rectangles erased, at most")
    add("--mixup", type=NOT_NEGATIVE, default=0.0, help="Mixup's alpha; 0 is off")
    add("--cutmix", type=NOT_NEGATIVE, default=0.0, help="CutMix's alpha; 0 is off")
    add("--mixup_prob", type=SHARE, default=1.0, help="probability that a batch is mixed")
    add("--mixup_switch_prob", type=SHARE, default=0.5,
        help="probability of CutMix, where both are on")
    add("--mixup_mode", type=Choice("batch", "pair", "elem"), default="batch",
        help="what is mixed in one ratio: a batch, a pair or an image")
    add("--mixup_off_epoch", metavar="EPOCH", type=COUNT, default=0,
        help="first epoch without Mixup and CutMix; 0 is never")
    add("--smoothing", "--label_smoothing", type=BELOW_ONE, default=0.0,
        help="label smoothing")


def preparation(add):
    """How images are prepared, where the weights say it and the command line may say otherwise."""
    add("--img_size", metavar="PIXELS", type=IMG_SIZE,
        help="side of the square that the model sees")
    add("--crop_pct", type=ABOVE_ZERO,
        help="side of the centre crop, as a share of the resized shorter side")
    add("--interpolation", type=Choice("bilinear", "bicubic", "nearest"), metavar="METHOD",
        help="of the resize: bilinear, bicubic or nearest")
    add("--mean", type=SHARE, nargs=3, metavar=("R", "G", "B"),
        help="mean of images scaled to 0..1")
    add("--std", type=ABOVE_ZERO, nargs=3, metavar=("R", "G", "B"),
        help="standard deviation of images scaled to 0..1")
