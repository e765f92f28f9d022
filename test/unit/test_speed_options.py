"""What --channels_last, --compile and --profile mean, typed, left out and in a file."""
from argparse import Namespace

import pytest
import torch

from mobilenetv3 import build, config, options
from mobilenetv3.device import TORCH_VERSION, Device

CPU = Device("cpu", 0, None, "gloo")
CARD = Device("cuda", 0, torch.cuda, "nccl")
NPU = Device("npu", 0, object(), "hccl")


def parsed(*argv):
    return config.parse(options.train_parser(), ["DIR", *argv])


@pytest.mark.parametrize("device, apex, expected", [
    (CPU, False, TORCH_VERSION >= (2, 0)), (CARD, False, False), (CARD, True, True),
    (NPU, False, False), (NPU, True, False),
])
def test_the_layout_that_is_left_open_is_the_faster_one(device, apex, expected):
    layout = build.memory_format(Namespace(channels_last=None, apex=apex), device)
    assert (layout == torch.channels_last) == expected


@pytest.mark.parametrize("argv, expected", [
    ((), None), (("--channels_last",), True), (("--channels-last=true",), True),
    (("--channels_last=false",), False), (("--no_channels_last",), False),
])
def test_the_layout_can_be_said(argv, expected, tmp_path):
    cfg = parsed(*argv)
    assert cfg.channels_last is expected
    config.save(cfg, tmp_path / "config.yaml")
    assert parsed("-c", str(tmp_path / "config.yaml")).channels_last is expected
    if expected is not None:
        for device in (CPU, CARD, NPU):
            assert (build.memory_format(cfg, device) == torch.channels_last) == expected


@pytest.mark.parametrize("argv, compile_mode, profile", [
    ((), None, None), (("--compile", "--profile"), "default", 10),
    (("--compile", "reduce-overhead", "--profile=3"), "reduce-overhead", 3),
])
def test_compile_and_profile_are_off_unless_asked_for(argv, compile_mode, profile, tmp_path):
    cfg = parsed(*argv)
    assert (cfg.compile, cfg.profile) == (compile_mode, profile)
    config.save(cfg, tmp_path / "config.yaml")
    again = parsed("-c", str(tmp_path / "config.yaml"))
    assert (again.compile, again.profile) == (compile_mode, profile)


@pytest.mark.parametrize("argv, message", [
    (("--compile=fast",), "default, reduce-overhead, max-autotune"),
    (("--profile", "0"), "a positive integer"), (("--optimizer_form", "slow"), "auto, plain"),
])
def test_what_they_do_not_take_is_refused(argv, message, capsys):
    with pytest.raises(SystemExit):
        parsed(*argv)
    assert message in capsys.readouterr().err
