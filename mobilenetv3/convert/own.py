"""Checkpoints of this package: they say themselves what they hold."""
import json
from typing import Any, Dict, List, Optional

from torch import Tensor

from .source import dict_of, preparation, take

FORMAT = 1
METADATA = "mobilenetv3"  # our entry in the metadata of a safetensors file


def claims(state: Any) -> bool:
    """Whether an object that was read is a checkpoint of train.py or of this converter."""
    return (isinstance(state, dict) and isinstance(state.get("state_dict"), dict)
            and isinstance(state.get("model"), dict) and "arch" in state["model"])


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
