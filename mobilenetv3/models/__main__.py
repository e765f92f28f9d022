"""Print the table of models, in Markdown, counted from the networks themselves.

    python -m mobilenetv3.models
    python -m mobilenetv3.models small --img-size 160
"""
import fnmatch
import sys
from typing import List, Optional

from mobilenetv3.arguments import Number, PlainParser

from . import create_model
from .counts import count_macs, count_params
from .names import MODELS, TORCHVISION_WIDTH_ALIASES, aliases_of, near_names

IMG_SIZE = Number(int, "an integer from 1 to 2048", lambda n: 1 <= n <= 2048)
HEADER = "| name | params (M) | MACs (M) | input | also called |\n|---|---:|---:|---|---|"


def select(pattern: str) -> List[str]:
    """Networks with a name that matches a shell pattern, or without wildcards, that contains it."""
    if not any(wildcard in pattern for wildcard in "*?["):
        pattern = f"*{pattern}*"
    names = [*MODELS, *TORCHVISION_WIDTH_ALIASES]
    return [name for name in names if fnmatch.filter([name, *aliases_of(name)], pattern)]


def row(name: str, img_size: int) -> str:
    """One line of the table."""
    model = create_model(name)
    params, macs = count_params(model) / 1e6, count_macs(model, img_size) / 1e6
    side = f"{model.config['in_chans']}x{img_size}x{img_size}"
    return f"| {name} | {params:.2f} | {macs:.1f} | {side} | {', '.join(aliases_of(name))} |"


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; returns the exit status."""
    parser = PlainParser(
        prog="python -m mobilenetv3.models", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "filter", nargs="?", default="*", help="part of a name, or a pattern such as '*small*'"
    )
    parser.add_argument(
        "--img-size", type=IMG_SIZE, default=224, metavar="PIXELS", help="side of the image (224)"
    )
    args = parser.parse_args(argv)
    names = select(args.filter)
    if not names:
        parser.error(f"no model matches {args.filter!r}; {near_names(args.filter)}")
    print(HEADER)
    for name in names:
        print(row(name, args.img_size), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
