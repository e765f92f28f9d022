"""d-li14's variant of V3, against a small model written from what is known of it.

In a block that expands, squeeze-excite stands between the batch norm of the depthwise convolution
and its activation; in one that does not, after the activation. It consists of linear layers. The
stem gets narrower at every width, the head wider beyond 1.0; all else is as in the paper.
"""
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilenetv3.models import create_model

# Kernel, expansion, channels, squeeze-excite, hard-swish, stride: Howard et al. 2019, Tables 1, 2.
LARGE = """
3 1 16 0 0 1 | 3 4 24 0 0 2 | 3 3 24 0 0 1 | 5 3 40 1 0 2 | 5 3 40 1 0 1 | 5 3 40 1 0 1
3 6 80 0 1 2 | 3 2.5 80 0 1 1 | 3 2.3 80 0 1 1 | 3 2.3 80 0 1 1 | 3 6 112 1 1 1 | 3 6 112 1 1 1
5 6 160 1 1 2 | 5 6 160 1 1 1 | 5 6 160 1 1 1"""
SMALL = """
3 1 16 1 0 2 | 3 4.5 24 0 0 2 | 3 3.67 24 0 0 1 | 5 4 40 1 1 2 | 5 6 40 1 1 1 | 5 6 40 1 1 1
5 3 48 1 1 1 | 5 3 48 1 1 1 | 5 6 96 1 1 2 | 5 6 96 1 1 1 | 5 6 96 1 1 1"""


def rounded(channels):
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest + 8 if nearest < 0.9 * channels else nearest


def swish(x):
    return x * F.relu6(x + 3) / 6


class Gate(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.fc = nn.ModuleList([nn.Linear(channels, rounded(channels // 4)),
                                 nn.Linear(rounded(channels // 4), channels)])

    def forward(self, x):
        gate = self.fc[1](F.relu(self.fc[0](x.mean((2, 3)))))
        return x * (F.relu6(gate + 3) / 6)[:, :, None, None]


class Block(nn.Module):
    def __init__(self, channels, kernel, expand, out, se, hs, stride):
        super().__init__()
        mid = rounded(channels * expand)
        self.residual, self.act = stride == 1 and channels == out, swish if hs else F.relu
        self.expand = None
        if mid != channels:
            self.expand = nn.ModuleList([nn.Conv2d(channels, mid, 1, bias=False),
                                         nn.BatchNorm2d(mid)])
        self.depthwise = nn.ModuleList([
            nn.Conv2d(mid, mid, kernel, stride, kernel // 2, groups=mid, bias=False),
            nn.BatchNorm2d(mid)])
        self.gate = Gate(mid) if se else None
        self.project = nn.ModuleList([nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out)])
        self.out, self.mid = out, mid

    def forward(self, x):
        y = x
        if self.expand is not None:
            y = self.act(self.expand[1](self.expand[0](y)))
        y = self.depthwise[1](self.depthwise[0](y))
        if self.gate is None:
            y = self.act(y)
        elif self.expand is None:
            y = self.gate(self.act(y))
        else:
            y = self.act(self.gate(y))
        y = self.project[1](self.project[0](y))
        return x + y if self.residual else y


class Reference(nn.Module):
    def __init__(self, table, width, head):
        super().__init__()
        channels = rounded(16 * width)
        self.stem = nn.ModuleList([nn.Conv2d(3, channels, 3, 2, 1, bias=False),
                                   nn.BatchNorm2d(channels)])
        blocks = []
        for row in table.replace("\n", "|").strip("| ").split("|"):
            kernel, expand, out, se, hs, stride = (float(word) for word in row.split())
            blocks.append(Block(channels, int(kernel), expand, rounded(out * width), se, hs,
                                int(stride)))
            channels = blocks[-1].out
        self.blocks = nn.Sequential(*blocks)
        last = blocks[-1].mid
        self.conv = nn.ModuleList([nn.Conv2d(channels, last, 1, bias=False), nn.BatchNorm2d(last)])
        head = rounded(head * width) if width > 1 else head
        self.classifier = nn.ModuleList([nn.Linear(last, head), nn.Linear(head, 1000)])

    def forward(self, x):
        x = self.blocks(swish(self.stem[1](self.stem[0](x))))
        x = swish(self.conv[1](self.conv[0](x))).mean((2, 3))
        return self.classifier[1](swish(self.classifier[0](x)))


def reference(size, width):
    torch.manual_seed(0)
    model = Reference(*{"large": (LARGE, width, 1280), "small": (SMALL, width, 1024)}[size])
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight)
    return model.double().eval()  # so that rounding, which 15 blocks amplify, is out of the way


def copied(source, model):
    """`model` with the tensors of `source`, which come in the same order in both."""
    ours, theirs = model.state_dict(), list(source.state_dict().values())
    assert len(ours) == len(theirs)
    model.load_state_dict({
        # Linear layers there are 1x1 convolutions here; all other shapes are equal.
        key: value[..., None, None] if tensor.dim() == 4 and value.dim() == 2 else value
        for (key, tensor), value in zip(ours.items(), theirs)
    })
    return model.double().eval()


@pytest.mark.parametrize(
    "size, width", [("large", 1.0), ("large", 0.75), ("small", 1.0), ("small", 0.75),
                    ("small", 0.5), ("large", 1.25)]
)
def test_squeeze_excite_stands_before_the_activation(size, width):
    source = reference(size, width)
    model = copied(source, create_model(f"dli14_mobilenetv3_{size}", width_mult=width))
    x = torch.randn(2, 3, 64, 64).double()
    with torch.no_grad():
        expected = source(x)
        assert (model(x) - expected).abs().max() <= 1e-10 * expected.abs().max()
        if width in (1.0, 0.75):  # where the usual graph has the same tensors, it gives another y
            usual = copied(source, create_model(f"mobilenetv3_{size}", width_mult=width))
            assert (usual(x) - expected).abs().max() > 0.01 * expected.abs().max()


def test_a_width_without_a_name_is_built_again_from_the_configuration():
    model = create_model("dli14_mobilenetv3_small", width_mult=0.5)
    assert model.config["arch"] == "dli14_mobilenetv3_small"
    again = create_model(**model.config)
    assert [p.shape for p in again.parameters()] == [p.shape for p in model.parameters()]


def test_it_trains_and_scripts_like_the_others():
    model = create_model("dli14_mobilenetv3_small_075", num_classes=3)
    x = torch.randn(2, 3, 64, 64)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    model.eval()
    with torch.no_grad():
        assert (torch.jit.script(model)(x) - model(x)).abs().max() <= 1e-6
