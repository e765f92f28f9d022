"""MobileNetV3 and MobileNetV2.

    from mobilenetv3.models import create_model
    model = create_model("mobilenetv3_large_100", num_classes=10)
    backbone = create_model("mobilenetv3_small_100", features_only=True)
"""
from typing import Optional, Sequence, Union

from .arch import ARCHS, WIDTH_RULES
from .features import MobileNetFeatures
from .layers import PAD_TYPES, set_fused_activations
from .mobilenet import FAMILIES, MobileNet, MobileNetV2, MobileNetV3_Large, MobileNetV3_Small
from .names import aliases_of, canonical_name, list_models, resolve_name
from .pretrained import load_timm_weights

__all__ = [
    "MobileNet",
    "MobileNetFeatures",
    "MobileNetV2",
    "MobileNetV3_Large",
    "MobileNetV3_Small",
    "PAD_TYPES",
    "WIDTH_RULES",
    "aliases_of",
    "canonical_name",
    "create_model",
    "list_models",
    "load_timm_weights",
    "resolve_name",
    "set_fused_activations",
]


def create_model(
    arch: str,
    *,
    num_classes: int = 1000,
    in_chans: int = 3,
    width_mult: Optional[float] = None,
    width_rule: Optional[str] = None,
    global_pool: str = "avg",
    drop_rate: float = 0.0,
    drop_path_rate: float = 0.0,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
    pad_type: str = "symmetric",
    features_only: bool = False,
    out_indices: Sequence[int] = (0, 1, 2, 3, 4),
) -> Union[MobileNet, MobileNetFeatures]:
    """Build a network by name, with random weights.

    The parameters are many because each is spelled out, so that a misspelt one is a TypeError.

    Args:
        arch: one of `list_models()`, or a name that users of timm, torchvision, MindCV, mmpretrain
            or Ascend ModelZoo know it by.
        width_mult: None for the width in the name. Another one needs a name without a width:
            mobilenetv3_large, mobilenetv3_small or mobilenetv2.
        width_rule: None for the rule that the name implies: torchvision's for MindCV's names of
            width 0.75, timm's for all others.
        features_only: give the maps at strides 2 to 32 instead of logits, see MobileNetFeatures.
        out_indices: which of these maps.
        num_classes, in_chans, global_pool, drop_rate, drop_path_rate: see MobileNet.
        bn_eps, bn_momentum, pad_type: see MobileNet.

    Raises:
        ValueError: for an unknown name (the near ones are listed) or a value out of its range.
    """
    name = resolve_name(arch)
    if width_mult not in (None, name.width) and arch not in ARCHS:
        raise ValueError(
            f"{arch} has width {name.width}, not {width_mult}; for any width name {name.family}."
        )
    model = FAMILIES[name.family](
        num_classes=num_classes,
        in_chans=in_chans,
        width_mult=name.width if width_mult is None else width_mult,
        width_rule=width_rule or name.width_rule,
        global_pool=global_pool,
        drop_rate=drop_rate,
        drop_path_rate=drop_path_rate,
        bn_eps=bn_eps,
        bn_momentum=bn_momentum,
        pad_type=pad_type,
    )
    return MobileNetFeatures(model, out_indices) if features_only else model
