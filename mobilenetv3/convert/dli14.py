"""d-li14's mobilenetv3.pytorch and mobilenetv2.pytorch.

The V3 graph is a variant: in blocks that expand, squeeze-excite comes before the activation. The V2
graph is the paper's.
"""
from typing import Set

from mobilenetv3.models.arch import Plan

from .layout import Place, is_v2, places, units
from .source import Content, Facts, Names, Network, Source, preparation, torch_norm

ARCHS = ("dli14_mobilenetv3_large", "dli14_mobilenetv3_small", "mobilenetv2")

# Number of a unit's first layer in the sequence of a block, with and without an expansion. V3 has a
# place for squeeze-excite in every block, taken or not.
V3_PLACES = {"ir": {"expand": 0, "depthwise": 3, "se": 5, "project": 7},
             "ds": {"depthwise": 0, "se": 3, "project": 4}}
V2_PLACES = {"ir": {"expand": 0, "depthwise": 3, "project": 6},
             "ds": {"depthwise": 0, "project": 3}}


def claims(keys: Set[str]) -> bool:
    """Whether a file with these keys is d-li14's."""
    return {"features.0.0.weight", "features.1.conv.0.weight", "conv.0.weight"} <= keys


def names(network: Plan) -> Names:
    """Our layers -> theirs."""
    table = {"conv_stem": "features.0.0", "bn1": "features.0.1"}
    for place in places(network):
        table.update(_block(place, V2_PLACES if is_v2(network) else V3_PLACES))
    if is_v2(network):
        table.update({"conv_head": "conv.0", "bn2": "conv.1", "classifier": "classifier"})
    else:
        table.update({"conv_head": "classifier.0", "classifier": "classifier.3"})
    return table


def _block(place: Place, numbers: dict) -> Names:
    if place.block.kind == "cn":
        return dict(zip(units(place)[0].layers, ("conv.0", "conv.1")))
    at, table = f"features.{place.index}.conv", {}
    for unit in units(place):
        first = numbers[place.block.kind][unit.role]
        ends = (f"{first}.fc.0", f"{first}.fc.2") if unit.role == "se" else (first, first + 1)
        table.update({layer: f"{at}.{end}" for layer, end in zip(unit.layers, ends)})
    return table


def facts(content: Content, network: Network) -> Facts:
    """The author's defaults are torch's; images as torchvision prepares them."""
    options = {"bn_eps": 1e-5, "bn_momentum": 0.1, "pad_type": "symmetric"}
    return Facts(network.arch, options, preparation())


SOURCE = Source("d-li14", claims, ARCHS, names, facts, torch_norm)
