"""Convert a checkpoint of another package, or one of ours for another package.

    python -m mobilenetv3.convert mobilenet_v3_large-5c1a4163.pth large.pth     # to our own form
    python -m mobilenetv3.convert output/RUN/model_best.pth.tar large.ckpt --to mindcv
    python -m mobilenetv3.convert best.ckpt                                     # only look

SRC may be of timm, torchvision, Ascend ModelZoo, mmpretrain, MindCV, d-li14, xiaolai or this
package, as .pth, .pth.tar, .pt, .safetensors or .ckpt; its content says which. Every command that
takes weights reads them directly, too; there is no need to convert first.
"""
import argparse
import os
import sys
from typing import List, Optional, Sequence

from mobilenetv3 import convert, entry
from mobilenetv3.arguments import POSITIVE, PlainParser
from mobilenetv3.models import PAD_TYPES
from mobilenetv3.models.counts import count_params
from mobilenetv3.text import printable

from .weights import width_of


def parser() -> argparse.ArgumentParser:
    """The command line."""
    found = PlainParser(
        prog="python -m mobilenetv3.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    found.add_argument("src", metavar="SRC", help="the checkpoint to read")
    found.add_argument(
        "dst", metavar="DST", nargs="?",
        help="the file to write; .pth, .pth.tar, .pt or .safetensors, for MindCV .ckpt. Without it "
        "SRC is only described",
    )
    found.add_argument(
        "--to", choices=list(convert.TARGETS), metavar="FAMILY",
        help=f"write by the names of a family: {', '.join(convert.TARGETS)}; a network that it "
        "does not have is refused. Default: a checkpoint of this package, which keeps all that is "
        "known: network, eps, padding, classes, how images are prepared",
    )
    average = found.add_mutually_exclusive_group()
    average.add_argument(
        "--ema", action="store_true", default=None, dest="ema",
        help="take the averaged weights; the default for this package's checkpoints and mmengine's",
    )
    average.add_argument(
        "--no-ema", "--no_ema", action="store_false", default=None, dest="ema",
        help="take the weights as they were trained",
    )
    found.add_argument(
        "--arch", metavar="NAME",
        help="which network it is, where neither the weights nor their names tell: timm's "
        "tf_mobilenetv3_* look like mobilenetv3_*",
    )
    found.add_argument(
        "--bn-eps", type=POSITIVE, metavar="X", help="epsilon of the batch norms, if it was changed"
    )
    found.add_argument(
        "--pad-type", choices=PAD_TYPES,
        help="padding of the convolutions, if it was changed",
    )
    found.add_argument("--force", action="store_true", help="replace DST if it exists")
    return found


def main(args: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        OSError, ValueError: it cannot be done; in one sentence.
    """
    if args.dst is None and args.to:
        raise ValueError("--to needs a file to write, DST")
    if args.dst and os.path.exists(args.dst) and not args.force:
        raise ValueError(f"{args.dst} exists; add --force to replace it")
    weights = convert.read(args.src, ema=args.ema, arch=args.arch)
    given = {"bn_eps": args.bn_eps, "pad_type": args.pad_type}
    given = {name: value for name, value in given.items() if value is not None}
    weights = weights._replace(config={**weights.config, **given})
    for line in report(weights, list(given)):
        print(printable(line))
    if args.dst:
        lines = convert.save(weights, args.dst, to=args.to)
        print(printable(f"=> {args.dst} written" + (f" for {args.to}" if args.to else "")))
        for line in lines:
            print(printable(f"=> {line}"))


def report(weights: convert.Weights, given: Sequence[str] = ()) -> List[str]:
    """What was found, a line each.

    Args:
        weights: as `convert.read` gives them.
        given: names of options that the command line set.
    """
    model = convert.build(weights)  # everything fits, or this says what does not
    config, prepare = model.config, weights.prepare
    classes = str(config["num_classes"])
    if weights.classes:
        classes += f" ({', '.join(weights.classes[:3])}" + (
            ", ...)" if len(weights.classes) > 3 else ")")
    shown = {
        "family": weights.family,
        "architecture": config["arch"],
        "parameters": f"{count_params(model):,}",
        "classes": classes,
        "input": f"{config['in_chans']} channels",
        "width": width_of(config) if "width_mult" in config else None,
        "bn_eps": f"{config['bn_eps']:g}",
        "pad_type": config.get("pad_type"),
        "images": f"{prepare['img_size']} of {int(prepare['img_size'] / prepare['crop_pct'])} "
                  f"pixels (crop_pct {prepare['crop_pct']:.4g}), {prepare['interpolation']}",
        "mean": ", ".join(f"{value:.4g}" for value in prepare["mean"]),
        "std": ", ".join(f"{value:.4g}" for value in prepare["std"]),
    }
    lines = [f"{weights.path}"]
    lines += [f"  {name:<13} {value}{' (as told)' if name in given else ''}"
              for name, value in shown.items() if value is not None]
    return lines + [f"=> {note}" for note in weights.notes[1:]]


def run(argv: Optional[List[str]] = None) -> int:
    """Parse, run, and return the exit status."""
    return entry.run(main, parser().parse_args(argv), "mobilenetv3.convert")


if __name__ == "__main__":
    sys.exit(run())
