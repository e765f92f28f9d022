"""torchvision's MobileNetV3 and V2, whose names and shapes Ascend ModelZoo's ID1784 and V2 share.

Files: a state dict, or a checkpoint of torchvision's reference training (model, model_ema, args).
"""
import os
from typing import Any, Dict, List, Set

from mobilenetv3.models.arch import Plan

from .layout import Place, is_v2, places, units
from .source import (
    Content,
    Facts,
    Names,
    Network,
    Source,
    Target,
    crop_for,
    dict_of,
    preparation,
    refuse_input,
    refuse_padding,
    refuse_width_rule,
    take,
    torch_norm,
)

ARCHS = ("mobilenetv3_large", "mobilenetv3_small", "mobilenetv2")

# torchvision.models, the default of each class: V2 leaves BatchNorm2d as it is.
NORM = {"mobilenetv3": (1e-3, 0.01), "mobilenetv2": (1e-5, 0.1)}
# Hashes in the names of the published files whose accuracy is stated for a resize to 232, not 256:
# mobilenet_v3_large and mobilenet_v2, both IMAGENET1K_V2.
RESIZE_232 = ("5c1a4163", "7ebf99e0")


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is torchvision's."""
    v3, v2 = "features.1.block.0.0.weight", "features.1.conv.0.0.weight"
    return "features.0.0.weight" in keys and (v3 in keys or v2 in keys)


def names(network: Plan) -> Names:
    """Our layers -> theirs."""
    table = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    for place in places(network):
        table.update(_block_v2(place) if is_v2(network) else _block_v3(place))
    if is_v2(network):
        last = sum(len(stage) for stage in network.stages) + 1
        table.update({"conv_head": f"features.{last}.0", "bn2": f"features.{last}.1"})
        table["classifier"] = "classifier.1"
    else:
        table.update({"conv_head": "classifier.0", "classifier": "classifier.3"})
    return table


def _block_v3(place: Place) -> Names:
    at = f"features.{place.index}" + ("" if place.block.kind == "cn" else ".block")
    table = {}
    for number, unit in enumerate(units(place)):
        inner = at if place.block.kind == "cn" else f"{at}.{number}"
        ends = ("fc1", "fc2") if unit.role == "se" else ("0", "1")
        table.update({layer: f"{inner}.{end}" for layer, end in zip(unit.layers, ends)})
    return table


def _block_v2(place: Place) -> Names:
    at, table = f"features.{place.index}.conv", {}
    for number, unit in enumerate(units(place)):
        # The projection has no activation, and its two layers no module around them.
        ends = (f"{number}.0", f"{number}.1")
        if unit.role == "project":
            ends = (f"{number}", f"{number + 1}")
        table.update({layer: f"{at}.{end}" for layer, end in zip(unit.layers, ends)})
    return table


def facts(content: Content, network: Network) -> Facts:
    """The classes' own batch norm; the preparation from the recipe beside the weights, if any."""
    eps, momentum = NORM["mobilenetv2" if is_v2(network.plan) else "mobilenetv3"]
    args, notes = dict_of(content.extras.get("args")), ()
    size, resize = (args.get(f"val_{step}_size") for step in ("crop", "resize"))
    if not (isinstance(size, int) and isinstance(resize, int) and 0 < size <= resize):
        size, resize = 224, 256
    if any(digest in os.path.basename(content.path) for digest in RESIZE_232):
        resize = 232
        notes = ("the file's name is that of weights published for a resize to 232 pixels",)
    prepare = preparation(crop_pct=crop_for(size, resize), img_size=size)
    take(prepare, {"interpolation": args.get("interpolation")})
    options = {"bn_eps": eps, "bn_momentum": momentum, "pad_type": "symmetric"}
    return Facts(network.arch, options, prepare, notes)


def check(config: Dict[str, Any], network: Network) -> List[str]:
    """What to set in torchvision's class, which takes eps and momentum as a norm_layer."""
    refuse_input(config, "torchvision")
    refuse_padding(config, "torchvision", ("symmetric",))
    refuse_width_rule(config, network, "torchvision", "torchvision")
    name = network.arch.replace("mobilenetv", "mobilenet_v")
    given = []
    if network.width != 1.0:
        given.append(f"width_mult={network.width:g}")
    eps, momentum = NORM["mobilenetv2" if is_v2(network.plan) else "mobilenetv3"]
    if (config["bn_eps"], config["bn_momentum"]) != (eps, momentum):
        given.append(f"norm_layer=partial(nn.BatchNorm2d, eps={config['bn_eps']:g}, "
                     f"momentum={config['bn_momentum']:g})")
    if config["num_classes"] != 1000:
        given.append(f"num_classes={config['num_classes']}")
    return [f"load it into torchvision.models.{name}({', '.join(given)})"]


SOURCE = Source("torchvision", claims, ARCHS, names, facts, torch_norm, Target(check))
