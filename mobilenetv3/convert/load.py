"""Weights into networks."""
from typing import Any, Dict, List, Optional, Tuple

import torch
from torch import Tensor, nn

from mobilenetv3.models import create_model
from mobilenetv3.models.names import resolve_name

from .fit import Difference
from .weights import Weights, width_of

# Options that the shapes do not show and the outputs depend on.
SILENT = ("bn_eps", "pad_type", "stem_stride")


def build(
    weights: Weights, num_classes: Optional[int] = None, in_chans: Optional[int] = None
) -> nn.Module:
    """The network of some weights, with them, in evaluation mode.

    Args:
        weights: as `read` gives them; what is done beyond loading is added to their notes.
        num_classes: another number than the weights' starts a new classifier; 0 leaves it out.
        in_chans: 1 sums the channels of a stem that takes three.

    Raises:
        ValueError: the weights do not fit.
    """
    given = {"num_classes": num_classes, "in_chans": in_chans}
    config = {**weights.config,
              **{name: value for name, value in given.items() if value is not None}}
    try:
        model = create_model(**config)
    except TypeError as error:  # a file of another version of this package
        raise ValueError(f"{weights.path} describes a network that is not known here "
                         f"({error})") from error
    weights.notes.extend(load_into(model, weights))
    return model.eval()


def load_into(model: nn.Module, weights: Weights) -> List[str]:
    """Load weights into a network of this package, strictly.

    A classifier of another size keeps its own values, a stem of one channel takes the sum of three,
    and a network without a head leaves the head's tensors aside. Everything else has to fit.

    Args:
        model: with a `config`, as create_model makes them.

    Returns:
        What was done beyond loading, and where the network computes other than the weights expect,
        a line each.

    Raises:
        ValueError: it is another network; lists what is missing, unexpected and of another shape.
    """
    wanted, given, notes = model.state_dict(), dict(weights.state_dict), []
    for adapt in (_drop_head, _sum_stem, _keep_classifier):
        notes += adapt(model, wanted, given)
    difference = compare(wanted, given)
    graphs = _graph(weights.config), _graph(model.config)
    if difference.size or graphs[0] != graphs[1]:
        told = difference.told() or f"equal names and shapes, but {graphs[0]}'s graph is another"
        raise ValueError(
            f"{weights.path} holds a {_title(weights.config)}, the model is a "
            f"{_title(model.config)}: {told}"
        )
    model.load_state_dict(given)
    for option in SILENT:
        theirs, ours = weights.config.get(option), model.config.get(option)
        if theirs != ours:
            notes.append(f"the weights were trained with {option} {theirs}, the model has {ours}: "
                         "its outputs differ from those of their network")
    return notes


def compare(wanted: Dict[str, Tensor], given: Dict[str, Tensor]) -> Difference:
    """What keeps tensors from being loaded."""
    return Difference(
        [name for name in wanted if name not in given],
        [name for name in given if name not in wanted],
        [f"{name} {tuple(given[name].shape)} (the model's is {tuple(wanted[name].shape)})"
         for name in wanted if name in given and given[name].shape != wanted[name].shape],
    )


def _graph(config: Dict[str, Any]) -> str:
    """What two networks of one graph share: TensorFlow's differ in options only."""
    family = resolve_name(config["arch"]).family
    return family[len("tf_"):] if family.startswith("tf_") else family


def _title(config: Dict[str, Any]) -> str:
    has_width = config.get("width_mult", 1.0) != 1.0
    return config["arch"] + (f" (width {width_of(config)})" if has_width else "")


def _drop_head(model: nn.Module, wanted: Dict[str, Tensor], given: Dict[str, Tensor]) -> List[str]:
    """A network that gives feature maps has none of the layers behind the last map."""
    if not model.config.get("features_only"):
        return []
    behind = [name for name in given if name not in wanted]
    for name in behind:
        del given[name]
    return [f"{len(behind)} tensors of the weights are not needed for the feature maps"]


def _sum_stem(model: nn.Module, wanted: Dict[str, Tensor], given: Dict[str, Tensor]) -> List[str]:
    """Grey images: as if the one channel stood in all three."""
    stem = _first_conv(model) + ".weight"
    if stem not in given or stem not in wanted or wanted[stem].shape[1] == given[stem].shape[1]:
        return []
    if wanted[stem].shape[1] != 1:
        raise ValueError(
            f"the weights' stem takes {given[stem].shape[1]} channels, the model's "
            f"{wanted[stem].shape[1]}; only in_chans 1 can be made from them, by a sum"
        )
    channels = given[stem].shape[1]
    given[stem] = given[stem].sum(dim=1, keepdim=True)
    return [f"the stem's {channels} input channels were summed to one"]


def _keep_classifier(
    model: nn.Module, wanted: Dict[str, Tensor], given: Dict[str, Tensor]
) -> List[str]:
    """The model's own classifier, where the weights have one of another size, or none."""
    names = [f"{layer}.{end}" for layer in _classifiers(model) for end in ("weight", "bias")]
    if all(_shape(wanted, name) == _shape(given, name) for name in names):
        return []
    rows = [shapes[0] if shapes else 0 for shapes in
            (_shape(given, names[0]), _shape(wanted, names[0]))]
    if not rows[1]:
        note = f"the weights' classifier of {rows[0]} classes was left out"
    elif not rows[0]:
        note = f"the weights have no classifier: the model's, of {rows[1]} classes, starts afresh"
    else:
        note = (f"the weights have {rows[0]} classes: the model's classifier, of {rows[1]}, starts "
                "afresh")
    if rows[0] == rows[1]:
        return []  # another width: an error like any other
    for name in names:
        given.pop(name, None)
        if name in wanted:
            given[name] = wanted[name]
    return [note]


def _shape(tensors: Dict[str, Tensor], name: str) -> Optional[torch.Size]:
    return tensors[name].shape if name in tensors else None


def _classifiers(model: nn.Module) -> Tuple[str, ...]:
    layers = getattr(model, "default_cfg", {}).get("classifier", "classifier")
    return layers if isinstance(layers, tuple) else (layers,)


def _first_conv(model: nn.Module) -> str:
    return getattr(model, "default_cfg", {}).get("first_conv", "conv_stem")
