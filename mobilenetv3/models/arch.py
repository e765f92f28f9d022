"""The networks of this package as tables, and what a table becomes at a width. No torch.

Those that are not in the papers differ from one that is in a line or two: TensorFlow's minimal
ones, timm's deeper ones and its first V3, mmpretrain's for CIFAR-10, and d-li14's V3.
"""
import math
from typing import List, NamedTuple, Tuple

from .tables import (
    MOBILENETV2,
    MOBILENETV3_LARGE,
    MOBILENETV3_SMALL,
    NO_SE,
    RE,
    WIDTH_RULES,
    Arch,
    Defaults,
    Row,
    WidthRule,
    grow,
    keep,
    make_divisible,
    scale,
)


def _minimal(arch: Arch) -> Arch:
    """TensorFlow's "minimalistic" form: no squeeze-excite, no 5x5, no hard-swish."""
    plain = {"se": NO_SE, "act": RE}
    return arch._replace(
        stages=tuple(
            tuple(row._replace(kernel=min(row.kernel, 3), **plain) for row in rows)
            for rows in arch.stages
        ),
        act=RE,
    )


def _deeper(arch: Arch, depth: float, keep_ends: bool) -> Arch:
    """`depth` times the blocks of each stage, rounded up; `keep_ends` spares the first and last."""
    stages = [_repeat(rows, depth) for rows in arch.stages]
    if keep_ends:
        stages[0], stages[-1] = arch.stages[0], arch.stages[-1]
    return arch._replace(stages=tuple(stages))


def _repeat(rows: Tuple[Row, ...], depth: float) -> Tuple[Row, ...]:
    """Share the blocks of a deeper stage out among its rows, the last row first, as timm does."""
    left = sum(row.repeat for row in rows)
    blocks = math.ceil(left * depth)
    shared = []
    for row in reversed(rows):
        repeat = max(1, round(row.repeat / left * blocks))
        shared.insert(0, row._replace(repeat=repeat))
        left, blocks = left - row.repeat, blocks - repeat
    return tuple(shared)


def _one_rule(rule: WidthRule) -> dict:
    """The rules of a network whose width nobody but its author scales."""
    return dict.fromkeys(WIDTH_RULES, rule)


# Weights converted from TensorFlow; timm's first V3 was trained with the same epsilon.
_TF = Defaults(
    bn_eps=1e-3, pad_type="same", mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"
)
_RW = Defaults(bn_eps=1e-3)
_150D = Defaults(
    mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear", crop_pct=0.95, img_size=256
)
_DLI14 = Defaults(interpolation="bilinear")
# d-li14 narrows every stem and widens the head beyond width 1.0, unlike timm.
_DLI14_RULES = _one_rule(
    WidthRule(0.0, scale_expanded=False, scale_last_input=True, head=grow)
)
_FIXED_STEM_AND_HEAD = _one_rule(
    WidthRule(math.inf, scale_expanded=False, scale_last_input=False, head=keep)
)

ARCHS = {
    "mobilenetv3_large": MOBILENETV3_LARGE,
    "mobilenetv3_small": MOBILENETV3_SMALL,
    "mobilenetv2": MOBILENETV2,
    "mobilenetv3_large_150d": _deeper(MOBILENETV3_LARGE, 1.2, keep_ends=False)._replace(
        rules=_one_rule(MOBILENETV3_LARGE.rules["timm"]), defaults=_150D
    ),
    "mobilenetv3_rw": MOBILENETV3_LARGE._replace(
        stages=((MOBILENETV3_LARGE.stages[0][0]._replace(skip=False),),
                *MOBILENETV3_LARGE.stages[1:]),
        se_divisor=1, se_act=None, head_bias=False, defaults=_RW,
    ),
    # mmpretrain's network for CIFAR-10: the small one with the large one's head.
    "mobilenetv3_small_1280": MOBILENETV3_SMALL._replace(
        head=MOBILENETV3_LARGE.head, rules=_one_rule(MOBILENETV3_SMALL.rules["timm"])
    ),
    "tf_mobilenetv3_large": MOBILENETV3_LARGE._replace(defaults=_TF),
    "tf_mobilenetv3_large_minimal": _minimal(MOBILENETV3_LARGE)._replace(defaults=_TF),
    "tf_mobilenetv3_small": MOBILENETV3_SMALL._replace(defaults=_TF),
    "tf_mobilenetv3_small_minimal": _minimal(MOBILENETV3_SMALL)._replace(defaults=_TF),
    "mobilenetv2_110d": _deeper(MOBILENETV2, 1.2, keep_ends=True)._replace(
        rules=_FIXED_STEM_AND_HEAD
    ),
    "mobilenetv2_120d": _deeper(MOBILENETV2, 1.4, keep_ends=True)._replace(
        rules=_FIXED_STEM_AND_HEAD
    ),
    "dli14_mobilenetv3_large": MOBILENETV3_LARGE._replace(
        rules=_DLI14_RULES, se_first=True, defaults=_DLI14
    ),
    "dli14_mobilenetv3_small": MOBILENETV3_SMALL._replace(
        rules=_DLI14_RULES, se_first=True, defaults=_DLI14
    ),
}


class Block(NamedTuple):
    """One block with its final channel counts; `se_chs` is 0 where there is no squeeze-excite."""

    kind: str
    kernel: int
    stride: int
    in_chs: int
    mid_chs: int
    out_chs: int
    se_chs: int
    act: str
    se_act: str
    se_first: bool  # squeeze-excite before the activation; only where the block expands
    skip: bool  # a residual, where stride and channels allow one
    dilation: int = 1  # of the depthwise convolution


class Plan(NamedTuple):
    """A network at one width: all that is needed to build it."""

    stem: int
    stages: Tuple[Tuple[Block, ...], ...]
    head: int
    act: str
    head_bias: bool = True
    stem_stride: int = 2


def plan(arch: Arch, width: float = 1.0, width_rule: str = "timm") -> Plan:
    """Channel counts of every block of `arch` at a width."""
    rule = arch.rules[width_rule]
    stem = arch.stem if width < rule.keep_stem_below else scale(arch.stem, width)
    stages = []
    base_in, in_chs = arch.stem, stem  # channels into the next block: at width 1.0, at this width
    for rows in arch.stages:
        blocks = []
        for row in rows:
            for index in range(row.repeat):
                mid_chs, out_chs = _channels(row, base_in, in_chs, width, rule)
                blocks.append(
                    Block(
                        kind=row.kind,
                        kernel=row.kernel,
                        stride=row.stride if index == 0 else 1,
                        in_chs=in_chs,
                        mid_chs=mid_chs,
                        out_chs=out_chs,
                        # V3 fixes the ratio (section 5.3)
                        se_chs=make_divisible(mid_chs / 4, arch.se_divisor) if row.se else 0,
                        act=row.act,
                        se_act=arch.se_act or row.act,
                        se_first=arch.se_first,
                        skip=row.skip,
                    )
                )
                base_in, in_chs = row.channels, out_chs
        stages.append(tuple(blocks))
    return Plan(stem, tuple(stages), rule.head(arch.head, width), arch.act, arch.head_bias)


def _channels(
    row: Row, base_in: int, in_chs: int, width: float, rule: WidthRule
) -> Tuple[int, int]:
    """Channels that a block expands to, and those out of it."""
    mid_chs = make_divisible(in_chs * row.expand)
    if rule.scale_expanded:
        mid_chs = scale(round(base_in * row.expand), width)
    out_chs = scale(row.channels, width)
    if row.kind == "cn" and rule.scale_last_input:
        out_chs = make_divisible(in_chs * row.expand)
    return mid_chs, out_chs


OUTPUT_STRIDES = (32, 16, 8)
# Whether the block that gives up its stride is dilated with those after it, as in torchvision, or
# not yet, as in TensorFlow and timm.
DILATION_RULES = ("timm", "torchvision")


def dilate(network: Plan, output_stride: int, dilation_rule: str = "timm") -> Plan:
    """The network with maps no coarser than `output_stride`: dilation in the place of strides.

    The weights stay as they are, and see as much of the image as they did.
    """
    assert output_stride in OUTPUT_STRIDES and dilation_rule in DILATION_RULES
    reduction, dilation, stages = network.stem_stride, 1, []
    for stage in network.stages:
        blocks = []
        for block in stage:
            before = dilation
            if block.stride == 2 and reduction >= output_stride:
                dilation *= 2
                if dilation_rule == "torchvision":
                    # There a block that had a stride gets no residual.
                    block = block._replace(stride=1, dilation=dilation, skip=False)
                else:
                    block = block._replace(stride=1, dilation=before)
            else:
                reduction *= block.stride
                block = block._replace(dilation=dilation)
            blocks.append(block)
        stages.append(tuple(blocks))
    return network._replace(stages=tuple(stages))


class Tap(NamedTuple):
    """Where the feature map of one stride leaves the network."""

    stage: int  # 0 the stem, n the end of `blocks.<n - 1>`
    channels: int
    reduction: int  # input side / map side


def taps(network: Plan, output_stride: int = 32) -> List[Tap]:
    """The last map at each of the strides 2, 4, 8, 16 and 32, in this order (C1..C5).

    With a stem of stride 1 each is half of that.

    Args:
        network: as `plan` gives it, not dilated yet.
        output_stride: what `dilate` gets; maps after it in this list keep its reduction.
    """
    channels, reduction, found = network.stem, network.stem_stride, []
    for stage, blocks in enumerate(network.stages):
        if blocks[0].stride == 2:
            found.append(Tap(stage, channels, min(reduction, output_stride)))
            reduction *= 2
        channels = blocks[-1].out_chs
    return found + [Tap(len(network.stages), channels, min(reduction, output_stride))]
