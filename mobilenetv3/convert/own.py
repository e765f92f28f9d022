"""Checkpoints of this package: they say themselves what they hold."""
import json
from typing import Any, Dict, List, Optional, Tuple

from torch import Tensor

from mobilenetv3.models.arch import ARCHS, WIDTH_RULES, plan
from mobilenetv3.models.names import resolve_name

from .fit import OPTIONAL, Difference, compare_shapes
from .layout import shapes
from .source import dict_of, is_number, preparation, take

FORMAT = 1
METADATA = "mobilenetv3"  # our entry in the metadata of a safetensors file


def claims(state: Any) -> bool:
    """Whether an object that was read is a checkpoint of train.py or of this converter."""
    return (isinstance(state, dict) and isinstance(state.get("state_dict"), dict)
            and isinstance(state.get("model"), dict) and "arch" in state["model"])


def check_network(config: Dict[str, Any], found: Dict[str, Tuple[int, ...]]) -> None:
    """Hold what a file says of its network against its tensors.

    That is done before a network is built: a description of a few bytes can ask for any size.

    Args:
        config: arguments of create_model, of a network that is made from a table.
        found: layer -> shape of its weight, as the file has them.

    Raises:
        ValueError: the tensors are those of another network, or not all.
    """
    name = resolve_name(config["arch"])
    given = {key: config[key] for key in ("width_mult", "width_rule")
             if config.get(key) is not None}
    width, rule = given.get("width_mult", name.width), given.get("width_rule", name.width_rule)
    if not is_number(width) or not 0 < width < 1e6 or rule not in WIDTH_RULES:
        raise ValueError(f"its description of the network has {given}")
    network = plan(ARCHS[name.family], width, rule)
    layers = {layer: layer for layer in shapes(network)}
    needed = [layer for layer in layers if layer not in OPTIONAL]
    if config.get("features_only"):  # its layers end with the last map, which may be the stem's
        needed = needed[:1]
    missing = [layer for layer in needed if layer not in found]
    difference = Difference(missing, [], compare_shapes(network, layers, found).reshaped)
    if difference.size:
        raise ValueError(f"it says that it is a {config['arch']} of width {width:g}, and has other "
                         f"tensors: {difference.told()}")


def prepare_of(state: Dict[str, Any]) -> Dict[str, Any]:
    """How the images of the run were prepared; what it left open as train.py leaves it."""
    prepare = preparation()
    take(prepare, dict_of(state.get("config")))
    return prepare


def checkpoint_of(
    tensors: Dict[str, Tensor],
    config: Dict[str, Any],
    prepare: Dict[str, Any],
    classes: Optional[List[str]],
    source: Dict[str, Any],
) -> Dict[str, Any]:
    """The content of a checkpoint, in the form of train.py's but without the state of a run.

    Args:
        config: arguments of create_model.
        source: where the weights come from.
    """
    return {
        "format": FORMAT,
        "arch": config["arch"],
        "model": dict(config),
        "classes": classes,
        "state_dict": tensors,
        "state_dict_ema": None,
        "config": dict(prepare),
        "source": source,
    }


def metadata_of(state: Dict[str, Any]) -> Dict[str, str]:
    """All of a checkpoint but its tensors, as the metadata of a safetensors file."""
    rest = {key: value for key, value in state.items() if not key.startswith("state_dict")}
    return {"format": "pt", METADATA: json.dumps(rest)}


def from_metadata(metadata: Dict[str, str], tensors: Any) -> Optional[Dict[str, Any]]:
    """The checkpoint that `metadata_of` was made from; None for a file of another maker."""
    try:
        rest = json.loads(metadata.get(METADATA, ""))
    except (ValueError, RecursionError):
        return None
    return dict(rest, state_dict=tensors) if isinstance(rest, dict) else None
