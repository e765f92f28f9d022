"""What the tables of the families say, each in the same form."""
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Set, Tuple

from torch import Tensor

from mobilenetv3.models.arch import ARCHS, Plan, plan

Names = Dict[str, str]  # our layer -> theirs

# Tensors of a batch norm, as torch names them.
TORCH_NORM: Names = {
    name: name for name in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
}


class Content(NamedTuple):
    """What a checkpoint holds, out of its wrappers."""

    path: str
    tensors: Dict[str, Tensor]  # by the family's own names
    averaged: Optional[bool]  # of the weights over the training steps; None: the file does not say
    extras: Dict[str, Any]  # what stands beside the weights: arch, args, meta, ...


class Network(NamedTuple):
    """A network that fits the tensors of a file."""

    arch: str  # a key of ARCHS
    width: float
    width_rule: str
    plan: Plan


class Facts(NamedTuple):
    """What the names and shapes of a family's weights do not say."""

    arch: str  # a key of ARCHS: it decides between networks of equal shapes
    options: Dict[str, Any]  # bn_eps, bn_momentum, pad_type
    prepare: Dict[str, Any]  # img_size, mean, std, crop_pct, interpolation
    notes: Tuple[str, ...] = ()
    classes: Optional[List[str]] = None


class Target(NamedTuple):
    """How weights are written for a family."""

    # (config of our model, network) -> what to set there, in words; ValueError: it has none such
    check: Callable[[Dict[str, Any], Network], List[str]]
    # (tensors by the family's names, names of the classes) -> what a .pth file holds
    wrap: Callable[[Dict[str, Tensor], Optional[List[str]]], Any] = lambda tensors, classes: tensors
    linear: Tuple[str, ...] = ("conv_head",)  # V3's 1x1 convolutions that are linear layers there
    # (config of our model, network) -> our names of a norm's tensors: theirs
    norms: Callable[[Dict[str, Any], Network], Names] = lambda config, network: TORCH_NORM
    extensions: Tuple[str, ...] = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors")


class Source(NamedTuple):
    """One family of checkpoints."""

    name: str
    claims: Callable[[Set[str]], bool]  # does a file with these keys come from it?
    archs: Tuple[str, ...]  # keys of ARCHS, the likelier first where shapes are equal
    names: Callable[[Plan], Names]
    facts: Callable[[Content, Network], Facts]
    norms: Callable[[Set[str]], Names]  # a file's keys -> our names of a norm's tensors: theirs
    target: Optional[Target] = None


def torch_norm(keys: Set[str]) -> Names:
    """Norms of a family that is written in torch."""
    return TORCH_NORM


IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def preparation(
    interpolation: str = "bilinear",
    crop_pct: float = 0.875,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    img_size: int = 224,
) -> Dict[str, Any]:
    """How images are prepared; the default is torchvision's: shorter side 256, centre 224."""
    return {"img_size": img_size, "mean": list(mean), "std": list(std), "crop_pct": crop_pct,
            "interpolation": interpolation}


def crop_for(size: int, resize: int) -> float:
    """crop_pct for a centre crop of `size` after the shorter side was resized to `resize` pixels.

    The transform computes int(size / crop_pct): the quotient is kept from falling just short.
    """
    crop_pct = round(size / resize, 4)
    return crop_pct if int(size / crop_pct) == resize else size / (resize + 0.5)


def take(prepare: Dict[str, Any], given: Dict[str, Any]) -> None:
    """Take over what is given of a preparation; what cannot be one is passed over."""
    for key, usable in _USABLE.items():
        if usable(given.get(key)):
            value = given[key]
            prepare[key] = list(value) if isinstance(value, (list, tuple)) else value


MAX_SIDE = 10_000
"""Pixels of the shorter side of a resized image: its square has those of the largest image read."""


def usable(prepare: Dict[str, Any], in_chans: int) -> Tuple[Dict[str, Any], List[str]]:
    """A preparation that images can be given, and notes on what was changed for that.

    Raises:
        ValueError: mean or std are no values of `in_chans` channels.
    """
    found, notes = dict(prepare), []
    for key in ("mean", "std"):
        values = found[key] * 3 if len(found[key]) == 1 else found[key]  # timm: one for all
        if len(values) not in (3, in_chans):
            raise ValueError(f"its images have a {key} of {len(values)} values; expected 1, or one "
                             "for each channel")
        least = 0 if key == "std" else -1e6
        if not all(least < value < 1e6 for value in values):  # nor nan
            raise ValueError(f"its images have the {key} {values}; expected numbers"
                             + " above 0" * (key == "std") + ", of images scaled to 0..1")
        found[key] = values
    if found["img_size"] > MAX_SIDE * found["crop_pct"]:
        notes.append(f"images of {found['img_size']} pixels, cut from larger ones by crop_pct "
                     f"{found['crop_pct']:g}, are more than is read here: 224 of 256 are taken")
        found.update(img_size=224, crop_pct=0.875)
    return found, notes


def is_number(value: Any) -> bool:
    """Whether a value out of a file is a number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(values: Any) -> bool:
    return isinstance(values, (list, tuple)) and len(values) > 0 and all(map(is_number, values))


_USABLE: Dict[str, Callable[[Any], bool]] = {
    "img_size": lambda value: isinstance(value, int) and value > 0,
    "mean": _are_numbers,
    "std": _are_numbers,
    "crop_pct": lambda value: is_number(value) and 0 < value <= 1,
    "interpolation": lambda value: value in ("nearest", "bilinear", "bicubic"),
}


def dict_of(value: Any) -> Dict[str, Any]:
    """A dict out of a file, such as the options of a run (an argparse.Namespace, too); or {}."""
    return dict(value) if isinstance(value, dict) else dict(getattr(value, "__dict__", {}))


def names_of(value: Any) -> Optional[List[str]]:
    """Names of classes out of a file; None where there are none."""
    return list(map(str, value)) if value and isinstance(value, (list, tuple)) else None


def refuse_input(config: Dict[str, Any], package: str) -> None:
    """Raise ValueError where a package's network takes three channels and has a classifier."""
    if config["in_chans"] != 3:
        raise ValueError(
            f"these weights take {config['in_chans']} input channels, and {package}'s network 3"
        )
    refuse_headless(config, package)


def refuse_headless(config: Dict[str, Any], package: str) -> None:
    """Raise ValueError where a package's network always has a classifier."""
    if not config["num_classes"]:
        raise ValueError(f"these weights have no classifier, and {package}'s network has one")


def refuse_padding(config: Dict[str, Any], package: str, allowed: Sequence[str]) -> None:
    """Raise ValueError where a package cannot pad as these weights need."""
    if config["pad_type"] not in allowed:
        raise ValueError(
            f"these weights need pad_type {config['pad_type']}, and {package}'s network pads "
            f"{' or '.join(allowed)} only: its outputs would differ"
        )


def refuse_width_rule(
    config: Dict[str, Any], network: Network, package: str, rule: str
) -> None:
    """Raise ValueError for a width that a package scales by the other rule; V2 has one rule."""
    same = network.plan == plan(ARCHS[network.arch], network.width, rule)
    if not same:
        raise ValueError(
            f"a width of {network.width:g} by {config['width_rule']}'s rule has no "
            f"place in {package}, which scales widths by {rule}'s rule"
        )
