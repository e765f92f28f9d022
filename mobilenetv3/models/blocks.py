"""The three kinds of block that a table's rows name. Module names are timm's."""
from typing import Callable, Dict, Type

from torch import Tensor, nn

from .arch import Block
from .layers import ACTIVATIONS, DropPath, SqueezeExcite, conv2d, depthwise_conv2d

Norm = Callable[[int], nn.Module]  # channels -> a normalisation layer

# Normalisation and activation stay two modules: SyncBatchNorm.convert_sync_batchnorm replaces every
# batch norm with its own class, and an activation inside would be lost without a word.


def _has_skip(block: Block) -> bool:
    return block.skip and block.stride == 1 and block.in_chs == block.out_chs


def _depthwise(block: Block, channels: int, pad_type: str) -> nn.Conv2d:
    return depthwise_conv2d(channels, block.kernel, block.stride, pad_type, block.dilation)


def _squeeze_excite(block: Block, channels: int) -> nn.Module:
    return SqueezeExcite(channels, block.se_chs, block.se_act) if block.se_chs else nn.Identity()


class DepthwiseSeparable(nn.Module):
    """Depthwise convolution, squeeze-excite, linear 1x1 convolution; the block without expansion.

    (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride).
    """

    def __init__(self, block: Block, norm: Norm, pad_type: str, drop_path: float):
        super().__init__()
        self.has_skip = _has_skip(block)
        self.conv_dw = _depthwise(block, block.in_chs, pad_type)
        self.bn1 = norm(block.in_chs)
        self.act1 = ACTIVATIONS[block.act]()
        self.se = _squeeze_excite(block, block.in_chs)
        self.conv_pw = conv2d(block.in_chs, block.out_chs, 1)
        self.bn2 = norm(block.out_chs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.se(self.act1(self.bn1(self.conv_dw(x))))
        x = self.bn2(self.conv_pw(x))
        return self.drop_path(x) + shortcut if self.has_skip else x


class InvertedResidual(nn.Module):
    """1x1 expansion, depthwise convolution, squeeze-excite, linear 1x1 projection.

    (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride). Sandler et al. 2018, section 3.3.
    `se_first` puts squeeze-excite before the depthwise convolution's activation (d-li14's V3).
    """

    def __init__(self, block: Block, norm: Norm, pad_type: str, drop_path: float):
        super().__init__()
        self.has_skip = _has_skip(block)
        self.conv_pw = conv2d(block.in_chs, block.mid_chs, 1)
        self.bn1 = norm(block.mid_chs)
        self.act1 = ACTIVATIONS[block.act]()
        self.conv_dw = _depthwise(block, block.mid_chs, pad_type)
        self.bn2 = norm(block.mid_chs)
        self.act2 = ACTIVATIONS[block.act]()
        self.se = _squeeze_excite(block, block.mid_chs)
        self.se_first = block.se_first
        self.conv_pwl = conv2d(block.mid_chs, block.out_chs, 1)
        self.bn3 = norm(block.out_chs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        x = self.act1(self.bn1(self.conv_pw(x)))
        x = self.bn2(self.conv_dw(x))
        x = self.act2(self.se(x)) if self.se_first else self.se(self.act2(x))
        x = self.bn3(self.conv_pwl(x))
        return self.drop_path(x) + shortcut if self.has_skip else x


class ConvBnAct(nn.Module):
    """Convolution, batch norm, activation: V3's last layer before pooling.

    (N, in_chs, H, W) -> (N, out_chs, H / stride, W / stride).
    """

    def __init__(self, block: Block, norm: Norm, pad_type: str, drop_path: float):
        super().__init__()  # never a residual, so `drop_path` has nothing to drop
        same = pad_type == "same"
        self.conv = conv2d(block.in_chs, block.out_chs, block.kernel, block.stride, same=same)
        self.bn1 = norm(block.out_chs)
        self.act1 = ACTIVATIONS[block.act]()

    def forward(self, x: Tensor) -> Tensor:
        return self.act1(self.bn1(self.conv(x)))


BLOCKS: Dict[str, Type[nn.Module]] = {
    "ds": DepthwiseSeparable,
    "ir": InvertedResidual,
    "cn": ConvBnAct,
}
