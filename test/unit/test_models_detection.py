"""The feature maps as the backbone of torchvision's SSDLite, by the recipe in features.py."""
import textwrap

import pytest
import torch

from mobilenetv3.models import features

pytest.importorskip(
    "torchvision.models.detection.ssdlite", reason="SSDLite is in torchvision 0.10 and later"
)


@pytest.fixture(name="detector")
def built_by_the_recipe():
    torch.manual_seed(0)
    namespace = {}
    exec(textwrap.dedent(features.__doc__.split("::\n", 1)[1]), namespace)  # noqa: S102
    return namespace["detector"]


def test_the_recipe_trains_and_detects(detector):
    image = torch.rand(3, 200, 240)
    target = {"boxes": torch.tensor([[20.0, 30.0, 150.0, 160.0]]), "labels": torch.tensor([7])}
    losses = detector.train()([image, image], [target, target])
    sum(losses.values()).backward()
    assert set(losses) == {"bbox_regression", "classification"}
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in detector.parameters())
    with torch.no_grad():
        (found,) = detector.eval()([image])
    assert found["boxes"].shape == (len(found["scores"]), 4) and len(found["scores"]) > 0


def test_the_maps_have_the_strides_16_to_128(detector):
    with torch.no_grad():
        maps = detector.backbone.eval()(torch.randn(1, 3, 320, 320))
    assert [tuple(each.shape[1:]) for each in maps.values()] == [
        (112, 20, 20), (960, 10, 10), (512, 5, 5), (256, 3, 3)
    ]
