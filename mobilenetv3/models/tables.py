"""The papers' networks as tables, and the rules that scale their width.

Sources: V3 is Howard et al. 2019, "Searching for MobileNetV3", Tables 1 and 2; V2 is Sandler et al.
2018, "MobileNetV2: Inverted Residuals and Linear Bottlenecks", Table 2. Plain Python, no torch.
"""
from typing import Callable, Dict, NamedTuple, Optional, Tuple

RE, R6, HS = "relu", "relu6", "hard_swish"
SE, NO_SE = True, False


class Row(NamedTuple):
    """One line of a table: `repeat` blocks of one kind, of which only the first has the stride."""

    kind: str  # "ds" depthwise separable, "ir" inverted residual, "cn" convolution
    kernel: int  # of the depthwise convolution; in "cn", of the convolution itself
    stride: int
    expand: float  # channels that the block expands to / channels into it; "cn": out / in
    channels: int  # out of the block, at width 1.0
    se: bool
    act: str
    repeat: int = 1
    skip: bool = True  # a residual, where stride and channels allow one


class WidthRule(NamedTuple):
    """How the channel counts of a table follow the width multiplier."""

    keep_stem_below: float  # widths under this keep the stem of width 1.0
    scale_expanded: bool  # expanded = its 1.0 size x width; else `expand` x the scaled input
    scale_last_input: bool  # last "cn" = `expand` x its scaled input; else its 1.0 size x width
    head: Callable[[int, float], int]  # (head channels at 1.0, width) -> head channels


class Defaults(NamedTuple):
    """What the published weights of a network were made with, unless one is told otherwise."""

    bn_eps: float = 1e-5
    pad_type: str = "symmetric"
    mean: Tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet
    std: Tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_pct: float = 0.875
    img_size: int = 224


class Arch(NamedTuple):
    """A network at width 1.0. The rows of one stage share a parent module, `blocks.<stage>`."""

    stem: int
    stages: Tuple[Tuple[Row, ...], ...]
    head: int  # channels that the classifier sees
    act: str  # of the stem and the head
    rules: Dict[str, WidthRule]
    se_divisor: int = 8  # squeezed channels are a multiple of it
    se_act: Optional[str] = RE  # between the two layers of a squeeze-excite; None: the block's
    se_first: bool = False  # in blocks that expand, squeeze-excite before the activation, not after
    head_bias: bool = True  # of the convolution after pooling
    defaults: Defaults = Defaults()


def make_divisible(channels: float, divisor: int = 8) -> int:
    """Nearest multiple of `divisor`, at least `divisor` and at least 90% of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


def keep(channels: int, width: float) -> int:
    return channels


def scale(channels: int, width: float) -> int:
    return make_divisible(channels * width)


def grow(channels: int, width: float) -> int:
    return make_divisible(channels * max(1.0, width))


# V3's two rules agree at width 1.0 only: Large at 0.75 has 3,993,528 parameters by timm's, which
# mmpretrain shares, and 3,377,576 by torchvision's, which MindCV shares. V2 has a single rule.
WIDTH_RULES = ("timm", "torchvision")
V3_RULES = {
    "timm": WidthRule(0.75, scale_expanded=False, scale_last_input=False, head=keep),
    "torchvision": WidthRule(0.0, scale_expanded=True, scale_last_input=True, head=scale),
}
V2_RULE = WidthRule(0.0, scale_expanded=False, scale_last_input=False, head=grow)
V2_RULES = dict.fromkeys(WIDTH_RULES, V2_RULE)

# Trailing comments: side of the row's output for a 224x224 image, then C1..C5, the maps at strides
# 2, 4, 8, 16 and 32. V3 writes `expand` as the paper's expansion size / the row's input channels.
MOBILENETV3_LARGE = Arch(  # Howard et al. 2019, Table 1
    stem=16,  # 112
    stages=(
        (Row("ds", 3, 1, 16 / 16, 16, NO_SE, RE),),  # 112, C1
        (
            Row("ir", 3, 2, 64 / 16, 24, NO_SE, RE),  # 56
            Row("ir", 3, 1, 72 / 24, 24, NO_SE, RE),  # 56, C2
        ),
        (
            Row("ir", 5, 2, 72 / 24, 40, SE, RE),  # 28
            Row("ir", 5, 1, 120 / 40, 40, SE, RE, repeat=2),  # 28, C3
        ),
        (
            Row("ir", 3, 2, 240 / 40, 80, NO_SE, HS),  # 14
            Row("ir", 3, 1, 200 / 80, 80, NO_SE, HS),  # 14
            Row("ir", 3, 1, 184 / 80, 80, NO_SE, HS, repeat=2),  # 14
        ),
        (
            Row("ir", 3, 1, 480 / 80, 112, SE, HS),  # 14
            Row("ir", 3, 1, 672 / 112, 112, SE, HS),  # 14, C4
        ),
        (
            Row("ir", 5, 2, 672 / 112, 160, SE, HS),  # 7
            Row("ir", 5, 1, 960 / 160, 160, SE, HS, repeat=2),  # 7
        ),
        (Row("cn", 1, 1, 960 / 160, 960, NO_SE, HS),),  # 7, C5
    ),
    head=1280,  # 1
    act=HS,
    rules=V3_RULES,
)
MOBILENETV3_SMALL = Arch(  # Howard et al. 2019, Table 2
    stem=16,  # 112, C1
    stages=(
        (Row("ds", 3, 2, 16 / 16, 16, SE, RE),),  # 56, C2
        (
            Row("ir", 3, 2, 72 / 16, 24, NO_SE, RE),  # 28
            Row("ir", 3, 1, 88 / 24, 24, NO_SE, RE),  # 28, C3
        ),
        (
            Row("ir", 5, 2, 96 / 24, 40, SE, HS),  # 14
            Row("ir", 5, 1, 240 / 40, 40, SE, HS, repeat=2),  # 14
        ),
        (
            Row("ir", 5, 1, 120 / 40, 48, SE, HS),  # 14
            Row("ir", 5, 1, 144 / 48, 48, SE, HS),  # 14, C4
        ),
        (
            Row("ir", 5, 2, 288 / 48, 96, SE, HS),  # 7
            Row("ir", 5, 1, 576 / 96, 96, SE, HS, repeat=2),  # 7
        ),
        (Row("cn", 1, 1, 576 / 96, 576, NO_SE, HS),),  # 7, C5
    ),
    head=1024,  # 1
    act=HS,
    rules=V3_RULES,
)
MOBILENETV2 = Arch(  # Sandler et al. 2018, Table 2
    stem=32,  # 112
    stages=(
        (Row("ds", 3, 1, 1, 16, NO_SE, R6),),  # 112, C1
        (Row("ir", 3, 2, 6, 24, NO_SE, R6, repeat=2),),  # 56, C2
        (Row("ir", 3, 2, 6, 32, NO_SE, R6, repeat=3),),  # 28, C3
        (Row("ir", 3, 2, 6, 64, NO_SE, R6, repeat=4),),  # 14
        (Row("ir", 3, 1, 6, 96, NO_SE, R6, repeat=3),),  # 14, C4
        (Row("ir", 3, 2, 6, 160, NO_SE, R6, repeat=3),),  # 7
        (Row("ir", 3, 1, 6, 320, NO_SE, R6),),  # 7, C5
    ),
    head=1280,  # 7: V2 pools after its head
    act=R6,
    rules=V2_RULES,
)
