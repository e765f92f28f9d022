"""The networks of xiaolai-sqlai's mobilenetv3: three graphs of their own, large and small.

No rearrangement of weights makes one of them the paper's network, so each has its class here, with
the parameter names of its authors. What sets them apart from the paper (Howard et al. 2019):

* 2019: squeeze-excite stands after the projection, with a batch norm behind each of its two
  convolutions. A block of stride 1 that changes the channels has a 1x1 convolution as its skip.
* 2019old, the first release: as 2019, but its squeeze-excite does not pool: a gate for each pixel.
* 2023: squeeze-excite before the projection as in the paper, though with one batch norm and no
  biases; every block is residual, those of stride 2 through a strided skip; the activation follows
  the sum.
* All three expand in the first block too, put a batch norm between the last two linear layers and
  have 1280 channels there, the small ones as well. Large 2019 strides one block later.
"""
import math
from functools import partial
from typing import Any, Dict, NamedTuple, Optional, Tuple, Type

from torch import Tensor, nn

from .extract import ExtractFeat
from .knobs import DropRate
from .layers import ACTIVATIONS, conv2d
from .tables import HS, NO_SE, RE, SE
from .xiaolai_blocks import Block2019, Block2019Old, Block2023, Row

STEM, HEAD = 16, 1280  # channels

# Trailing comments: side of the row's output for a 224x224 image.
_LARGE = (
    Row(3, 16, 16, NO_SE, RE, 1),  # 112
    Row(3, 64, 24, NO_SE, RE, 2),  # 56
    Row(3, 72, 24, NO_SE, RE, 1),  # 56
    Row(5, 72, 40, SE, RE, 2),  # 28
    Row(5, 120, 40, SE, RE, 1),  # 28
    Row(5, 120, 40, SE, RE, 1),  # 28
    Row(3, 240, 80, NO_SE, HS, 2),  # 14
    Row(3, 200, 80, NO_SE, HS, 1),  # 14
    Row(3, 184, 80, NO_SE, HS, 1),  # 14
    Row(3, 184, 80, NO_SE, HS, 1),  # 14
    Row(3, 480, 112, SE, HS, 1),  # 14
    Row(3, 672, 112, SE, HS, 1),  # 14
)
LARGE_2019 = _LARGE + (
    Row(5, 672, 160, SE, HS, 1),  # 14
    Row(5, 672, 160, SE, HS, 2),  # 7
    Row(5, 960, 160, SE, HS, 1),  # 7
)
LARGE_2023 = _LARGE + (
    Row(5, 672, 160, SE, HS, 2),  # 7
    Row(5, 672, 160, SE, HS, 1),  # 7
    Row(5, 960, 160, SE, HS, 1),  # 7
)
SMALL = (
    Row(3, 16, 16, SE, RE, 2),  # 56
    Row(3, 72, 24, NO_SE, RE, 2),  # 28
    Row(3, 88, 24, NO_SE, RE, 1),  # 28
    Row(5, 96, 40, SE, HS, 2),  # 14
    Row(5, 240, 40, SE, HS, 1),  # 14
    Row(5, 240, 40, SE, HS, 1),  # 14
    Row(5, 120, 48, SE, HS, 1),  # 14
    Row(5, 144, 48, SE, HS, 1),  # 14
    Row(5, 288, 96, SE, HS, 2),  # 7
    Row(5, 576, 96, SE, HS, 1),  # 7
    Row(5, 576, 96, SE, HS, 1),  # 7
)


class Graph(NamedTuple):
    """One network."""

    block: Type[nn.Module]
    rows: Tuple[Row, ...]
    linear3_bias: bool


XIAOLAI: Dict[str, Graph] = {
    "xiaolai2019_mobilenetv3_large": Graph(Block2019, LARGE_2019, linear3_bias=True),
    "xiaolai2019_mobilenetv3_small": Graph(Block2019, SMALL, linear3_bias=True),
    "xiaolai2019old_mobilenetv3_large": Graph(Block2019Old, LARGE_2019, linear3_bias=True),
    "xiaolai2019old_mobilenetv3_small": Graph(Block2019Old, SMALL, linear3_bias=True),
    "xiaolai2023_mobilenetv3_large": Graph(Block2023, LARGE_2023, linear3_bias=False),
    "xiaolai2023_mobilenetv3_small": Graph(Block2023, SMALL, linear3_bias=False),
}


class XiaolaiMobileNetV3(ExtractFeat, DropRate, nn.Module):
    """One of the networks of XIAOLAI, with timm's model interface.

    Attributes as in MobileNet: `num_classes`, `num_features`, `head_hidden_size`, `default_cfg`,
    `pretrained_cfg` and `config`. Any input size will do: the releases of 2019 pool a window of
    7x7, which for 224x224 images is all there is, and here the pooling takes the whole map.
    """

    def __init__(
        self,
        arch: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_rate: float = 0.0,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ):
        """Build the network with random weights.

        Args:
            arch: a key of XIAOLAI.
            num_classes: 0 leaves the classifier out; `forward` then gives (N, 1280).
            in_chans: channels of the input.
            drop_rate: probability of dropout before the classifier. The authors had none in 2019
                and 0.2 in 2023.
            bn_eps, bn_momentum: see MobileNet; the authors left them at these defaults.

        Raises:
            ValueError: for an unknown name or a value out of its range.
        """
        super().__init__()
        if arch not in XIAOLAI:
            raise ValueError(f"arch is {arch!r}, expected one of {', '.join(XIAOLAI)}.")
        self._configure({
            "arch": arch,
            "num_classes": num_classes,
            "in_chans": in_chans,
            "drop_rate": drop_rate,
            "bn_eps": bn_eps,
            "bn_momentum": bn_momentum,
        })
        graph = XIAOLAI[arch]
        norm = partial(nn.BatchNorm2d, eps=bn_eps, momentum=bn_momentum)

        self.conv1 = conv2d(in_chans, STEM, 3, 2)
        self.bn1 = norm(STEM)
        self.act1 = ACTIVATIONS[HS]()
        blocks, in_chs = [], STEM
        for row in graph.rows:
            blocks.append(graph.block(in_chs, row, norm))
            in_chs = row.channels
        self.bneck = nn.Sequential(*blocks)
        self.num_features = graph.rows[-1].expanded  # the last convolution takes over that width
        self.conv2 = conv2d(in_chs, self.num_features, 1)
        self.bn2 = norm(self.num_features)
        self.act2 = ACTIVATIONS[HS]()
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten(1)
        self.linear3 = nn.Linear(self.num_features, HEAD, bias=graph.linear3_bias)
        self.bn3 = nn.BatchNorm1d(HEAD, eps=bn_eps, momentum=bn_momentum)
        self.act3 = ACTIVATIONS[HS]()
        self.head_hidden_size = HEAD
        self.dropout = nn.Dropout(drop_rate)
        self.linear4 = self._classifier()
        self.apply(_init_weights)

    def _configure(self, config: Dict[str, Any]) -> None:
        for option, valid, expected in (
            ("num_classes", lambda v: isinstance(v, int) and v >= 0, "an integer, 0 for none"),
            ("in_chans", lambda v: isinstance(v, int) and v >= 1, "an integer of 1 or more"),
            ("drop_rate", lambda v: 0.0 <= v < 1.0, "at least 0 and under 1"),
            ("bn_eps", lambda v: 0.0 < v < math.inf, "a number above 0"),
            ("bn_momentum", lambda v: 0.0 < v <= 1.0, "above 0 and at most 1"),
        ):
            if not valid(config[option]):
                raise ValueError(f"{option} is {config[option]!r}, expected {expected}.")
        self.config = config
        self.num_classes, self.in_chans = config["num_classes"], config["in_chans"]
        self.default_cfg = self.pretrained_cfg = {
            "architecture": config["arch"],
            "num_classes": config["num_classes"],
            "input_size": (config["in_chans"], 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bicubic",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "conv1",
            "classifier": "linear4",
        }

    def _classifier(self) -> nn.Module:
        return nn.Linear(HEAD, self.num_classes) if self.num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """The last layer; an Identity where num_classes is 0."""
        return self.linear4

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier by a new, random one.

        Raises:
            ValueError: as the constructor; or the pooling is to be another than "avg".
        """
        if global_pool not in (None, "avg"):
            raise ValueError(
                f"global_pool is {global_pool!r}, expected 'avg': the linear layer behind the "
                "pooling takes no map; forward_features gives it."
            )
        self._configure({**self.config, "num_classes": num_classes})
        self.linear4 = self._classifier().apply(_init_weights)
        self.linear4.to(self.conv1.weight)  # its device and type

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / 32, W / 32)."""
        x = self.bneck(self.act1(self.bn1(self.conv1(x))))
        return self.act2(self.bn2(self.conv2(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(N, num_features, H, W) -> (N, num_classes), or with pre_logits (N, 1280)."""
        x = self.linear3(self.flatten(self.global_pool(x)))
        x = self.act3(self.bn3(x))
        return x if pre_logits else self.linear4(self.dropout(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits: (N, in_chans, H, W) -> (N, num_classes)."""
        return self.forward_head(self.forward_features(x))


def _init_weights(module: nn.Module) -> None:
    """The authors' initialisation, of both years."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.001)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
