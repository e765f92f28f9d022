"""MobileNetV3 and MobileNetV2, with timm's parameter names and model interface."""
import math
from functools import partial
from typing import Any, Dict, Optional, Type

from torch import Tensor, nn

from .arch import ARCHS, DILATION_RULES, OUTPUT_STRIDES, Plan, dilate, plan, taps
from .blocks import BLOCKS, Norm
from .extract import ExtractFeat
from .features import FeatureInfo
from .knobs import DropRate, GradCheckpointing
from .layers import ACTIVATIONS, PAD_TYPES, GlobalAvgPool, PooledConv2d, conv2d
from .names import name_of
from .tables import WIDTH_RULES

STEM_STRIDES = (2, 1)
GLOBAL_POOLS = ("avg", "")  # timm's words; "" leaves the map as it is

# option -> (what a value must satisfy, the same in words)
_VALID = {
    "num_classes": (lambda v: isinstance(v, int) and v >= 0, "an integer, 0 for no classifier"),
    "in_chans": (lambda v: isinstance(v, int) and v >= 1, "an integer of 1 or more"),
    "width_mult": (lambda v: 0.0 < v < math.inf, "a number above 0"),
    "width_rule": (lambda v: v in WIDTH_RULES, f"one of {', '.join(WIDTH_RULES)}"),
    "global_pool": (lambda v: v in GLOBAL_POOLS, "'avg', or '' for none"),
    "drop_rate": (lambda v: 0.0 <= v < 1.0, "at least 0 and under 1"),
    "drop_path_rate": (lambda v: 0.0 <= v < 1.0, "at least 0 and under 1"),
    "bn_eps": (lambda v: 0.0 < v < math.inf, "a number above 0"),
    "bn_momentum": (lambda v: 0.0 < v <= 1.0, "above 0 and at most 1"),
    "pad_type": (lambda v: v in PAD_TYPES, f"one of {', '.join(PAD_TYPES)}"),
    "output_stride": (lambda v: v in OUTPUT_STRIDES, "32, 16 or 8"),
    "dilation_rule": (lambda v: v in DILATION_RULES, f"one of {', '.join(DILATION_RULES)}"),
    "stem_stride": (lambda v: v in STEM_STRIDES, "2, or 1 for small images"),
}


class MobileNet(ExtractFeat, DropRate, GradCheckpointing, nn.Module):
    """What the networks share: stem, blocks, classifier. Use one of the classes at the end.

    Attributes as in timm: `num_classes`; `in_chans`; `drop_rate`, which may be set at any time;
    `num_features`, the channels of `forward_features`; `head_hidden_size`, those of
    `forward_head(pre_logits=True)`; `feature_info`, a dict for each of the strides 2 to 32;
    `default_cfg`, also `pretrained_cfg`, how images are prepared. Besides, `config`, a plain dict:
    `create_model(**config)` builds the same network. Keep it with the weights, which tell neither
    bn_eps nor pad_type.
    """

    family: str  # key of ARCHS

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        width_mult: float = 1.0,
        width_rule: str = "timm",
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        bn_eps: Optional[float] = None,
        bn_momentum: float = 0.1,
        pad_type: Optional[str] = None,
        output_stride: int = 32,
        dilation_rule: str = "timm",
        stem_stride: int = 2,
        family: Optional[str] = None,
    ):
        """Build the network with random weights.

        Args:
            num_classes: 0 leaves the classifier out; `forward` then gives (N, head_hidden_size).
            in_chans: channels of the input.
            width_mult: multiplies the channels of every layer.
            width_rule: "timm" or "torchvision": for V3 two networks, unless width_mult is 1.
            global_pool: "avg", or "" to keep the map (then num_classes must be 0).
            drop_rate: probability of dropout before the classifier.
            drop_path_rate: probability that a sample skips a residual block; block i of n has i / n
                of it.
            bn_eps: added to the variance; 1e-5 in timm, 1e-3 in torchvision's V3. None for the
                family's own: 1e-5, but 1e-3 for TensorFlow's and mobilenetv3_rw.
            bn_momentum: share of the new batch in the running statistics.
            pad_type: "symmetric", or TensorFlow's "same" for all convolutions, or that for the
                depthwise ones only ("same_depthwise", MindCV's V3). None for the family's own:
                "symmetric", but "same" for TensorFlow's.
            output_stride: 32, or 16 or 8 to have dilation in the place of the strides after it.
            dilation_rule: "timm", or "torchvision" to dilate also the blocks that lose a stride.
            stem_stride: 2, or 1 for images as small as CIFAR's 32x32: all maps have twice the side.
            family: a key of FAMILIES for a network that differs from this class's in a detail.

        Raises:
            ValueError: for a value out of its range.
        """
        super().__init__()
        self.family = family or self.family
        if not isinstance(self, FAMILIES.get(self.family, ())):
            raise ValueError(f"family is {family!r}, which is no {type(self).__name__}.")
        arch = ARCHS[self.family]
        self._configure({
            "arch": name_of(self.family, width_mult),
            "num_classes": num_classes,
            "in_chans": in_chans,
            "width_mult": width_mult,
            "width_rule": width_rule,
            "global_pool": global_pool,
            "drop_rate": drop_rate,
            "drop_path_rate": drop_path_rate,
            "bn_eps": arch.defaults.bn_eps if bn_eps is None else bn_eps,
            "bn_momentum": bn_momentum,
            "pad_type": arch.defaults.pad_type if pad_type is None else pad_type,
            "output_stride": output_stride,
            "dilation_rule": dilation_rule,
            "stem_stride": stem_stride,
        })
        pad_type = self.config["pad_type"]
        network = plan(arch, width_mult, width_rule)._replace(stem_stride=stem_stride)
        norm = partial(nn.BatchNorm2d, eps=self.config["bn_eps"], momentum=bn_momentum)
        self.feature_info = FeatureInfo.from_taps(taps(network, output_stride))

        self.grad_checkpointing = False
        network = dilate(network, output_stride, dilation_rule)
        self.conv_stem = conv2d(in_chans, network.stem, 3, stem_stride, same=pad_type == "same")
        self.bn1 = norm(network.stem)
        self.act1 = ACTIVATIONS[network.act]()
        self.blocks = _make_blocks(network, norm, pad_type, drop_path_rate)
        self._make_head(network, norm)
        self.head_hidden_size = network.head
        self.dropout = nn.Dropout(drop_rate)
        self._make_classifier()
        self.apply(_init_weights)

    def _configure(self, config: Dict[str, Any]) -> None:
        for option, (valid, expected) in _VALID.items():
            if not valid(config[option]):
                raise ValueError(f"{option} is {config[option]!r}, expected {expected}.")
        if config["num_classes"] and not config["global_pool"]:
            raise ValueError("global_pool '' leaves nothing to classify: it needs num_classes 0.")
        self.config = config
        self.num_classes, self.in_chans = config["num_classes"], config["in_chans"]
        images = ARCHS[self.family].defaults
        side = images.img_size
        self.default_cfg = self.pretrained_cfg = {
            "architecture": config["arch"],
            "num_classes": config["num_classes"],
            "input_size": (config["in_chans"], side, side),
            "pool_size": (side // min(config["output_stride"], 16 * config["stem_stride"]),) * 2,
            "crop_pct": images.crop_pct,
            "interpolation": images.interpolation,
            "mean": images.mean,
            "std": images.std,
            "first_conv": "conv_stem",
            "classifier": "classifier",
        }

    def _make_head(self, network: Plan, norm: Norm) -> None:
        raise NotImplementedError

    def _make_classifier(self) -> None:
        pooled = self.config["global_pool"] == "avg"
        self.global_pool = GlobalAvgPool() if pooled else nn.Identity()
        self.flatten = nn.Flatten(1) if pooled else nn.Identity()
        self.classifier: nn.Module = nn.Identity()
        if self.num_classes:
            self.classifier = nn.Linear(self.head_hidden_size, self.num_classes)

    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Which parameters belong together, from the stem on: for timm's decay by layers.

        Args:
            coarse: by stages, not by blocks.
        """
        return {"stem": r"^conv_stem|bn1",
                "blocks": r"^blocks\.(\d+)" if coarse else r"^blocks\.(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The last layer; an Identity where num_classes is 0."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier by a new, random one; None keeps the pooling.

        Raises:
            ValueError: as the constructor.
        """
        pool = self.config["global_pool"] if global_pool is None else global_pool
        self._configure({**self.config, "num_classes": num_classes, "global_pool": pool})
        self._make_classifier()
        self.classifier.apply(_init_weights)
        self.classifier.to(self.conv_stem.weight)  # its device and type

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


class MobileNetV3(MobileNet):
    """MobileNetV3 (Howard et al. 2019): pools before the head's convolution, which has no norm."""

    def _make_head(self, network: Plan, norm: Norm) -> None:
        self.num_features = network.stages[-1][-1].out_chs
        self.conv_head = PooledConv2d(self.num_features, network.head, bias=network.head_bias)
        self.act2 = ACTIVATIONS[network.act]()

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / 32, W / 32)."""
        return self.through(self.act1(self.bn1(self.conv_stem(x))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes), or with pre_logits (N, head_hidden_size)."""
        x = self.flatten(self.act2(self.conv_head(self.global_pool(x))))
        return x if pre_logits else self.classifier(self.dropout(x))


class MobileNetV2(MobileNet):
    """MobileNetV2 (Sandler et al. 2018): the head is one more 1x1 convolution before pooling."""

    family = "mobilenetv2"

    def _make_head(self, network: Plan, norm: Norm) -> None:
        self.num_features = network.head
        self.conv_head = conv2d(network.stages[-1][-1].out_chs, network.head, 1)
        self.bn2 = norm(network.head)
        self.act2 = ACTIVATIONS[network.act]()

    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """As MobileNet's; the head's convolution is a layer behind all blocks."""
        groups = super().group_matcher(coarse)
        last = (r"conv_head|bn2", (99999,))
        return {**groups, "blocks": [(groups["blocks"], None), last]}

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / 32, W / 32)."""
        x = self.through(self.act1(self.bn1(self.conv_stem(x))))
        return self.act2(self.bn2(self.conv_head(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes), or with pre_logits (N, head_hidden_size)."""
        x = self.flatten(self.global_pool(x))
        return x if pre_logits else self.classifier(self.dropout(x))


class MobileNetV3_Large(MobileNetV3):  # noqa: N801 (the name its users import)
    """MobileNetV3-Large, 5.48 M parameters at width 1.0. Arguments: see MobileNet."""

    family = "mobilenetv3_large"


class MobileNetV3_Small(MobileNetV3):  # noqa: N801
    """MobileNetV3-Small, 2.54 M parameters at width 1.0. Arguments: see MobileNet."""

    family = "mobilenetv3_small"


FAMILIES: Dict[str, Type[MobileNet]] = {  # a key of ARCHS -> the class that builds it
    "mobilenetv3_large": MobileNetV3_Large,
    "mobilenetv3_large_150d": MobileNetV3_Large,
    "mobilenetv3_rw": MobileNetV3_Large,
    "tf_mobilenetv3_large": MobileNetV3_Large,
    "tf_mobilenetv3_large_minimal": MobileNetV3_Large,
    "dli14_mobilenetv3_large": MobileNetV3_Large,
    "mobilenetv3_small": MobileNetV3_Small,
    "mobilenetv3_small_1280": MobileNetV3_Small,
    "tf_mobilenetv3_small": MobileNetV3_Small,
    "tf_mobilenetv3_small_minimal": MobileNetV3_Small,
    "dli14_mobilenetv3_small": MobileNetV3_Small,
    "mobilenetv2": MobileNetV2,
    "mobilenetv2_110d": MobileNetV2,
    "mobilenetv2_120d": MobileNetV2,
}


def _make_blocks(network: Plan, norm: Norm, pad_type: str, drop_path_rate: float) -> nn.Sequential:
    count = sum(len(stage) for stage in network.stages)
    built = 0
    stages = []
    for stage in network.stages:
        blocks = []
        for block in stage:
            rate = drop_path_rate * built / count
            blocks.append(BLOCKS[block.kind](block, norm, pad_type, rate))
            built += 1
        stages.append(nn.Sequential(*blocks))
    return nn.Sequential(*stages)


def _init_weights(module: nn.Module) -> None:
    """TensorFlow's initialisation of this family, as in timm: variance by the number of outputs."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = 1.0 / math.sqrt(module.out_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
