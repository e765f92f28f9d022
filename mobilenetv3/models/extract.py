"""Features under the name and in the form that mmpretrain's users know: `model.extract_feat(x)`."""
from typing import Tuple, Union

import torch.nn.functional as F
from torch import Tensor

STAGES = ("backbone", "neck", "pre_logits")


class ExtractFeat:
    """Gives `extract_feat` to a network with timm's `forward_features` and `forward_head`."""

    def backbone_maps(self, x: Tensor) -> Tuple[Tensor, ...]:
        """(N, in_chans, H, W) -> the maps (N, C, h, w) that heads build on: here, the last one."""
        return (self.forward_features(x),)

    def extract_feat(self, x: Tensor, stage: str = "neck") -> Union[Tensor, Tuple[Tensor, ...]]:
        """Features of prepared images (N, in_chans, H, W), with their gradients.

        Args:
            stage: "backbone" for a tuple of maps (N, C, h, w): the last map, or with
                `features_only` one for each of `out_indices`. "neck" for a tuple of the same maps
                pooled to (N, C). "pre_logits" for what the classifier takes, one tensor
                (N, head_hidden_size).

        Raises:
            ValueError: for another stage, or "pre_logits" of a network without a head.
        """
        if stage not in STAGES:
            raise ValueError(f"stage is {stage!r}, expected one of {', '.join(STAGES)}.")
        if stage == "pre_logits" and not hasattr(self, "forward_head"):
            raise ValueError("stage 'pre_logits' needs a head, and features_only leaves it out.")
        maps = self.backbone_maps(x)
        if stage == "backbone":
            return maps
        if stage == "pre_logits":
            return self.forward_head(maps[-1], pre_logits=True)
        return tuple(F.adaptive_avg_pool2d(each, 1).flatten(1) for each in maps)
