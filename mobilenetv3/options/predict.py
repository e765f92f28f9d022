"""Options of predict.py."""
import os
import sys
from argparse import Namespace
from typing import Optional, Sequence

from mobilenetv3.arguments import (
    COUNT,
    PATH,
    POSITIVE_INT,
    Flag,
    Parser,
)
from mobilenetv3.options import data, model
from mobilenetv3.options.run import DEVICE

HELP = """\
Name what is in images: the likeliest classes of each, with their probabilities.
An image that cannot be read is named, the others are still predicted, and the exit status is 1.

Dashes and underscores are the same in option names. A flag can be taken back with --no_NAME or
--NAME=false. After -- everything is an image.
"""

EXAMPLES = """\
examples:
  python predict.py cat.jpg --ckpt_path mobilenet_v3_large.pth
  python predict.py photos --ckpt_path model_best.pth.tar --csv found.csv --sheet found.png
  python predict.py cat.jpg dog.jpg --model mobilenetv3_small_100 --pretrained --top_k 3
"""


class PredictParser(Parser):
    """A parser whose positional arguments may stand on both sides of an option."""

    def parse_known_args(self, args=None, namespace=None):
        values, extra = super().parse_known_args(args, namespace)
        end = extra.index("--") if "--" in extra else len(extra)
        before, after = extra[:end], extra[end + 1:]
        more = [word for word in before if not word.startswith("-")] + after
        if more:
            values.images = [*values.images, *more]
        return values, [word for word in before if word.startswith("-")]


def predict_parser() -> Parser:
    """The parser of predict.py."""
    parser = PredictParser("predict.py", HELP, EXAMPLES, trains=False)
    parser.usage = "predict.py IMAGE|FOLDER ... [options]   (see predict.py --help)"
    _images(parser)
    _weights(parser)
    _results(parser)
    return parser


def _images(parser):
    add = parser.add_argument_group("images").add_argument
    add("images", nargs="*", type=PATH, metavar="IMAGE|FOLDER",
        help="files, and folders, of which all .jpg, .png, .bmp, .webp, .tif and .ppm are taken")
    add("--recursive", action=Flag,
        help="take the folders in a folder, too, or with --recursive=false its own images only")
    add("--exif", action=Flag,
        help="turn photographs as their camera's note says; validation does not")
    group = parser.add_argument_group("preparation (default: as the weights say)")
    data.preparation(group.add_argument)


def _weights(parser):
    add = model.weights(parser)
    add("--device", type=DEVICE, default="auto",
        help="auto takes the first of npu, cuda and cpu that is usable")
    add("--device_id", metavar="N", type=COUNT, help="number of the card (default: 0)")
    add("--batch_size", "-b", metavar="IMAGES", type=POSITIVE_INT, default=32,
        help="images that the model takes at once")
    add("--workers", "-j", "--num_parallel_workers", metavar="N", type=POSITIVE_INT, default=4,
        help="threads that read images")


def _results(parser):
    add = parser.add_argument_group("results").add_argument
    add("--top_k", metavar="K", type=POSITIVE_INT, default=5, help="classes to name for each image")
    add("--csv", metavar="FILE", type=PATH, default="",
        help="write a table, one line an image: file, error, then class, index and score of each "
             "of the classes")
    add("--json", metavar="FILE", type=PATH, default="",
        help="write the same as JSON, with the model, the versions and the device")
    add("--sheet", metavar="FILE.png", type=PATH, default="",
        help="draw a contact sheet: small images with the likeliest class and its score")
    add("--force", action=Flag, help="replace files that are there")
    add("--help", "-h", action="help", help="show this text and exit")
    # Unless it is taken back.
    parser.set_defaults(recursive=True)


def parse_predict(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Read the command line (sys.argv if None) of predict.py.

    A mistake ends the process with status 2 and one sentence on standard error.
    """
    parser = predict_parser()
    try:
        typed = parser.typed(sys.argv[1:] if argv is None else list(argv))
        cfg = Namespace(**{**parser.defaults(), **typed})
        _check(cfg)
    except ValueError as error:
        parser.error(str(error))
    return cfg


def _check(cfg: Namespace) -> None:
    if not cfg.images:
        raise ValueError("no images: give files or folders, such as predict.py photos/ ...")
    if cfg.ckpt_path and cfg.pretrained:
        raise ValueError("--pretrained and --ckpt_path both name weights; give one")
    if not cfg.ckpt_path and not cfg.pretrained:
        raise ValueError(
            "no weights to predict with: give --ckpt_path FILE, or --pretrained with --model"
        )
    if cfg.pretrained is True and not cfg.model:
        raise ValueError("--pretrained takes timm's weights of a model's name: add --model NAME")
    if isinstance(cfg.pretrained, str) and _is_image_or_folder(cfg.pretrained):
        raise ValueError(
            f"--pretrained {cfg.pretrained}: expected a file of weights; images go before the "
            "options"
        )
    if cfg.sheet and not cfg.sheet.lower().endswith(".png"):
        raise ValueError(f"--sheet {cfg.sheet}: expected a name that ends in .png")


def _is_image_or_folder(path: str) -> bool:
    endings = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
    return os.path.isdir(path) or path.lower().endswith(endings)
