"""The families' networks, written from the published facts and independent of the package.

Each has the module names of its authors, so that its state dict is a file of that family. Small
enough to be read beside the facts; random weights and statistics, in evaluation mode.
"""
import torch
import torch.nn.functional as F
from torch import nn

# Howard et al. 2019, Tables 1 and 2: kernel, expansion size, channels, squeeze-excite, act, stride.
LARGE = [
    (3, 16, 16, 0, "re", 1), (3, 64, 24, 0, "re", 2), (3, 72, 24, 0, "re", 1),
    (5, 72, 40, 1, "re", 2), (5, 120, 40, 1, "re", 1), (5, 120, 40, 1, "re", 1),
    (3, 240, 80, 0, "hs", 2), (3, 200, 80, 0, "hs", 1), (3, 184, 80, 0, "hs", 1),
    (3, 184, 80, 0, "hs", 1), (3, 480, 112, 1, "hs", 1), (3, 672, 112, 1, "hs", 1),
    (5, 672, 160, 1, "hs", 2), (5, 960, 160, 1, "hs", 1), (5, 960, 160, 1, "hs", 1),
]
SMALL = [
    (3, 16, 16, 1, "re", 2), (3, 72, 24, 0, "re", 2), (3, 88, 24, 0, "re", 1),
    (5, 96, 40, 1, "hs", 2), (5, 240, 40, 1, "hs", 1), (5, 240, 40, 1, "hs", 1),
    (5, 120, 48, 1, "hs", 1), (5, 144, 48, 1, "hs", 1), (5, 288, 96, 1, "hs", 2),
    (5, 576, 96, 1, "hs", 1), (5, 576, 96, 1, "hs", 1),
]
# mmpretrain's arch="small_050", as its class lists it: expansion size and channels of each block.
SMALL_050 = [
    row[:1] + sizes + row[3:] for row, sizes in zip(SMALL, [
        (16, 8), (40, 16), (56, 16), (64, 24), (144, 24), (144, 24), (72, 24), (72, 24), (144, 48),
        (288, 48), (288, 48),
    ])
]
# Sandler et al. 2018, Table 2: expansion, channels, blocks, stride of the first.
V2 = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
      (6, 320, 1, 1)]
ACTS = {"re": nn.ReLU, "hs": nn.Hardswish, "r6": nn.ReLU6}


def divisible(value):
    """Multiples of 8, not under 90% of the value."""
    new = max(8, int(value + 4) // 8 * 8)
    return new + 8 if new < 0.9 * value else new


def conv(in_chs, out_chs, kernel=1, stride=1, groups=1):
    return nn.Conv2d(in_chs, out_chs, kernel, stride, kernel // 2, groups=groups, bias=False)


class SameConv(nn.Conv2d):
    """MindSpore's pad_mode="same": the odd pixel of padding goes to the bottom and the right."""

    def forward(self, x):
        pads = []
        for size in (x.shape[3], x.shape[2]):
            steps = -(-size // self.stride[0])
            total = max((steps - 1) * self.stride[0] + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def settled(model, eps=None, in_chans=3):
    """The model in evaluation mode, its statistics near those of what it computes.

    So signals neither fade nor grow through the layers, and whatever is wrong shows in the logits.
    """
    torch.manual_seed(0)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.normal_(norm.bias, 0, 0.2)
        norm.eps, norm.kept, norm.momentum = eps or norm.eps, norm.momentum, 1.0
    with torch.no_grad():
        model.train()(torch.randn(4, in_chans, 64, 64))
    for norm in norms:
        norm.momentum = norm.kept
        norm.running_mean += 0.1 * norm.running_var.sqrt()
        norm.running_var *= torch.empty_like(norm.running_var).uniform_(0.7, 1.3)
        norm.num_batches_tracked.fill_(7)
    return model.eval()


class Residual(nn.Module):
    """Adds what goes in to what the layers under `name` make of it, where the shapes allow."""

    def __init__(self, name, layers, skip):
        super().__init__()
        self.name, self.skip = name, skip
        setattr(self, name, nn.Sequential(*layers))

    def forward(self, x):
        out = getattr(self, self.name)(x)
        return x + out if self.skip else out


class MMConv(nn.Module):
    """mmcv's ConvModule."""

    def __init__(self, in_chs, out_chs, kernel=1, stride=1, groups=1, act=None):
        super().__init__()
        self.conv = conv(in_chs, out_chs, kernel, stride, groups)
        self.bn = nn.BatchNorm2d(out_chs)
        self.activate = ACTS[act]() if act else nn.Identity()

    def forward(self, x):
        return self.activate(self.bn(self.conv(x)))


class MMGate(nn.Module):
    """mmpretrain's SELayer: two convolutions of 1x1, each in a module of its own."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.conv2 = nn.Module(), nn.Module()
        self.conv1.conv = nn.Conv2d(channels, divisible(channels // 4), 1)
        self.conv2.conv = nn.Conv2d(divisible(channels // 4), channels, 1)

    def forward(self, x):
        gate = F.relu(self.conv1.conv(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.conv2.conv(gate))


class MMBlock(nn.Module):
    def __init__(self, in_chs, kernel, mid, out, se, act, stride):
        super().__init__()
        if mid != in_chs:
            self.expand_conv = MMConv(in_chs, mid, act=act)
        self.depthwise_conv = MMConv(mid, mid, kernel, stride, mid, act)
        if se:
            self.se = MMGate(mid)
        self.linear_conv = MMConv(mid, out)
        self.skip = stride == 1 and in_chs == out

    def forward(self, x):
        out = self.expand_conv(x) if hasattr(self, "expand_conv") else x
        out = self.depthwise_conv(out)
        out = self.linear_conv(self.se(out) if hasattr(self, "se") else out)
        return x + out if self.skip else out


class MMPretrain(nn.Module):
    """mmpretrain's classifier of MobileNetV3, or of MobileNetV2 where `rows` is a width."""

    def __init__(self, rows, head=1024, classes=10, eps=1e-3):
        super().__init__()
        self.backbone, self.head = nn.Module(), nn.Module()
        self.is_v2 = isinstance(rows, float)
        if self.is_v2:
            head = self._v2(rows)
            self.head.fc = nn.Linear(head, classes)
        else:
            last = self._v3(rows)
            self.head.layers = nn.ModuleList([nn.Module(), nn.Module()])
            self.head.layers[0].fc = nn.Linear(last, head)
            self.head.layers[1].fc = nn.Linear(head, classes)
        settled(self, 1e-5 if self.is_v2 else eps)

    def _v3(self, rows):
        self.backbone.layer0 = MMConv(3, 16, 3, 2, act="hs")
        in_chs = 16
        for number, row in enumerate(rows):
            setattr(self.backbone, f"layer{number + 1}", MMBlock(in_chs, *row))
            in_chs = row[2]
        last = MMConv(in_chs, rows[-1][1], act="hs")
        setattr(self.backbone, f"layer{len(rows) + 1}", last)
        return rows[-1][1]

    def _v2(self, width):
        in_chs = divisible(32 * width)
        self.backbone.conv1 = MMConv(3, in_chs, 3, 2, act="r6")
        for number, (expand, channels, repeat, stride) in enumerate(V2):
            blocks = []
            for index in range(repeat):
                out, mid = divisible(channels * width), in_chs * expand
                step = stride if index == 0 else 1
                layers = [MMConv(in_chs, mid, act="r6")] if expand != 1 else []
                layers += [MMConv(mid, mid, 3, step, mid, "r6"), MMConv(mid, out)]
                blocks.append(Residual("conv", layers, step == 1 and in_chs == out))
                in_chs = out
            setattr(self.backbone, f"layer{number + 1}", nn.Sequential(*blocks))
        head = int(1280 * max(1.0, width))
        self.backbone.conv2 = MMConv(in_chs, head, act="r6")
        return head

    def forward(self, x):
        for module in self.backbone.children():
            x = module(x)
        x = x.mean((2, 3))
        if self.is_v2:
            return self.head.fc(x)
        return self.head.layers[1].fc(F.hardswish(self.head.layers[0].fc(x)))


class Gate(nn.Module):
    """MindCV's squeeze-excite."""

    def __init__(self, channels):
        super().__init__()
        self.conv_reduce = nn.Conv2d(channels, divisible(channels / 4), 1)
        self.conv_expand = nn.Conv2d(divisible(channels / 4), channels, 1)

    def forward(self, x):
        gate = F.relu(self.conv_reduce(x.mean((2, 3), keepdim=True)))
        return x * F.hardsigmoid(self.conv_expand(gate))


class MindCV(nn.Module):
    """MindCV's MobileNetV3, or MobileNetV2 where `rows` is a width.

    Args:
        same: pad V3's depthwise convolutions as TensorFlow does; its later sources do not.
    """

    def __init__(self, rows, alpha=1.0, head=1024, classes=10, same=True, in_chans=3):
        super().__init__()
        is_v2 = isinstance(rows, float)
        alpha = rows if is_v2 else alpha
        act = ACTS["r6" if is_v2 else "hs"]
        in_chs = divisible((32 if is_v2 else 16) * alpha)
        layers = [conv(in_chans, in_chs, 3, 2), nn.BatchNorm2d(in_chs), act()]
        for kernel, mid, out, se, name, stride in _rows_v2(alpha) if is_v2 else rows:
            if not is_v2:
                mid, out = divisible(alpha * mid), divisible(alpha * out)
            block = [] if mid == in_chs else _cba(conv(in_chs, mid), mid, name)
            kind = SameConv if same and not is_v2 else nn.Conv2d
            depthwise = kind(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False)
            block += _cba(depthwise, mid, name) + ([Gate(mid)] if se else [])
            block += [conv(mid, out), nn.BatchNorm2d(out)]
            layers.append(Residual("layers", block, stride == 1 and in_chs == out))
            in_chs = out
        last = divisible(1280 * max(1.0, alpha)) if is_v2 else in_chs * 6
        layers += [conv(in_chs, last), nn.BatchNorm2d(last), act()]
        self.features = nn.Sequential(*layers)
        if is_v2:
            self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        else:
            head = divisible(alpha * head)
            self.classifier = nn.Sequential(nn.Linear(last, head), nn.Hardswish(), nn.Dropout(0.2),
                                            nn.Linear(head, classes))
        settled(self, 1e-5, in_chans)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))

    def parameters_of_mindspore(self):
        """The state dict by MindSpore's names of a batch norm's tensors, and in its order."""
        names = {"running_mean": "moving_mean", "running_var": "moving_variance",
                 "weight": "gamma", "bias": "beta"}
        found = {}
        for name, module in self.named_modules():
            own = dict(module.named_parameters(recurse=False), **dict(module.named_buffers(
                recurse=False)))
            if isinstance(module, nn.BatchNorm2d):
                own = {theirs: own[ours] for ours, theirs in names.items()}
            found.update({f"{name}.{end}": value.detach().clone() for end, value in own.items()})
        return found


def _cba(layer, channels, act):
    return [layer, nn.BatchNorm2d(channels), ACTS[act]()]


def _rows_v2(width, first=32):
    """V2 in the form of V3's rows."""
    rows, in_chs = [], divisible(first * width)
    for expand, channels, repeat, stride in V2:
        for index in range(repeat):
            out = divisible(channels * width)
            rows.append((3, in_chs * expand, out, 0, "r6", stride if index == 0 else 1))
            in_chs = out
    return rows


class DLi14Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        reduced = divisible(channels // 4)
        self.fc = nn.Sequential(nn.Linear(channels, reduced), nn.ReLU(),
                                nn.Linear(reduced, channels), nn.Hardsigmoid())

    def forward(self, x):
        return x * self.fc(x.mean((2, 3)))[:, :, None, None]


class DLi14(nn.Module):
    """d-li14's MobileNetV3, or MobileNetV2 where `rows` is a width.

    In V3, squeeze-excite stands before the activation where a block expands, and after it where it
    does not; a block without one has an Identity in its place.
    """

    def __init__(self, rows, width=1.0, head=1024, classes=10):
        super().__init__()
        self.is_v2 = isinstance(rows, float)
        width = rows if self.is_v2 else width
        act = "r6" if self.is_v2 else "hs"
        in_chs = divisible((32 if self.is_v2 else 16) * width)
        layers = [nn.Sequential(*_cba(conv(3, in_chs, 3, 2), in_chs, act))]
        base = 16
        for kernel, mid, out, se, name, stride in _rows_v2(width) if self.is_v2 else rows:
            if not self.is_v2:
                mid, base, out = divisible(in_chs * mid / base), out, divisible(out * width)
            depthwise = conv(mid, mid, kernel, stride, mid)
            gate = [] if self.is_v2 else [DLi14Gate(mid) if se else nn.Identity()]
            if mid == in_chs:
                block = _cba(depthwise, mid, name) + gate
            else:
                block = _cba(conv(in_chs, mid), mid, name) + [depthwise, nn.BatchNorm2d(mid)]
                block += gate + [ACTS[name]()]
            block += [conv(mid, out), nn.BatchNorm2d(out)]
            layers.append(Residual("conv", block, stride == 1 and in_chs == out))
            in_chs = out
        self.features = nn.Sequential(*layers)
        last = int(1280 * max(1.0, width)) if self.is_v2 else mid
        self.conv = nn.Sequential(*_cba(conv(in_chs, last), last, act))
        if self.is_v2:
            self.classifier = nn.Linear(last, classes)
        else:
            self.classifier = nn.Sequential(nn.Linear(last, head), nn.Hardswish(), nn.Dropout(0.2),
                                            nn.Linear(head, classes))
        settled(self, 1e-5)

    def forward(self, x):
        return self.classifier(self.conv(self.features(x)).mean((2, 3)))
