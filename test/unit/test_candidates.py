"""Weights that validate.py scores."""
import pytest

from mobilenetv3 import candidates, checkpoint
from mobilenetv3.models import create_model


def test_weights_for_grey_images_ended_in_the_traceback_of_a_convolution(tmp_path):
    model = create_model("mobilenetv3_small_050", num_classes=2, in_chans=1)
    path = tmp_path / "grey.pth.tar"
    checkpoint.save(path, {"model": model.config, "state_dict": model.state_dict()})
    with pytest.raises(ValueError, match=r"grey\.pth\.tar takes 1 input channel, and .* have 3"):
        candidates.read([str(path)], None, None, {})


def test_weights_for_feature_maps_are_refused_in_a_sentence(tmp_path):
    model = create_model("mobilenetv3_small_050", features_only=True)
    path = tmp_path / "maps.pth"
    checkpoint.save(path, {"model": model.config, "state_dict": model.state_dict()})
    with pytest.raises(ValueError, match=r"maps\.pth holds a network for feature maps"):
        candidates.read([str(path)], None, None, {})
