"""The blocks of xiaolai-sqlai's networks. Module names are the authors'; see xiaolai.py."""
from typing import NamedTuple

from torch import Tensor, nn

from .blocks import Norm
from .layers import ACTIVATIONS, HardSigmoid, conv2d


class Row(NamedTuple):
    """One block."""

    kernel: int
    expanded: int  # channels of the depthwise convolution
    channels: int  # out of the block
    se: bool
    act: str
    stride: int


class Gate(nn.Module):
    """Squeeze-excite with batch norms: (N, C, H, W) -> (N, C, H, W).

    Args:
        pooled: gate whole channels; else each pixel by itself.
        last_norm: a batch norm behind the second convolution as well.
    """

    def __init__(self, channels: int, reduced: int, norm: Norm, pooled: bool, last_norm: bool):
        super().__init__()
        # The files number these layers: one that is not there moves the numbers behind it.
        pool = [nn.AdaptiveAvgPool2d(1)] if pooled else []
        layers = [conv2d(channels, reduced, 1), norm(reduced), nn.ReLU(inplace=True)]
        layers += [conv2d(reduced, channels, 1)]
        layers += [norm(channels)] if last_norm else []
        self.se = nn.Sequential(*pool, *layers, HardSigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x)


class Block2019(nn.Module):
    """Expansion, depthwise convolution, projection, squeeze-excite; residual where stride is 1.

    (N, in_chs, H, W) -> (N, row.channels, H / stride, W / stride).
    """

    pooled = True

    def __init__(self, in_chs: int, row: Row, norm: Norm):
        super().__init__()
        out_chs, self.has_skip = row.channels, row.stride == 1
        self.se = nn.Identity()
        if row.se:
            self.se = Gate(out_chs, out_chs // 4, norm, self.pooled, last_norm=True)
        self.conv1 = conv2d(in_chs, row.expanded, 1)
        self.bn1 = norm(row.expanded)
        self.act1 = ACTIVATIONS[row.act]()
        self.conv2 = conv2d(row.expanded, row.expanded, row.kernel, row.stride, row.expanded)
        self.bn2 = norm(row.expanded)
        self.act2 = ACTIVATIONS[row.act]()
        self.conv3 = conv2d(row.expanded, out_chs, 1)
        self.bn3 = norm(out_chs)
        self.shortcut = nn.Identity()
        if self.has_skip and in_chs != out_chs:
            self.shortcut = nn.Sequential(conv2d(in_chs, out_chs, 1), norm(out_chs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.se(self.bn3(self.conv3(out)))
        return out + self.shortcut(x) if self.has_skip else out


class Block2019Old(Block2019):
    """Block2019 with a squeeze-excite that does not pool."""

    pooled = False


class Block2023(nn.Module):
    """Expansion, depthwise convolution, squeeze-excite, projection, sum with the skip, activation.

    (N, in_chs, H, W) -> (N, row.channels, H / stride, W / stride).
    """

    def __init__(self, in_chs: int, row: Row, norm: Norm):
        super().__init__()
        self.conv1 = conv2d(in_chs, row.expanded, 1)
        self.bn1 = norm(row.expanded)
        self.act1 = ACTIVATIONS[row.act]()
        self.conv2 = conv2d(row.expanded, row.expanded, row.kernel, row.stride, row.expanded)
        self.bn2 = norm(row.expanded)
        self.act2 = ACTIVATIONS[row.act]()
        self.se = nn.Identity()
        if row.se:
            reduced = max(row.expanded // 4, 8)
            self.se = Gate(row.expanded, reduced, norm, pooled=True, last_norm=False)
        self.conv3 = conv2d(row.expanded, row.channels, 1)
        self.bn3 = norm(row.channels)
        self.skip = _skip_2023(in_chs, row.channels, row.stride, norm)
        self.act3 = ACTIVATIONS[row.act]()

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.se(self.act2(self.bn2(self.conv2(out))))
        return self.act3(self.bn3(self.conv3(out)) + self.skip(x))


def _skip_2023(in_chs: int, out_chs: int, stride: int, norm: Norm) -> nn.Module:
    if stride == 1 and in_chs == out_chs:
        return nn.Identity()
    if stride == 1:
        return nn.Sequential(conv2d(in_chs, out_chs, 1), norm(out_chs))
    layers = [conv2d(in_chs, in_chs, 3, stride, in_chs), norm(in_chs)]
    if in_chs != out_chs:  # the one convolution of a block that has a bias
        layers += [nn.Conv2d(in_chs, out_chs, 1), norm(out_chs)]
    return nn.Sequential(*layers)
