"""Checkpoints: written whole or not at all, read without running anything they contain.

A checkpoint is a dict of tensors and plain containers. The names of the files, and the keys
`epoch`, `arch`, `state_dict` and `optimizer`, are the ones users of ModelZoo and timm know.
"""
import collections
import inspect
import os
import pickle
import types
from typing import Any, Dict

import torch

from mobilenetv3.files import PathLike, write_atomically

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"

def save(path: PathLike, state: Dict[str, Any]) -> None:
    """Write a checkpoint atomically."""
    write_atomically(path, lambda file: torch.save(state, file))


class _TensorUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers and refuses every other class by name."""

    ALLOWED = {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch", "Size"): torch.Size,
        ("torch._utils", "_rebuild_tensor_v2"): torch._utils._rebuild_tensor_v2,
        ("torch._utils", "_rebuild_parameter"): torch._utils._rebuild_parameter,
    }

    def find_class(self, module, name):
        if (module, name) in self.ALLOWED:
            return self.ALLOWED[module, name]
        if module == "torch" and name.endswith("Storage") and name.isidentifier():
            return getattr(torch, name)
        raise pickle.UnpicklingError(f"it holds a {module}.{name}")


# What torch.load wants of a "pickle module", for versions without weights_only (before 1.13).
_TENSORS_ONLY = types.SimpleNamespace(
    __name__="tensors_only",
    Unpickler=_TensorUnpickler,
    load=lambda file, **options: _TensorUnpickler(file, **options).load(),
)


def load(path: PathLike) -> Any:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain containers.
    """
    if not os.path.isfile(str(path)):
        raise FileNotFoundError(f"no checkpoint at {path}; expected a file")
    if "weights_only" in inspect.signature(torch.load).parameters:
        options = {"weights_only": True}
    else:
        options = {"pickle_module": _TENSORS_ONLY}
    try:
        return torch.load(str(path), map_location="cpu", **options)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} was refused: a checkpoint may hold tensors and plain containers only, or it "
            f"is damaged ({str(error).splitlines()[0]})"
        ) from error
    except Exception as error:
        # A truncated archive fails in as many ways as there are places to cut it.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({reason}); use an earlier one"
        ) from error


def weights_of(state: Any) -> Dict[str, torch.Tensor]:
    """The weights to evaluate or to start from, out of a checkpoint or a bare state dict.

    The averaged weights where there are any: they are the ones a run with EMA scores.
    """
    for key in ("state_dict_ema", "state_dict"):
        if isinstance(state, dict) and state.get(key):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError("it holds no state_dict, that is, no names with tensors")
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        state = {name[len(prefix):]: value for name, value in state.items()}
    return state


def load_weights(model: torch.nn.Module, state: Any, path: PathLike) -> None:
    """Load weights strictly.

    Raises:
        ValueError: names or shapes differ; lists what is missing, unexpected and of another shape.
    """
    try:
        given = weights_of(state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    wanted = model.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} (the model's is {tuple(wanted[name].shape)})"
            for name in wanted if name in given and given[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for kind, names in problems.items() if names
        )
        raise ValueError(f"the weights in {path} do not fit the model: {told}")
    model.load_state_dict(given)


def check_resumable(state: Any, path: PathLike, model: Dict[str, Any], has_ema: bool) -> None:
    """Refuse to go on from a checkpoint that belongs to another run.

    Args:
        model: the configuration of the model that is to be trained.
        has_ema: whether the run keeps averaged weights.

    Raises:
        ValueError: names what differs, with both values.
    """
    needed = {"epoch", "model", "state_dict", "optimizer", "precision"}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise ValueError(
            f"{path} cannot be resumed: it holds weights but not the state of a run; start from "
            "its weights with --ckpt_path"
        )
    for name, value in model.items():
        saved = state["model"].get(name)
        if saved != value:
            raise ValueError(
                f"{path} cannot be resumed: its model has {name} {saved}, this run's has {value}"
            )
    if has_ema and not state.get("state_dict_ema"):
        raise ValueError(
            f"{path} cannot be resumed with --model-ema: it was saved by a run without it"
        )
