"""Options of export.py."""
import os
import sys
from argparse import Namespace
from typing import List, Optional, Sequence

from mobilenetv3.arguments import (
    PATH,
    POSITIVE,
    POSITIVE_INT,
    TEXT,
    Choice,
    Flag,
    Number,
    Parser,
    Several,
)
from mobilenetv3.options import data, model

OPSET = Number(int, "an integer of 11 or more", lambda n: n >= 11)

HELP = """\
Write a network with its weights as ONNX, TorchScript or safetensors, once it has answered as
PyTorch does. The file's input is named "input": float32 (N, C, H, W), RGB, scaled to 0..1, minus
mean, divided by std. Its output is "output": (N, classes). The file says more of itself in its
metadata: the model, the class names, the image size, mean, std and crop.

Beside an ONNX file goes NAME.aipp.cfg: with it Ascend's ATC makes NAME.om that takes uint8
images and normalises them on the NPU. ATC's command line is printed, and run where atc is on PATH.
It is written from ATC's documents and has not been run on an NPU here.

Dashes and underscores are the same in option names. A flag can be taken back with --no_NAME or
--NAME=false.
"""

EXAMPLES = """\
examples:
  python export.py --ckpt_path output/RUN/model_best.pth.tar --format onnx
  python export.py --ckpt_path FILE --format onnx --batch_size 8 --soc_version Ascend310P3
  python export.py --model mobilenetv3_small_100 --pretrained --format torchscript
"""


def export_parser() -> Parser:
    """The parser of export.py."""
    parser = Parser("export.py", HELP, EXAMPLES, trains=False)
    parser.usage = "export.py --ckpt_path FILE [options]   (see export.py --help)"
    model.weights(parser)
    _images(parser)
    _file(parser)
    _ascend(parser)
    return parser


def _images(parser):
    add = parser.add_argument_group("images (default: as the weights were trained)").add_argument
    data.preparation(add)
    add("--check_images", metavar="PATH", type=PATH, action=Several,
        help="images and folders of images to compare on, up to 64 of them (default: two "
             "photographs that scikit-learn has)")
    add("--tolerance", type=POSITIVE,
        help="largest difference to PyTorch's outputs that passes (default: 1e-4, or, where "
             "PyTorch's own rounding is of that size, ten times that)")


def _file(parser):
    add = parser.add_argument_group("file").add_argument
    add("--format", type=Choice("onnx", "torchscript", "safetensors"), default="onnx",
        help="what to write")
    add("--output", "-o", metavar="FILE", type=PATH, default="",
        help="where to (default: beside the weights, with .onnx, .torchscript.pt or .safetensors "
             "for its ending)")
    add("--force", action=Flag, help="replace files that are there")
    add("--batch_size", "-b", metavar="IMAGES", type=POSITIVE_INT,
        help="the one batch that the ONNX model takes (default: 1)")
    add("--dynamic", action=Flag, help="an ONNX model that takes any batch")
    add("--opset", metavar="VERSION", type=OPSET,
        help="of ONNX's operators (default: 11; ATC of CANN 5 and 6 reads up to 13)")
    add("--help", "-h", action="help", help="show this text and exit")


def _ascend(parser):
    add = parser.add_argument_group("Ascend NPU").add_argument
    add("--soc_version", metavar="CHIP", type=TEXT,
        help="chip that ATC compiles for, as npu-smi info names it (default: Ascend310P3)")
    add("--skip_atc", action=Flag, help="only print ATC's command line")


def parse_export(argv: Optional[Sequence[str]] = None) -> Namespace:
    """Read the command line (sys.argv if None) of export.py.

    A mistake ends the process with status 2 and one sentence on standard error; a setting without
    effect is told there, too.
    """
    parser = export_parser()
    try:
        typed = parser.typed(sys.argv[1:] if argv is None else list(argv))
        cfg = Namespace(**{**parser.defaults(), **typed})
        _check(cfg)
    except ValueError as error:
        parser.error(str(error))
    for note in _without_effect(cfg):
        print(f"{parser.prog}: {note}", file=sys.stderr)
    return cfg


def _check(cfg: Namespace) -> None:
    if cfg.ckpt_path and cfg.pretrained:
        raise ValueError("--pretrained and --ckpt_path both name weights; give one")
    if not cfg.ckpt_path and not cfg.pretrained:
        raise ValueError(
            "no weights to export: give --ckpt_path FILE, or --pretrained with --model"
        )
    if cfg.pretrained is True and not cfg.model:
        raise ValueError("--pretrained takes timm's weights of a model's name: add --model NAME")
    if isinstance(cfg.pretrained, str) and os.path.isdir(cfg.pretrained):
        raise ValueError(f"--pretrained {cfg.pretrained}: expected a file, and this is a folder")
    if cfg.dynamic and cfg.batch_size:
        raise ValueError(
            f"--dynamic takes any batch, --batch_size {cfg.batch_size} only that one; give one"
        )


def _without_effect(cfg: Namespace) -> List[str]:
    names = ("batch_size", "dynamic", "opset", "soc_version", "skip_atc")
    return [
        f"--{name} has no effect with --format {cfg.format}"
        for name in names if cfg.format != "onnx" and getattr(cfg, name)
    ]
