"""The layers of a network as names: ours, in order, for the tables of the other families."""
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

from mobilenetv3.models.arch import Block, Plan

Shape = Tuple[Optional[int], ...]  # of a weight; None where every size will do


class Unit(NamedTuple):
    """Two layers that every family keeps together."""

    role: str  # "expand", "depthwise" and "project": convolution, norm; "se": its two convolutions
    layers: Tuple[str, str]


class Place(NamedTuple):
    """One block of a network."""

    name: str  # ours, such as "blocks.1.0"
    stage: int
    repeat: int  # within its stage
    index: int  # within the network, from 1
    block: Block


def places(network: Plan) -> Iterator[Place]:
    """Every block, in order."""
    index = 0
    for stage, blocks in enumerate(network.stages):
        for repeat, block in enumerate(blocks):
            index += 1
            yield Place(f"blocks.{stage}.{repeat}", stage, repeat, index, block)


def units(place: Place) -> List[Unit]:
    """The units of a block, in order, with our names."""
    at, block = place.name, place.block
    if block.kind == "cn":
        return [Unit("expand", (f"{at}.conv", f"{at}.bn1"))]
    se = [Unit("se", (f"{at}.se.conv_reduce", f"{at}.se.conv_expand"))] if block.se_chs else []
    if block.kind == "ds":
        depthwise = Unit("depthwise", (f"{at}.conv_dw", f"{at}.bn1"))
        return [depthwise, *se, Unit("project", (f"{at}.conv_pw", f"{at}.bn2"))]
    return [
        Unit("expand", (f"{at}.conv_pw", f"{at}.bn1")),
        Unit("depthwise", (f"{at}.conv_dw", f"{at}.bn2")),
        *se,
        Unit("project", (f"{at}.conv_pwl", f"{at}.bn3")),
    ]


def is_v2(network: Plan) -> bool:
    """Whether the head's convolution has a norm, as V2's; V3 has its last norm in the blocks."""
    return network.stages[-1][-1].kind != "cn"


def is_norm(layer: str) -> bool:
    """Whether one of our names belongs to a batch norm."""
    return layer.rpartition(".")[2].startswith("bn")


def tensors_of(layer: str, network: Plan) -> Tuple[str, ...]:
    """The tensors that a layer has, without a norm's counter of batches."""
    if is_norm(layer):
        return ("weight", "bias", "running_mean", "running_var")
    has_bias = layer == "classifier" or ".se." in layer
    if layer == "conv_head":
        has_bias = network.head_bias and not is_v2(network)
    return ("weight", "bias") if has_bias else ("weight",)


def shapes(network: Plan) -> Dict[str, Shape]:
    """Our layer -> the shape of its weight, without the trailing (1, 1) of a 1x1 convolution."""
    found: Dict[str, Shape] = {"conv_stem": (network.stem, None, 3, 3), "bn1": (network.stem,)}
    for place in places(network):
        block = place.block
        sizes: Dict[str, Tuple[Shape, Shape]] = {
            "expand": ((block.mid_chs, block.in_chs), (block.mid_chs,)),
            "depthwise": ((block.mid_chs, 1) + _window(block.kernel), (block.mid_chs,)),
            "se": ((block.se_chs, block.mid_chs), (block.mid_chs, block.se_chs)),
            "project": ((block.out_chs, block.mid_chs), (block.out_chs,)),
        }
        if block.kind == "cn":
            sizes["expand"] = ((block.out_chs, block.in_chs), (block.out_chs,))
        for unit in units(place):
            found.update(zip(unit.layers, sizes[unit.role]))
    found["conv_head"] = (network.head, network.stages[-1][-1].out_chs)
    if is_v2(network):
        found["bn2"] = (network.head,)
    found["classifier"] = (None, network.head)
    return found


def _window(kernel: int) -> Tuple[int, ...]:
    return (kernel, kernel) if kernel > 1 else ()


def trimmed(shape: Tuple[int, ...]) -> Tuple[int, ...]:
    """A shape as `shapes` has them."""
    return shape[:2] if len(shape) == 4 and shape[2:] == (1, 1) else shape
