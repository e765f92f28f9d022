"""MindCV's MobileNetV3 and V2: MindSpore checkpoints.

Two generations with equal places and other names of a batch norm's tensors. Of nn.BatchNorm2d:
gamma, beta, moving_mean, moving_variance; there V3 pads its depthwise convolutions as TensorFlow
does. Of mint.nn.BatchNorm2d, in MindCV's later sources: torch's names, and there V3 pads
symmetrically. V2 pads symmetrically in both.
"""
from typing import Any, Dict, List, Set

from mobilenetv3.models.arch import Plan

from .layout import Place, is_v2, places, units
from .source import (
    TORCH_NORM,
    Content,
    Facts,
    Names,
    Network,
    Source,
    Target,
    preparation,
    refuse_headless,
    refuse_padding,
    refuse_width_rule,
)

ARCHS = ("mobilenetv3_large", "mobilenetv3_small", "mobilenetv2")

# In MindSpore's order.
NORM: Names = {"running_mean": "moving_mean", "running_var": "moving_variance", "weight": "gamma",
               "bias": "beta"}

# Names of MindCV's create_model, without those for other sizes of images.
NAMES = {
    name[len("mobilenet_"):len(name) - len("_224") * name.endswith("_224")]: name
    for name in (
        "mobilenet_v3_large_100", "mobilenet_v3_large_075", "mobilenet_v3_small_100",
        "mobilenet_v3_small_075", "mobilenet_v2_140", "mobilenet_v2_130_224", "mobilenet_v2_100",
        "mobilenet_v2_075", "mobilenet_v2_050_224", "mobilenet_v2_035_224",
    )
}


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is MindCV's."""
    return "features.0.weight" in keys and "features.3.layers.0.weight" in keys


def names(network: Plan) -> Names:
    """Our layers -> theirs. Every activation takes a number in their sequences."""
    table = {"conv_stem": "features.0", "bn1": "features.1"}
    for place in places(network):
        table.update(_block(place))
    if is_v2(network):
        last = sum(len(stage) for stage in network.stages) + 3
        table.update({"conv_head": f"features.{last}", "bn2": f"features.{last + 1}"})
        table["classifier"] = "classifier.1"
    else:
        table.update({"conv_head": "classifier.0", "classifier": "classifier.3"})
    return table


def _block(place: Place) -> Names:
    if place.block.kind == "cn":
        at = place.index + 2
        return dict(zip(units(place)[0].layers, (f"features.{at}", f"features.{at + 1}")))
    at, number, table = f"features.{place.index + 2}.layers", 0, {}
    for unit in units(place):
        if unit.role == "se":
            ends = (f"{number}.conv_reduce", f"{number}.conv_expand")
            number += 1
        else:
            ends = (f"{number}", f"{number + 1}")
            number += 3
        table.update({layer: f"{at}.{end}" for layer, end in zip(unit.layers, ends)})
    return table


def norms(keys: Set[str]) -> Names:
    """Our names of a norm's tensors -> those of the generation that the file is of."""
    return TORCH_NORM if "features.1.running_mean" in keys else NORM


def facts(content: Content, network: Network) -> Facts:
    """MindCV's defaults; the generation decides how V3 pads."""
    pad_type, notes = "symmetric", ()
    if not is_v2(network.plan):
        if norms(set(content.tensors)) is NORM:
            pad_type = "same_depthwise"
        else:
            notes = ("its batch norms are mint's: of the MindCV whose V3 pads symmetrically",)
    options = {"bn_eps": 1e-5, "bn_momentum": 0.1, "pad_type": pad_type}
    return Facts(network.arch, options, preparation(), notes)


def check(config: Dict[str, Any], network: Network) -> List[str]:
    """Which MindCV the file is for."""
    refuse_headless(config, "MindCV")
    refuse_padding(config, "MindCV", ("symmetric", "same_depthwise"))
    refuse_width_rule(config, network, "MindCV", "torchvision")
    classes = "" if config["num_classes"] == 1000 else f", num_classes={config['num_classes']}"
    lines = [f"load it into MindCV's {_call(network)}{classes})"]
    if target_norm(config, network) is TORCH_NORM:
        lines.append("for MindCV's sources with mint layers: those of 0.5.0 and earlier have other "
                     "names, and pad V3's depthwise convolutions by another rule")
    if config["bn_eps"] != 1e-5:
        lines.append(f"MindCV's batch norms have eps 1e-5, these weights need {config['bn_eps']:g}:"
                     " set it on every BatchNorm2d of the network")
    return lines


def _call(network: Network) -> str:
    """How to build the network there: by a name, or by its class."""
    percent = f"{round(network.width * 100):03d}"
    if is_v2(network.plan):
        name, cls = NAMES.get(f"v2_{percent}"), "MobileNetV2("
    else:
        size = network.arch.rpartition("_")[2]
        name, cls = NAMES.get(f"v3_{size}_{percent}"), f'MobileNetV3(arch="{size}", '
    return f'create_model("{name}"' if name else f"{cls}alpha={network.width:g}"


def target_norm(config: Dict[str, Any], network: Network) -> Names:
    """The generation to write: the one whose V3 pads as these weights need."""
    if is_v2(network.plan) or config["pad_type"] == "same_depthwise":
        return NORM
    return TORCH_NORM


SOURCE = Source("mindcv", claims, ARCHS, names, facts, norms,
                Target(check, norms=target_norm, extensions=(".ckpt",)))
