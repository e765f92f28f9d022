"""O2 in float16 trains as float32 does: 200 steps on the digits.

The network is MobileNetV3-Small up to stride 8, on 32x32 images, at a small learning rate. The
whole one would not do: on maps of one pixel its last BatchNorms magnify rounding, so that two
float32 runs that differ in the order of sums (channels_last or not) end 2 to 19 percent apart.
"""
import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mobilenetv3 import device, models, optim
from mobilenetv3.device import TORCH_VERSION
from mobilenetv3.precision import create_precision

STEPS, BATCH = 200, 32

pytestmark = pytest.mark.skipif(
    TORCH_VERSION < (2, 1), reason="PyTorch before 2.1 has no half precision on the CPU"
)


class Front(nn.Module):
    """The first blocks of MobileNetV3-Small, and a classifier."""

    def __init__(self):
        super().__init__()
        self.features = models.create_model(
            "mobilenetv3_small_100", features_only=True, out_indices=(2,))
        self.classifier = nn.Linear(self.features.feature_info.channels()[0], 10)

    def forward(self, images):
        return self.classifier(self.features(images)[0].mean((2, 3)))


@pytest.fixture(scope="module")
def digits():
    """Images (1797, 3, 32, 32) and labels."""
    bunch = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.tensor(bunch.images, dtype=torch.float32)[:, None] / 8 - 1
    return F.interpolate(images, 32).repeat(1, 3, 1, 1), torch.tensor(bunch.target)


def make(level):
    torch.manual_seed(0)
    model = Front().train()
    optimizer = optim.create_optimizer(model, "momentum", 0.003, 0.9, 1e-4)
    precision = create_precision(level, device.select("cpu"), "float16")
    precision.prepare(model, optimizer)
    return model, optimizer, precision


def train(run, digits, first, last):
    """Steps `first` to `last`; returns their losses."""
    (model, optimizer, precision), (images, labels), losses = run, digits, []
    for step in range(first, last):
        chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(step))[:BATCH]
        loss = F.cross_entropy(precision.forward(model, images[chosen]), labels[chosen])
        precision.backward(loss)
        precision.step(optimizer)
        losses.append(loss.item())
    return losses


def test_200_steps_in_o2_end_within_two_percent_of_float32_and_resume_to_the_bit(digits):
    whole, plain = make("O2"), make("O0")
    losses = train(whole, digits, 0, 100)
    model, optimizer, precision = whole
    saved = copy.deepcopy((precision.model_state(model), optimizer.state_dict(),
                           precision.state_dict()))
    losses += train(whole, digits, 100, STEPS)
    expected = train(plain, digits, 0, STEPS)
    # One batch's loss is that of 32 images: the mean of the last 50 is what a log would show.
    final, exact = sum(losses[-50:]) / 50, sum(expected[-50:]) / 50
    assert exact < 0.7 * expected[0]  # it learnt something: 1.55 of 2.27
    assert final == pytest.approx(exact, rel=0.02)

    resumed = make("O2")
    resumed[2].load_model_state(resumed[0], saved[0])
    resumed[1].load_state_dict(saved[1])
    resumed[2].load_state_dict(saved[2])
    assert train(resumed, digits, 100, STEPS) == losses[100:]
    ours, theirs = (run[2].model_state(run[0]) for run in (resumed, whole))
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
