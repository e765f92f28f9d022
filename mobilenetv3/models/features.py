"""A network without its head, giving the maps that detection and segmentation build on."""
from typing import Any, Dict, List, Sequence

from torch import Tensor, nn

from .arch import Tap


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


class MobileNetFeatures(nn.Module):
    """Feature maps of a network: (N, in_chans, H, W) -> [(N, C_i, H / r_i, W / r_i), ...].

    C_i and r_i are in `feature_info`. It takes over the layers of `backbone` and leaves out those
    after the last map: DistributedDataParallel refuses layers that get no gradient.

    Args:
        backbone: a MobileNet.
        out_indices: which of the strides 2, 4, 8, 16, 32 to give, as indices 0 to 4.

    Raises:
        ValueError: for indices that are no rising sequence within 0 to 4.
    """

    def __init__(self, backbone: nn.Module, out_indices: Sequence[int] = (0, 1, 2, 3, 4)):
        super().__init__()
        indices = list(out_indices)
        count = len(backbone.feature_info)
        if not indices or indices != sorted(set(indices) & set(range(count))):
            raise ValueError(
                f"out_indices is {indices}, expected rising numbers of 0 to {count - 1}."
            )
        self.config = {**backbone.config, "features_only": True, "out_indices": indices}
        self.feature_info = FeatureInfo(backbone.feature_info[index] for index in indices)
        self.stages: List[int] = [info["stage"] for info in self.feature_info]
        self.conv_stem = backbone.conv_stem
        self.bn1 = backbone.bn1
        self.act1 = backbone.act1
        self.blocks = backbone.blocks[: self.stages[-1]]

    def forward(self, x: Tensor) -> List[Tensor]:
        x = self.act1(self.bn1(self.conv_stem(x)))
        maps = [x] if 0 in self.stages else []
        for index, stage in enumerate(self.blocks):
            x = stage(x)
            if index + 1 in self.stages:
                maps.append(x)
        return maps
