"""Which parameters train, and at which share of the learning rate: freezing, a slower backbone.

    freeze(model, stages=3)                 # the stem and blocks.0, blocks.1, blocks.2
    lr_scales(model, backbone_scale=0.1)    # {"conv_stem.weight": 0.1, ..., "classifier.bias": 1}

The parts of a network, from the image to the logits: the stem (first convolution and norm), the
stages (timm's `blocks.0`, `blocks.1`, ...; xiaolai's networks have none, and there each block of
`bneck` stands for one), the head and, last, the classifier. The backbone is all but the classifier:
all that does not depend on the classes.
"""
import types
from typing import Any, Dict, List, Optional, Tuple

from torch import nn

NEUTRAL = {"freeze_stages": None, "freeze_backbone": False, "backbone_lr_scale": 1.0,
           "layer_decay": None, "filter_bias_and_bn": False}
"""The options that decide how a run's parameters are divided, each as it changes nothing."""


def freeze(model: nn.Module, stages: Optional[int] = None, backbone: bool = False) -> str:
    """Keep parts of a network as they are: weights and BatchNorm's running statistics.

    Frozen parts also stay in eval mode from now on; `model.train()` passes them over.

    Args:
        stages: freeze the stem and so many of the first stages; 0 for the stem alone, None for
            nothing.
        backbone: freeze all but the classifier.

    Returns:
        A line that says what is frozen and how much trains; "" if nothing is frozen.

    Raises:
        ValueError: the network does not have so many stages.
    """
    if stages is None and not backbone:
        return ""
    stem, body, head = _children(model)
    if backbone:
        names, told = [*stem, body, *head], "all but the classifier"
    else:
        parts = [f"{body}.{name}" for name, _ in getattr(model, body).named_children()]
        if stages > len(parts):
            raise ValueError(
                f"--freeze_stages {stages}: {model.config['arch']} has {len(parts)} stages "
                f"({parts[0]} to {parts[-1]}); --freeze_backbone freezes all but the classifier"
            )
        names = [*stem, *parts[:stages]]
        told = f"the stem and {stages} of {len(parts)} stages" if stages else "the stem"
    modules = dict(model.named_modules())
    for name in names:
        modules[name].requires_grad_(False)
    model.frozen = names
    # On the instance: the loop calls train() and knows no options, and any network may be frozen.
    # A bound method, because a deep copy of the model then gets one of its own.
    model.train = types.MethodType(_train, model)
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return (
        f"=> frozen: {told}, with the BatchNorm statistics in it; "
        f"{sum(size for size, trains in sizes if trains):,} of {sum(size for size, _ in sizes):,} "
        "parameters train"
    )


def _train(model: nn.Module, mode: bool = True) -> nn.Module:
    """nn.Module.train for a network whose parts named in `model.frozen` stay in eval mode."""
    type(model).train(model, mode)
    modules = dict(model.named_modules())  # looked up anew: SyncBatchNorm takes BatchNorm's place
    for name in model.frozen:
        modules[name].eval()
    return model


def lr_scales(model: nn.Module, backbone_scale: float = 1.0,
              layer_decay: Optional[float] = None) -> Dict[str, float]:
    """Factors of the learning rate.

    Args:
        backbone_scale: factor of all but the classifier.
        layer_decay: factor from each layer to the one before it; the last has the full rate. The
            layers are timm's: the stem, each block, and what comes after pooling.

    Returns:
        The factor of each parameter that trains, by its name; empty if all have the full rate.
    """
    if backbone_scale == 1.0 and layer_decay in (None, 1.0):
        return {}
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    if layer_decay is None:
        last = model.pretrained_cfg["classifier"] + "."
        return {name: 1.0 if name.startswith(last) else backbone_scale for name in names}
    numbers = layers(model)
    depth = max(numbers.values())
    return {name: layer_decay ** (depth - numbers[name]) for name in names}


def rates_note(backbone_scale: float = 1.0, layer_decay: Optional[float] = None) -> str:
    """What the log says of `lr_scales`; "" where all have the full rate."""
    if layer_decay is not None:
        return f"=> learning rate: x {layer_decay:g} from each layer to the one before it"
    if backbone_scale != 1.0:
        return f"=> learning rate: x {backbone_scale:g} for all but the classifier"
    return ""


def layers(model: nn.Module) -> Dict[str, int]:
    """The number of each parameter's layer, 0 for the stem.

    As timm's `group_parameters` counts them: V2's head convolution, which works on the map, belongs
    to the last block; V3's, which comes after pooling, to the classifier.
    """
    stem, body, head = _children(model)
    on_map = [i for i, name in enumerate(head) if isinstance(getattr(model, name), nn.BatchNorm2d)]
    before_pooling = head[: on_map[-1] + 1] if on_map else []
    blocks: List[Tuple[str, ...]] = []
    numbers = {}
    for name, _ in model.named_parameters():
        child, *inner = name.split(".")
        if child == body:
            in_stage = isinstance(getattr(model, body)[int(inner[0])], nn.Sequential)
            block = tuple(inner[: 2 if in_stage else 1])
            if block not in blocks:
                blocks.append(block)
        is_stem, is_late = child in stem, child != body and child not in before_pooling
        numbers[name] = 0 if is_stem else len(blocks) + is_late
    return numbers


def _children(model: nn.Module) -> Tuple[List[str], str, List[str]]:
    """Names of a network's children with parameters: the stem's, the stages' one, the head's.

    The classifier is none of them.
    """
    names = [name for name, child in model.named_children() if any(True for _ in child.parameters())
             and name != model.pretrained_cfg["classifier"]]
    body = next(name for name in names if isinstance(getattr(model, name), nn.Sequential))
    at = names.index(body)
    return names[:at], body, names[at + 1:]


def check_resumable(path: Any, saved: Dict[str, Any], given: Dict[str, Any]) -> None:
    """Refuse to go on with other parameters in training, or at other shares of the rate.

    Args:
        path: of the checkpoint, for the error.
        saved: the options of the run that wrote it.
        given: the options of the run that is to go on.

    Raises:
        ValueError: names the option that differs, with both values.
    """
    for name, neutral in NEUTRAL.items():
        before, now = saved.get(name, neutral), given[name]
        if before != now:
            raise ValueError(
                f"{path} cannot be resumed with another {name}: its run had {_told(before)}, this "
                f"one has {_told(now)}; a run of its own can start from its weights: --ckpt_path"
            )


def _told(value: Any) -> str:
    return "none" if value is None else str(value).lower()
