"""Writing weights: our own form, or a family's naming."""
import os
from typing import Any, Dict, List, Optional, Tuple

from torch import Tensor

from mobilenetv3 import checkpoint
from mobilenetv3.files import PathLike
from mobilenetv3.models.arch import ARCHS, plan
from mobilenetv3.models.names import resolve_name

from . import lraspp, own
from .layout import is_v2
from .load import build
from .source import Network, Source
from .translate import to_theirs
from .weights import SOURCES, Weights

TARGETS: Dict[str, Source] = {source.name: source for source in SOURCES if source.target}
OURS = (".pth", ".pth.tar", ".pt", ".safetensors")


def save(weights: Weights, dst: PathLike, to: Optional[str] = None) -> List[str]:
    """Write weights to a file, whole or not at all; an existing file is replaced.

    Args:
        dst: the extension chooses the format: .pth, .pth.tar and .pt of torch.save, .safetensors,
            and .ckpt of MindSpore, which is for "mindcv" only.
        to: None for a checkpoint of this package, which keeps all that is known; or the family by
            whose names to write: timm, torchvision, mmpretrain or mindcv.

    Returns:
        What to set there so that the weights give the same outputs, a line each.

    Raises:
        ValueError: the family has no such network, or does not use such files.
    """
    dst = os.fspath(dst)
    if to is None and dst.endswith(".ckpt"):
        raise ValueError(f"{dst}: .ckpt is MindSpore's format; add --to mindcv for MindCV's names")
    if to is None:
        return _save_own(weights, dst)
    if to not in TARGETS:
        raise ValueError(f"--to is {to!r}, expected one of {', '.join(TARGETS)}")
    source = TARGETS[to]
    extension = extension_of(dst, source.target.extensions, to)
    try:
        tensors, lines = _by_names(weights, source)
    except ValueError as error:
        raise ValueError(f"{weights.path} cannot be written for {to}: {error}") from error
    if extension == ".ckpt":
        checkpoint.save_mindspore(dst, tensors)
    elif extension == ".safetensors":
        checkpoint.save_safetensors(dst, tensors, {"format": "pt"})
    else:
        checkpoint.save(dst, source.target.wrap(tensors, weights.classes))
    return lines


def _save_own(weights: Weights, dst: str) -> List[str]:
    extension = extension_of(dst, OURS, "this package")
    tensors, config = _checked(weights)
    source = {"family": weights.family, "file": os.path.basename(weights.path),
              "head": head_of(weights), "notes": list(weights.notes)}
    state = own.checkpoint_of(tensors, config, weights.prepare, weights.classes, source)
    if extension == ".safetensors":
        checkpoint.save_safetensors(dst, tensors, own.metadata_of(state))
    else:
        checkpoint.save(dst, state)
    return []


def _checked(weights: Weights) -> Tuple[Dict[str, Tensor], Dict[str, Any]]:
    """The tensors in the network's order, and its config with every option spelled out.

    Raises:
        ValueError: they do not fit.
    """
    model = build(weights._replace(notes=[]))
    return {name: weights.state_dict[name] for name in model.state_dict()}, model.config


def head_of(weights: Weights) -> List[int]:
    """Channels through the last layers: (into the head, behind it, classes)."""
    for hidden in ("conv_head", "linear3"):
        if f"{hidden}.weight" in weights.state_dict:
            width, channels = weights.state_dict[f"{hidden}.weight"].shape[:2]
            return [channels, width, weights.config["num_classes"]]
    return [weights.config["num_classes"]]


def extension_of(dst: str, known: Tuple[str, ...], user: str) -> str:
    """The one of `known` that a file's name ends with.

    Raises:
        ValueError: none.
    """
    found = next((extension for extension in known if dst.endswith(extension)), None)
    if found is None:
        raise ValueError(f"{dst} does not end with {' or '.join(known)}, the files of {user}")
    return found


def _by_names(weights: Weights, source: Source) -> Tuple[Dict[str, Tensor], List[str]]:
    """The tensors by a family's names, and what to set there."""
    ours, config = _checked(weights)
    if config["arch"].startswith("lraspp_") and source.name == "torchvision":
        lines = lraspp.check(config)
        return lraspp.write(ours), lines
    network = _network(config, source)
    target = source.target
    lines = target.check(config, network)
    linear = () if is_v2(network.plan) else target.linear
    theirs = to_theirs(source.names(network.plan), target.norms(config, network), linear, ours)
    return theirs, lines


def _network(config: Dict[str, Any], source: Source) -> Network:
    """The network as one of the family's.

    Raises:
        ValueError: it is none.
    """
    arch = resolve_name(config["arch"]).family
    plain = arch[len("tf_"):] if arch.startswith("tf_") else arch
    arch = next((name for name in (arch, plain) if name in source.archs), arch)
    if arch not in source.archs:
        raise ValueError(f"no network there has the graph of {config['arch']}")
    if config.get("output_stride", 32) != 32:
        raise ValueError(f"it is dilated to an output stride of {config['output_stride']}")
    if config.get("stem_stride", 2) != 2:
        raise ValueError("its stem has stride 1, which no network there has")
    width, rule = config["width_mult"], config["width_rule"]
    return Network(arch, width, rule, plan(ARCHS[arch], width, rule))
