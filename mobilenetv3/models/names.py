"""Model names: timm's, and the ones that users of other packages type. Plain Python, no torch."""
import difflib
import fnmatch
from typing import Dict, List, NamedTuple, Tuple

from .tables import WIDTH_RULES


class Name(NamedTuple):
    """What a model name stands for."""

    canonical: str  # a key of MODELS
    family: str  # a key of ARCHS; the name itself where the graph is no table
    width: float
    width_rule: str


TIMM_MODELS: Dict[str, Tuple[str, float]] = {  # timm's names -> family, width
    "mobilenetv3_large_075": ("mobilenetv3_large", 0.75),
    "mobilenetv3_large_100": ("mobilenetv3_large", 1.0),
    "mobilenetv3_large_150d": ("mobilenetv3_large_150d", 1.5),
    "mobilenetv3_rw": ("mobilenetv3_rw", 1.0),
    "mobilenetv3_small_050": ("mobilenetv3_small", 0.5),
    "mobilenetv3_small_075": ("mobilenetv3_small", 0.75),
    "mobilenetv3_small_100": ("mobilenetv3_small", 1.0),
    "tf_mobilenetv3_large_075": ("tf_mobilenetv3_large", 0.75),
    "tf_mobilenetv3_large_100": ("tf_mobilenetv3_large", 1.0),
    "tf_mobilenetv3_large_minimal_100": ("tf_mobilenetv3_large_minimal", 1.0),
    "tf_mobilenetv3_small_075": ("tf_mobilenetv3_small", 0.75),
    "tf_mobilenetv3_small_100": ("tf_mobilenetv3_small", 1.0),
    "tf_mobilenetv3_small_minimal_100": ("tf_mobilenetv3_small_minimal", 1.0),
    "mobilenetv2_035": ("mobilenetv2", 0.35),
    "mobilenetv2_050": ("mobilenetv2", 0.5),
    "mobilenetv2_075": ("mobilenetv2", 0.75),
    "mobilenetv2_100": ("mobilenetv2", 1.0),
    "mobilenetv2_110d": ("mobilenetv2_110d", 1.1),
    "mobilenetv2_120d": ("mobilenetv2_120d", 1.2),
    "mobilenetv2_140": ("mobilenetv2", 1.4),
}
DLI14_MODELS: Dict[str, Tuple[str, float]] = {  # d-li14's, which calls them mobilenetv3_large, ...
    "dli14_mobilenetv3_large_075": ("dli14_mobilenetv3_large", 0.75),
    "dli14_mobilenetv3_large_100": ("dli14_mobilenetv3_large", 1.0),
    "dli14_mobilenetv3_small_075": ("dli14_mobilenetv3_small", 0.75),
    "dli14_mobilenetv3_small_100": ("dli14_mobilenetv3_small", 1.0),
}
MMPRETRAIN_MODELS: Dict[str, Tuple[str, float]] = {  # its configuration for CIFAR-10
    "mobilenetv3_small_1280": ("mobilenetv3_small_1280", 1.0),
}
# Graphs of their own, at width 1.0 only: xiaolai's networks, and those for segmentation.
XIAOLAI_MODELS = (
    "xiaolai2019_mobilenetv3_large",
    "xiaolai2019_mobilenetv3_small",
    "xiaolai2019old_mobilenetv3_large",
    "xiaolai2019old_mobilenetv3_small",
    "xiaolai2023_mobilenetv3_large",
    "xiaolai2023_mobilenetv3_small",
)
LRASPP_MODELS = ("lraspp_mobilenetv3_large", "lraspp_mobilenetv3_small")
MODELS: Dict[str, Tuple[str, float]] = {
    **TIMM_MODELS,
    **MMPRETRAIN_MODELS,
    **DLI14_MODELS,
    **{name: (name, 1.0) for name in XIAOLAI_MODELS + LRASPP_MODELS},
}

ALIASES: Dict[str, str] = {
    # The families, also the names to give with a width of one's own.
    "mobilenetv3_large": "mobilenetv3_large_100",
    "mobilenetv3_small": "mobilenetv3_small_100",
    "mobilenetv2": "mobilenetv2_100",
    "tf_mobilenetv3_large": "tf_mobilenetv3_large_100",
    "tf_mobilenetv3_large_minimal": "tf_mobilenetv3_large_minimal_100",
    "tf_mobilenetv3_small": "tf_mobilenetv3_small_100",
    "tf_mobilenetv3_small_minimal": "tf_mobilenetv3_small_minimal_100",
    "dli14_mobilenetv3_large": "dli14_mobilenetv3_large_100",
    "dli14_mobilenetv3_small": "dli14_mobilenetv3_small_100",
    # Ascend ModelZoo and torchvision
    "mobilenet": "mobilenetv3_large_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "mobilenet_v3_small": "mobilenetv3_small_100",
    "mobilenet_v2": "mobilenetv2_100",
    "lraspp_mobilenet_v3_large": "lraspp_mobilenetv3_large",
    # MindCV
    "mobilenet_v3_large_100": "mobilenetv3_large_100",
    "mobilenet_v3_small_100": "mobilenetv3_small_100",
    "mobilenet_v2_075": "mobilenetv2_075",
    "mobilenet_v2_100": "mobilenetv2_100",
    "mobilenet_v2_140": "mobilenetv2_140",
    # mmpretrain
    "mobilenet-v3-large": "mobilenetv3_large_100",
    "mobilenet-v3-small": "mobilenetv3_small_100",
    "mobilenet-v3-small-050": "mobilenetv3_small_050",
    "mobilenet-v3-small-075": "mobilenetv3_small_075",
}

# MindCV's networks of width 0.75 follow torchvision's rule, so mobilenet_v3_small_075 is not what
# mmpretrain calls mobilenet-v3-small-075: a dash never stands for an underscore here. MindCV's V3
# also pads depthwise convolutions as TensorFlow does. That is for weights trained so and stays with
# them, as pad_type; a network that starts at random has no use for it.
TORCHVISION_WIDTH_ALIASES: Dict[str, str] = {
    "mobilenet_v3_large_075": "mobilenetv3_large_075",
    "mobilenet_v3_small_075": "mobilenetv3_small_075",
}


def list_models(pattern: str = "*") -> List[str]:
    """Canonical names that match a shell pattern such as "*small*"."""
    return fnmatch.filter(MODELS, pattern)


def aliases_of(name: str) -> List[str]:
    """The other names of the same network."""
    return [alias for alias, canonical in ALIASES.items() if canonical == name]


def near_names(name: str) -> str:
    """The end of an error message about `name`: the names that resemble it, or else all."""
    known = [*MODELS, *ALIASES, *TORCHVISION_WIDTH_ALIASES]
    near = difflib.get_close_matches(name, known, n=4)
    return f"near names: {', '.join(near)}." if near else f"known names: {', '.join(MODELS)}."


def resolve_name(name: str) -> Name:
    """What a canonical name or an alias stands for.

    Raises:
        ValueError: for an unknown name; the message lists the near ones.
    """
    canonical, width_rule = ALIASES.get(name, name), WIDTH_RULES[0]
    if name in TORCHVISION_WIDTH_ALIASES:
        canonical, width_rule = TORCHVISION_WIDTH_ALIASES[name], "torchvision"
    if canonical not in MODELS:
        raise ValueError(f"Unknown model {name!r}; {near_names(name)}")
    family, width = MODELS[canonical]
    return Name(canonical, family, width, width_rule)


def takes_any_width(name: str) -> bool:
    """Whether a name stands for a family, to be given with a width."""
    return name in ALIASES and name == resolve_name(name).family


def canonical_name(name: str) -> str:
    """timm's name for `name`; see `resolve_name` for the width rule that an alias implies."""
    return resolve_name(name).canonical


def name_of(family: str, width: float) -> str:
    """The canonical name of a family at a width, or the family's where that width has no name."""
    return next((name for name, key in MODELS.items() if key == (family, width)), family)
