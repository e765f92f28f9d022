"""torchvision's LR-ASPP: the backbone by torchvision's names without "features", and its head."""
from typing import Any, Dict, List, Set, Tuple

from torch import Tensor

from mobilenetv3.models.arch import ARCHS, Plan, plan
from mobilenetv3.models.lraspp import BACKBONES, BN_EPS

from . import torchvision
from .fit import fit
from .source import TORCH_NORM, Facts, Names, Source, preparation, refuse_input, torch_norm
from .translate import to_ours, to_theirs

HEAD = "classifier."  # what its tensors begin with, here and there
BACKBONE = "backbone."


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is an LR-ASPP of torchvision's."""
    return {"backbone.0.0.weight", "classifier.cbr.0.weight"} <= keys


def names(network: Plan) -> Names:
    """Layers of our backbone -> those of torchvision's."""
    return {
        ours: theirs.replace("features.", BACKBONE, 1)
        for ours, theirs in torchvision.names(network).items()
        if theirs.startswith("features.")
    }


SOURCE = Source("torchvision LR-ASPP", claims, tuple(BACKBONES.values()), names,
                torchvision.facts, torch_norm)


def read(tensors: Dict[str, Tensor], extras: Dict[str, Any]) -> Tuple[Dict[str, Tensor], Facts]:
    """The tensors by our names, and what to build for them.

    Raises:
        ValueError: it is no LR-ASPP on a V3 of width 1.0.
    """
    head = {name: value for name, value in tensors.items() if name.startswith(HEAD)}
    backbone = {name: value for name, value in tensors.items() if name not in head}
    network = fit(SOURCE, {name.rpartition(".")[0]: tuple(value.shape)
                           for name, value in backbone.items() if name.endswith(".weight")})
    if network.width != 1.0:
        raise ValueError(f"it is an LR-ASPP on a V3 of width {network.width:g}; known is 1.0")
    ours = to_ours(SOURCE, network, backbone)
    arch = next(name for name, family in BACKBONES.items() if family == network.arch)
    options = {"bn_eps": BN_EPS, "bn_momentum": 0.01, "pad_type": "symmetric"}
    facts = Facts(arch, options, preparation(crop_pct=1.0, img_size=520))
    return {**{BACKBONE + name: value for name, value in ours.items()}, **head}, facts


def check(config: Dict[str, Any]) -> List[str]:
    """Which function of torchvision's takes the weights; it has the large backbone only."""
    if config["arch"] != "lraspp_mobilenetv3_large":
        raise ValueError(f"torchvision has no {config['arch']}, only the large one")
    refuse_input(config, "torchvision")
    if config["bn_eps"] != BN_EPS or config["pad_type"] != "symmetric":
        raise ValueError(
            f"these weights need bn_eps {config['bn_eps']:g} and pad_type {config['pad_type']}, "
            f"and torchvision's LR-ASPP has {BN_EPS:g} and symmetric"
        )
    return ["load it into torchvision.models.segmentation.lraspp_mobilenet_v3_large("
            f"num_classes={config['num_classes']})"]


def write(tensors: Dict[str, Tensor]) -> Dict[str, Tensor]:
    """The tensors of our large one by torchvision's names."""
    table = names(plan(ARCHS["mobilenetv3_large"]))
    backbone = {name[len(BACKBONE):]: value for name, value in tensors.items()
                if name.startswith(BACKBONE)}
    head = {name: value for name, value in tensors.items() if name.startswith(HEAD)}
    return {**to_theirs(table, TORCH_NORM, (), backbone), **head}
