"""Lite R-ASPP: semantic segmentation with MobileNetV3 (Howard et al. 2019, section 6.4, Figure 10).

    model = create_model("lraspp_mobilenetv3_large", num_classes=21)
    scores = model(images)["out"]  # (N, 21, H, W), one score a class and pixel

The network is torchvision's `lraspp_mobilenet_v3_large`, tensor by tensor and in the same order.
Names that begin with `classifier.` are the same in both. The others are here those of the
MobileNet, behind `backbone.`; in torchvision, those of its MobileNet with `backbone.<i>` for
`features.<i>`. So the weights of a classifier load as the backbone:

    weights = create_model("mobilenetv3_large_100").state_dict()
    model.backbone.load_state_dict({k: weights[k] for k in model.backbone.state_dict()})
"""
from typing import Dict, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .features import MobileNetFeatures
from .knobs import recompute
from .mobilenet import FAMILIES

BACKBONES = {  # name -> family of the backbone
    "lraspp_mobilenetv3_large": "mobilenetv3_large",
    "lraspp_mobilenetv3_small": "mobilenetv3_small",
}
OUTPUT_STRIDE = 16  # of the deepest map; the shallow one has half of it
INTER_CHANNELS = 128  # of the head
BN_EPS = 1e-3  # of torchvision's V3, in the backbone; its head has torch's 1e-5


class LRASPP(nn.Module):
    """A V3 backbone and the Lite R-ASPP head.

    Attributes: `config`, a plain dict from which `create_model(**config)` builds the network again;
    `num_classes`; `default_cfg`, also `pretrained_cfg`, how images are prepared.
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        bn_eps: Optional[float] = None,
        bn_momentum: float = 0.1,
        pad_type: str = "symmetric",
        backbone: str = "mobilenetv3_large",
    ):
        """Build the network with random weights.

        Args:
            num_classes: classes of a pixel, the background included; 21 are those of Pascal VOC.
            bn_eps: of the backbone: None for torchvision's 1e-3; timm's weights need 1e-5.
            backbone: "mobilenetv3_large" or "mobilenetv3_small".
            in_chans, drop_path_rate, bn_momentum, pad_type: of the backbone, see MobileNet.

        Raises:
            ValueError: for a value out of its range.
        """
        super().__init__()
        arch = {family: name for name, family in BACKBONES.items()}.get(backbone)
        if arch is None:
            raise ValueError(
                f"backbone is {backbone!r}, expected one of {', '.join(BACKBONES.values())}."
            )
        network = FAMILIES[backbone](
            num_classes=0,
            in_chans=in_chans,
            drop_path_rate=drop_path_rate,
            bn_eps=BN_EPS if bn_eps is None else bn_eps,
            bn_momentum=bn_momentum,
            pad_type=pad_type,
            output_stride=OUTPUT_STRIDE,
            dilation_rule="torchvision",
        )
        self._configure({
            "arch": arch,
            "num_classes": num_classes,
            "in_chans": in_chans,
            "drop_path_rate": drop_path_rate,
            "bn_eps": network.config["bn_eps"],
            "bn_momentum": bn_momentum,
            "pad_type": pad_type,
        })
        self.backbone = _TwoMaps(network)
        low, high = self.backbone.channels
        self.classifier = LRASPPHead(low, high, num_classes)

    def _configure(self, config: Dict) -> None:
        classes = config["num_classes"]
        if not isinstance(classes, int) or classes < 1:
            raise ValueError(f"num_classes is {classes!r}, expected an integer of 1 or more.")
        self.config = config
        self.num_classes = classes
        self.default_cfg = self.pretrained_cfg = {
            "architecture": config["arch"],
            "num_classes": classes,
            "input_size": (config["in_chans"], 520, 520),
            "pool_size": (33, 33),
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "first_conv": "backbone.conv_stem",
            "classifier": ("classifier.low_classifier", "classifier.high_classifier"),
        }

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last two layers, those with a row for each class, by new, random ones.

        Raises:
            ValueError: as the constructor.
        """
        self._configure({**self.config, "num_classes": num_classes})
        self.classifier.reset(num_classes)

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """(N, in_chans, H, W) -> {"out": (N, num_classes, H, W)}, scores before a softmax."""
        low, high = self.backbone(x)
        scores = self.classifier(low, high)
        return {"out": F.interpolate(scores, x.shape[-2:], mode="bilinear", align_corners=False)}


class LRASPPHead(nn.Module):
    """Scores from two maps: the deep one gated by its own pooled self, the shallow one as it is.

    (N, low, H / 8, W / 8), (N, high, H / 16, W / 16) -> (N, num_classes, H / 8, W / 8).
    """

    def __init__(self, low: int, high: int, num_classes: int):
        super().__init__()
        self.cbr = nn.Sequential(
            nn.Conv2d(high, INTER_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(INTER_CHANNELS),
            nn.ReLU(inplace=True),
        )
        # The paper pools windows of 49x49 with strides of 16 and 20; like torchvision, all at once.
        self.scale = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(high, INTER_CHANNELS, 1, bias=False),
            nn.Sigmoid(),
        )
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(INTER_CHANNELS, num_classes, 1)

    def reset(self, num_classes: int) -> None:
        """New layers for another number of classes, on the device and of the type of the old."""
        old = self.low_classifier.weight
        self.low_classifier = nn.Conv2d(old.shape[1], num_classes, 1).to(old)
        self.high_classifier = nn.Conv2d(INTER_CHANNELS, num_classes, 1).to(old)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        x = self.cbr(high) * self.scale(high)
        x = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)


class _TwoMaps(MobileNetFeatures):
    """The maps that the head takes: (N, in_chans, H, W) -> those at strides 8 and 16.

    The shallow one leaves after the first block of its stage, as in torchvision, the deep one at
    the end; `channels` has the channels of both.
    """

    def __init__(self, network: nn.Module):
        stride_8 = network.feature_info.reduction().index(8)
        super().__init__(network, out_indices=(len(network.feature_info) - 1,))
        self.low_stage = network.feature_info[stride_8 - 1]["stage"]  # the stage after that map
        self.channels: Tuple[int, int] = (
            self.blocks[self.low_stage][0].bn3.num_features,
            self.feature_info[0]["num_chs"],
        )

    def forward(self, x: Tensor) -> Tuple[Tensor, Tensor]:
        x = self.act1(self.bn1(self.conv_stem(x)))
        low = x
        for index, stage in enumerate(self.blocks):
            for position, block in enumerate(stage):
                if not torch.jit.is_scripting() and self.grad_checkpointing:
                    x = recompute(block, x)
                else:
                    x = block(x)
                if index == self.low_stage and position == 0:
                    low = x
        return low, x
