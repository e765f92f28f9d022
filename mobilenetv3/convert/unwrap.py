"""From what a file holds to the tensors of one network, out of containers and prefixes."""
from typing import Any, Dict, Optional, Tuple

import torch
from torch import Tensor

from . import own
from .source import Content

# Entries with the weights as they were trained, and those with their average over the steps.
LIVE = ("state_dict", "model", "network", "model_state_dict", "net")
AVERAGED = ("state_dict_ema", "model_ema", "ema")
# What wraps a network puts its name before the network's own: DistributedDataParallel,
# torch.compile, an average, a trainer of one's own.
PREFIXES = ("module.", "_orig_mod.", "model.", "network.", "net.")


def unwrap(state: Any, ema: Optional[bool]) -> Content:
    """The weights in a checkpoint, of the types they were saved in.

    Args:
        state: what `checkpoint.load` gave.
        ema: True for the averaged weights, False for the live ones. None for those that the
            family's own commands take unless they are told: the average from this package's
            checkpoints and from mmengine's, the live ones from all others.

    Raises:
        ValueError: the file holds no weights, or not those that `ema` asks for.
    """
    if not isinstance(state, dict):
        raise ValueError(f"it holds a {type(state).__name__}, expected weights by their names")
    live, averaged = _containers(state)
    if live is None and averaged is None:
        live, averaged = _flat(state)
        extras = {}
    else:
        extras = {key: value for key, value in state.items() if not _is_tensors(value)}
    if not live and not averaged:
        raise ValueError("it holds no weights, that is, no names with tensors")
    if ema and not averaged:
        raise ValueError("it holds no averaged weights (EMA), only those as they were trained")
    if ema is False and not live:
        raise ValueError("it holds averaged weights (EMA) only")
    if ema is None:
        ema = own.claims(state) or "ema_state_dict" in state
    use_average = averaged is not None and ema
    tensors = averaged if use_average or not live else live
    is_average = None if averaged is None else tensors is averaged
    return Content("", tensors, is_average, extras)


def _containers(state: Dict) -> Tuple[Optional[Dict], Optional[Dict]]:
    """The live and the averaged weights, where they are entries of the checkpoint."""
    live = next((state[key] for key in LIVE if _is_tensors(state.get(key))), None)
    averaged = next((state[key] for key in AVERAGED if _is_tensors(state.get(key))), None)
    if _is_tensors(state.get("ema_state_dict")):
        # mmengine swaps the two as it saves: the average is where the weights are looked for.
        live, averaged = state["ema_state_dict"], live
    return (stripped(live) if live else None, stripped(averaged) if averaged else None)


def _is_tensors(value: Any) -> bool:
    """Whether a value is a state dict: names with tensors, at least one."""
    return isinstance(value, dict) and any(torch.is_tensor(item) for item in value.values())


def _flat(state: Dict) -> Tuple[Optional[Dict], Optional[Dict]]:
    """A state dict itself. MindSpore's training checkpoints are flat, too.

    There an optimizer's tensors (moments.NAME) and the averages (ema.NAME) stand beside NAME. With
    accumulated gradients MindCV's trained tensors are called optimizer.NAME, all others NAME.
    """
    tensors = {name: value for name, value in state.items()
               if isinstance(name, str) and torch.is_tensor(value)}
    tensors = {**{name.replace("optimizer.", ""): tensors[name] for name in tensors}, **tensors}
    live = {name: value for name, value in tensors.items()
            if not name.startswith("ema.") and name.partition(".")[2] not in tensors}
    averaged = {name[len("ema."):]: value for name, value in tensors.items()
                if name.startswith("ema.")}
    if averaged:
        # Where only trained tensors are averaged, the statistics of batch norms are the live ones.
        averaged = {**{name: value for name, value in live.items() if ".moving_" in name},
                    **averaged}
    return stripped(live) or None, stripped(averaged) or None


def stripped(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The tensors of a network without the prefixes that all of them share.

    A name without a dot is no layer's: counters (n_averaged, learning_rate), and mmcv's averages
    (ema_backbone_...).
    """
    tensors = {name: value for name, value in tensors.items()
               if torch.is_tensor(value) and "." in name}
    while True:
        prefix = next((prefix for prefix in PREFIXES
                       if tensors and all(name.startswith(prefix) for name in tensors)), None)
        if prefix is None:
            return tensors
        tensors = {name[len(prefix):]: value for name, value in tensors.items()}


def as_float32(tensors: Dict[str, Tensor], size: int) -> Dict[str, Tensor]:
    """The tensors of a file of `size` bytes, floating-point numbers as float32.

    Raises:
        ValueError: many of them share memory, so that copies would take more than the file can.
    """
    cast = [value for value in tensors.values()
            if value.is_floating_point() and value.dtype is not torch.float32]
    if sum(value.numel() * value.element_size() for value in cast) > size:
        raise ValueError("its tensors of half or double precision share memory; save each by "
                         "itself")
    return {name: value.float() if value.is_floating_point() else value
            for name, value in tensors.items()}
