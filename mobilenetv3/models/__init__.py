"""MobileNetV3 and MobileNetV2.

    from mobilenetv3.models import create_model
    model = create_model("mobilenetv3_large_100", num_classes=10)
    backbone = create_model("mobilenetv3_small_100", features_only=True)
    segmenter = create_model("lraspp_mobilenetv3_large", num_classes=21)
"""
import inspect
import warnings
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Sequence, Union

from torch import nn

from .backward import set_fast_backward
from .features import MobileNetFeatures
from .fuse import fuse_conv_bn
from .layers import PAD_TYPES, set_fused_activations
from .lraspp import BACKBONES, LRASPP
from .mobilenet import FAMILIES, MobileNet, MobileNetV2, MobileNetV3_Large, MobileNetV3_Small
from .names import LRASPP_MODELS as SEGMENTERS
from .names import aliases_of, canonical_name, list_models, resolve_name, takes_any_width
from .pretrained import load_timm_weights
from .tables import WIDTH_RULES
from .xiaolai import XIAOLAI, XiaolaiMobileNetV3

__all__ = [
    "LRASPP",
    "MobileNet",
    "MobileNetFeatures",
    "MobileNetV2",
    "MobileNetV3_Large",
    "MobileNetV3_Small",
    "PAD_TYPES",
    "SEGMENTERS",
    "WIDTH_RULES",
    "XiaolaiMobileNetV3",
    "aliases_of",
    "canonical_name",
    "create_model",
    "fuse_conv_bn",
    "list_models",
    "load_published",
    "load_timm_weights",
    "resolve_name",
    "set_fast_backward",
    "set_fused_activations",
]

# Name -> class, for the networks that are not built from a table.
_OWN_GRAPHS: Dict[str, Callable[..., nn.Module]] = {
    **{name: partial(LRASPP, backbone=backbone) for name, backbone in BACKBONES.items()},
    **{name: partial(XiaolaiMobileNetV3, name) for name in XIAOLAI},
}


def create_model(
    arch: str,
    *,
    num_classes: Optional[int] = None,
    in_chans: int = 3,
    width_mult: Optional[float] = None,
    width_rule: Optional[str] = None,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    bn_eps: Optional[float] = None,
    bn_momentum: float = 0.1,
    pad_type: Optional[str] = None,
    output_stride: int = 32,
    dilation_rule: str = "timm",
    stem_stride: int = 2,
    features_only: bool = False,
    out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3, 4),
    pretrained: bool = False,
) -> nn.Module:
    """Build a network by name, with random weights unless others are asked for.

    The parameters are many because each is spelled out, so that a misspelt one is a TypeError.
    `create_model(**model.config)` builds the network of `model` again.

    Args:
        arch: one of `list_models()`, or a name that users of timm, torchvision, MindCV, mmpretrain
            or Ascend ModelZoo know it by.
        num_classes: None for 1000, or for lraspp_* 21. For 0 see MobileNet.
        width_mult: None for the width in the name. Another one needs a name without a width:
            mobilenetv3_large, mobilenetv3_small, mobilenetv2, or tf_ or dli14_ before those of V3.
        width_rule: None for the rule that the name implies: torchvision's for MindCV's names of
            width 0.75, timm's for all others.
        features_only: give the maps at strides 2 to 32 (1 to 16 with stem_stride 1) instead of
            logits, see MobileNetFeatures.
        out_indices: which of these maps.
        pretrained: take timm's weights of the name, see `load_timm_weights`; a warning tells each
            option that they were not trained with.
        bn_eps: None for what the name implies: 1e-3 for tf_*, mobilenetv3_rw and lraspp_*, else
            1e-5.
        pad_type: None for what the name implies: "same" for tf_*, else "symmetric".
        in_chans, global_pool, drop_rate, drop_path_rate, bn_momentum, output_stride,
            dilation_rule, stem_stride: see MobileNet; some are not for LRASPP and
            XiaolaiMobileNetV3.

    Returns:
        A MobileNet, MobileNetFeatures, LRASPP or XiaolaiMobileNetV3, in training mode.

    Raises:
        ValueError: for an unknown name (the near ones are listed), a value out of its range, an
            option that the network does not have, or weights that cannot be had.
    """
    options = dict(locals())
    options = {option: value for option, value in options.items() if value is not None}
    asked = options.pop("pretrained", False)
    model = _build(options.pop("arch"), options)
    for note in load_published(model) if asked else ():
        warnings.warn(note, stacklevel=2)
    return model


def load_published(model: nn.Module) -> List[str]:
    """As `load_timm_weights`, whose errors name options of the commands, for a caller in Python.

    Raises:
        ValueError: as there.
    """
    try:
        return load_timm_weights(model)
    except ValueError as error:
        words = str(error).replace("--pretrained: ", "").replace(
            "a file: --pretrained PATH", "a file of weights to init_model"
        )
        raise ValueError(words) from error


def _build(arch: str, options: Dict[str, Any]) -> nn.Module:
    """A network with random weights; see `create_model`, without what was left open."""
    name, width = resolve_name(arch), options.get("width_mult")
    if width not in (None, name.width) and not takes_any_width(arch):
        instead = f"; for any width name {name.family}" if takes_any_width(name.family) else ""
        raise ValueError(f"{arch} has width {name.width}, not {width}{instead}.")
    if name.canonical in _OWN_GRAPHS:
        return _build_own_graph(name.canonical, options)
    features_only, out_indices = options.pop("features_only"), options.pop("out_indices")
    options.setdefault("width_mult", name.width)
    options.setdefault("width_rule", name.width_rule)
    model = FAMILIES[name.family](family=name.family, **options)
    return MobileNetFeatures(model, out_indices) if features_only else model


def _build_own_graph(name: str, options: Dict[str, Any]) -> nn.Module:
    """A network that has some of the options only; the others must be at their defaults."""
    build = _OWN_GRAPHS[name]
    known = inspect.signature(build).parameters
    defaults = inspect.signature(create_model).parameters
    for option, value in options.items():
        if option not in known and value != defaults[option].default:
            raise ValueError(f"{name} has no option {option}; it was given {value!r}.")
    return build(**{key: options[key] for key in known if key in options})
