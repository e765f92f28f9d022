"""Batch norms folded into the convolutions before them, for inference."""
import copy

from torch import nn
from torch.nn.utils import fusion


def fuse_conv_bn(model: nn.Module) -> nn.Module:
    """A copy of a network in eval mode, whose convolutions do the work of their batch norms.

    Its output is the model's up to rounding. It is for inference alone: its parameters are others,
    so that files of weights do not fit it.

    Args:
        model: of this package: in all of its modules a batch norm that is registered right after a
            convolution also comes right after it in `forward`.
    """
    fused = copy.deepcopy(model).eval()
    for module in list(fused.modules()):
        children = list(module.named_children())
        for (conv_name, conv), (norm_name, norm) in zip(children, children[1:]):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(module, conv_name, fusion.fuse_conv_bn_eval(conv, norm))
                setattr(module, norm_name, nn.Identity())
    return fused
