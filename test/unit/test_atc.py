"""AIPP's arithmetic, and ATC's command line, without ATC."""
import re
import shlex
import sys

import numpy as np
import pytest

from mobilenetv3 import atc

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def values(text):
    """name -> value of every entry of an AIPP configuration."""
    assert text.startswith("aipp_op {\n") and text.endswith("}\n")
    return dict(re.findall(r"^    (\w+): (\S+)$", text, flags=re.MULTILINE))


@pytest.mark.parametrize("mean, std", [
    (MEAN, STD), ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)), ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    ((0.449,), (0.226,)),
], ids=["imagenet", "inception", "none", "grey"])
def test_aipp_normalises_as_validation_does(mean, std):
    found = values(atc.aipp_config(224, mean, std))
    pixels = np.arange(256.0)
    for channel in range(len(mean)):
        subtract = [found[f"{name}_chn_{channel}"] for name in ("mean", "min")]
        factor = float(found[f"var_reci_chn_{channel}"])
        assert subtract[0].isdigit()  # AIPP's mean_chn is an integer
        assert 0 <= float(subtract[1]) <= 255  # the range of min_chn
        normalised = (pixels - float(subtract[0]) - float(subtract[1])) * factor
        expected = (pixels / 255.0 - mean[channel]) / std[channel]
        # Nine digits are written: 1e-8 of a value below 3, and of the mean, which is below 255.
        np.testing.assert_allclose(normalised, expected, rtol=0, atol=1e-7)
    assert f"mean_chn_{len(mean)}" not in found


def test_aipp_takes_uint8_images_of_the_models_size():
    found = values(atc.aipp_config(192, MEAN, STD))
    assert (found["aipp_mode"], found["input_format"]) == ("static", "RGB888_U8")
    assert (found["src_image_size_w"], found["src_image_size_h"]) == ("192", "192")
    assert found["rbuv_swap_switch"] == "false"  # R stays first
    assert values(atc.aipp_config(192, MEAN[:1], STD[:1]))["input_format"] == "YUV400_U8"


def test_the_command_line_of_a_fixed_batch():
    words = atc.command("m.onnx", "m.om", "input", (8, 3, 224, 224), "Ascend310P3", "m.aipp.cfg")
    assert words == [
        "atc", "--framework=5", "--model=m.onnx", "--output=m", "--input_format=NCHW",
        "--input_shape=input:8,3,224,224", "--soc_version=Ascend310P3",
        "--insert_op_conf=m.aipp.cfg",
    ]


def test_the_command_line_of_any_batch_and_without_aipp():
    words = atc.command("m.onnx", "m.om", "input", (-1, 3, 224, 224), "Ascend310P3")
    assert "--input_shape=input:-1,3,224,224" in words
    assert "--dynamic_batch_size=1,2,4,8,16" in words
    assert not [word for word in words if "insert_op_conf" in word]


def test_the_command_line_can_be_pasted_into_a_shell():
    words = atc.command("a b/m;.onnx", "a b/m;.om", "input", (1, 3, 64, 64), "Ascend310P3")
    assert shlex.split(atc.shown(words)) == words


def test_a_failing_atc_is_an_error(tmp_path):
    atc.run([sys.executable, "-c", ""])
    with pytest.raises(ValueError, match="exit status 3"):
        atc.run([sys.executable, "-c", "raise SystemExit(3)"])
    with pytest.raises(ValueError, match="could not be started"):
        atc.run([str(tmp_path / "nowhere")])
