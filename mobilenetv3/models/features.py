"""A network without its head, giving the maps that detection and segmentation build on.

As the backbone of torchvision's SSDLite (Howard et al. 2019, section 6.3), for torchvision 0.10 and
later, with the maps at strides 16 and 32 and two more of 64 and 128::

    from collections import OrderedDict
    from functools import partial

    from torch import nn
    from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
    from torchvision.models.detection.ssd import SSD
    from torchvision.models.detection.ssdlite import SSDLiteHead

    from mobilenetv3.models import create_model

    class Backbone(nn.Module):
        def __init__(self, name, extra=(512, 256)):
            super().__init__()
            self.body = create_model(name, features_only=True, out_indices=(3, 4))
            self.out_channels = [*self.body.feature_info.channels(), *extra]
            self.extra = nn.ModuleList(
                nn.Sequential(
                    nn.Conv2d(in_chs, out_chs // 2, 1, bias=False),
                    nn.BatchNorm2d(out_chs // 2),
                    nn.ReLU6(),
                    nn.Conv2d(out_chs // 2, out_chs, 3, stride=2, padding=1, bias=False),
                    nn.BatchNorm2d(out_chs),
                    nn.ReLU6(),
                )
                for in_chs, out_chs in zip(self.out_channels[1:], extra)
            )

        def forward(self, x):
            maps = self.body(x)
            for layer in self.extra:
                maps.append(layer(maps[-1]))
            return OrderedDict((str(index), each) for index, each in enumerate(maps))

    backbone = Backbone("mobilenetv3_large_100")
    anchors = DefaultBoxGenerator([[2, 3]] * 4, min_ratio=0.2, max_ratio=0.95)
    head = SSDLiteHead(
        backbone.out_channels, anchors.num_anchors_per_location(), 91, partial(nn.BatchNorm2d)
    )
    detector = SSD(backbone, anchors, (320, 320), 91, head=head)
"""
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn

from .arch import Tap
from .extract import ExtractFeat
from .knobs import GradCheckpointing, recompute


class FeatureInfo(List[Dict[str, Any]]):
    """One dict a map: num_chs, reduction, stage, module; with timm's methods for a whole column."""

    @classmethod
    def from_taps(cls, taps: Sequence[Tap]) -> "FeatureInfo":
        """Describe the maps that leave the network at `taps`."""
        # The stem's map is named by its activation: in timm `bn1` includes it, here it does not.
        return cls(
            {
                "num_chs": tap.channels,
                "reduction": tap.reduction,
                "stage": tap.stage,
                "module": f"blocks.{tap.stage - 1}" if tap.stage else "act1",
            }
            for tap in taps
        )

    def channels(self) -> List[int]:
        """Channels of each map."""
        return [info["num_chs"] for info in self]

    def reduction(self) -> List[int]:
        """Input side / map side, of each map."""
        return [info["reduction"] for info in self]

    def module_name(self) -> List[str]:
        """The module whose output each map is."""
        return [info["module"] for info in self]

    def get_dicts(self, keys: Optional[Sequence[str]] = None) -> List[Dict[str, Any]]:
        """What is known of each map, or of that what the keys name."""
        return [{key: info[key] for key in keys or info} for info in self]


class MobileNetFeatures(ExtractFeat, GradCheckpointing, nn.Module):
    """Feature maps of a network: (N, in_chans, H, W) -> [(N, C_i, H / r_i, W / r_i), ...].

    C_i and r_i are in `feature_info`; a backbone made with an `output_stride` has no r_i beyond it,
    but as many maps. It takes over the layers of `backbone` and leaves out those
    after the last map: DistributedDataParallel refuses layers that get no gradient.

    Args:
        backbone: a MobileNet.
        out_indices: which of the maps at strides 2, 4, 8, 16, 32 to give, as indices 0 to 4, or -5
            to -1 from the end; or as in timm 1.x, a number N for the last N of them.

    Raises:
        ValueError: for indices that are no rising sequence within 0 to 4, or another network.
    """

    def __init__(
        self, backbone: nn.Module, out_indices: Union[int, Sequence[int]] = (0, 1, 2, 3, 4)
    ):
        super().__init__()
        if not isinstance(getattr(backbone, "feature_info", None), FeatureInfo):
            raise ValueError(
                f"backbone is a {type(backbone).__name__}, which does not say where its maps are; "
                "expected a MobileNet, as create_model builds of timm's names."
            )
        indices = _indices(out_indices, len(backbone.feature_info))
        self.config = {**backbone.config, "features_only": True, "out_indices": indices}
        self.feature_info = FeatureInfo(backbone.feature_info[index] for index in indices)
        self.stages: List[int] = [info["stage"] for info in self.feature_info]
        self.conv_stem = backbone.conv_stem
        self.bn1 = backbone.bn1
        self.act1 = backbone.act1
        self.blocks = backbone.blocks[: self.stages[-1]]
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> List[Tensor]:
        x = self.act1(self.bn1(self.conv_stem(x)))
        maps = [x] if 0 in self.stages else []
        for index, stage in enumerate(self.blocks):
            if not torch.jit.is_scripting() and self.grad_checkpointing:
                x = recompute(stage, x)
            else:
                x = stage(x)
            if index + 1 in self.stages:
                maps.append(x)
        return maps

    def backbone_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """As `forward`, for `extract_feat`."""
        return tuple(self(x))


def _indices(out_indices: Union[int, Sequence[int]], count: int) -> List[int]:
    """Which of `count` maps are meant, from 0 on."""
    if isinstance(out_indices, int):
        given = range(count - out_indices, count) if 1 <= out_indices <= count else ()
    else:
        given = [index + count if -count <= index < 0 else index for index in out_indices]
    indices = list(given)
    if not indices or indices != sorted(set(indices) & set(range(count))):
        raise ValueError(
            f"out_indices is {out_indices!r}, expected rising numbers of 0 to {count - 1} (or from "
            f"the end, -{count} to -1), or a number of maps, 1 to {count}."
        )
    return indices
