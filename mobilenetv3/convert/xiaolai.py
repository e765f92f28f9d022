"""xiaolai-sqlai's three graphs, which have classes of their own with the author's names."""
from typing import Any, Dict, Set, Tuple

from torch import Tensor

from mobilenetv3.models.xiaolai import XIAOLAI

from .source import Facts, dict_of, preparation, take

# Layers of a squeeze-excite that tell the graphs apart. 2019 pools first, its first release does
# not, so that there the numbers are one lower; 2023 has a norm after the first convolution only.
YEARS: Tuple[Tuple[str, str], ...] = (
    ("xiaolai2019old", "se.se.0.weight"),
    ("xiaolai2019", "se.se.5.weight"),
    ("xiaolai2023", "se.se.4.weight"),
)


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is one of xiaolai's."""
    return {"conv1.weight", "bneck.0.conv1.weight"} <= keys


def read(tensors: Dict[str, Tensor], extras: Dict[str, Any]) -> Tuple[Dict[str, Tensor], Facts]:
    """The tensors, which keep their names, and what to build for them.

    Raises:
        ValueError: it is none of the graphs that are known.
    """
    year = next((year for year, end in YEARS if any(name.endswith(end) for name in tensors)), None)
    arch = f"{year}_mobilenetv3_{'large' if _blocks(tensors) == 15 else 'small'}"
    if arch not in XIAOLAI:
        raise ValueError(
            "its names are xiaolai's, its squeeze-excites those of none of the graphs of 2019 and "
            "2023"
        )
    options = {"bn_eps": 1e-5, "bn_momentum": 0.1}
    return dict(tensors), Facts(arch, options, _preparation(year, dict_of(extras.get("args"))))


def _preparation(year: str, args: Dict[str, Any]) -> Dict[str, Any]:
    """2023 by the author's data sets; of 2019 no more than the network is published."""
    if year != "xiaolai2023":
        return preparation()
    prepare = preparation("bicubic")
    take(prepare, {"crop_pct": args.get("crop_pct"), "img_size": args.get("input_size")})
    if args.get("imagenet_default_mean_and_std") is False:
        prepare.update(mean=[0.5] * 3, std=[0.5] * 3)
    return prepare


def _blocks(tensors: Dict[str, Tensor]) -> int:
    return len({name.split(".")[1] for name in tensors if name.startswith("bneck.")})
