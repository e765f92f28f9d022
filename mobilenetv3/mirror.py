"""Test-time flip: an image and its mirror image, scored as one."""
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Mirrored(nn.Module):
    """A classifier that sees each image twice, as it is and mirrored left to right.

    The two answers are averaged as probabilities, as mmpretrain's AverageClsScoreTTA does. The
    result is their logarithm: softmax gives the mean probabilities back, and cross entropy is that
    of the mean.

    Args:
        model: logits (N, C) from images (N, 3, H, W).
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.config = model, model.config

    def forward(self, images: Tensor) -> Tensor:
        """Log-probabilities (N, C) in float32 from images (N, 3, H, W)."""
        answers = [F.log_softmax(self.model(seen).float(), 1)
                   for seen in (images, images.flip(3))]
        return torch.logsumexp(torch.stack(answers), 0) - math.log(2.0)
