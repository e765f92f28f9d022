"""python -m mobilenetv3.convert."""
import functools

import convert_peers as peers
import pytest
import torch

from mobilenetv3 import checkpoint
from mobilenetv3.convert.__main__ import parser, run


@functools.lru_cache(maxsize=None)
def network():
    return peers.MMPretrain(peers.SMALL_050, eps=1e-5)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "src.pth"
    checkpoint.save(path, {"meta": {}, "state_dict": network().state_dict()})
    return path


def test_it_prints_what_it_found(source, capsys):
    assert run([str(source)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:12] == [
        str(source),
        "  family        mmpretrain",
        "  architecture  mobilenetv3_small_050",
        "  parameters    578,474",  # published: 1,593,224 with 1000 classes, less 990 x 1025
        "  classes       10",
        "  input         3 channels",
        "  width         0.5 by timm's rule",
        "  bn_eps        1e-05",
        "  pad_type      symmetric",
        "  images        224 of 256 pixels (crop_pct 0.875), bicubic",
        "  mean          0.485, 0.456, 0.406",
        "  std           0.229, 0.224, 0.225",
    ]
    assert len(lines) == 13 and lines[12].startswith("=> the file has no configuration: bn_eps")


def test_it_writes_and_says_so(source, tmp_path, capsys):
    own = tmp_path / "own.safetensors"
    assert run([str(source), str(own)]) == 0
    assert f"=> {own} written" in capsys.readouterr().out
    back = tmp_path / "back.pth"
    assert run([str(own), str(back), "--to", "mmpretrain"]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "=> converted from mmpretrain's src.pth" in out
    assert out[-2:] == [
        f"=> {back} written for mmpretrain",
        "=> in mmpretrain's configuration: backbone=dict(type='MobileNetV3', arch='small_050', "
        "norm_cfg=dict(type='BN', eps=1e-05, momentum=0.1)), and num_classes=10 in head",
    ]
    state = checkpoint.load(back)["state_dict"]
    assert list(state) == list(network().state_dict())
    assert all(torch.equal(state[name], value) for name, value in network().state_dict().items())


def test_a_file_that_exists_is_replaced_only_by_force(source, tmp_path, capsys):
    target = tmp_path / "there.pth"
    target.write_text("precious")
    assert run([str(source), str(target)]) == 1
    assert capsys.readouterr().err == (
        f"mobilenetv3.convert: error: {target} exists; add --force to replace it\n"
    )
    assert target.read_text() == "precious"
    assert run([str(source), str(target), "--force"]) == 0
    assert checkpoint.load(target)["arch"] == "mobilenetv3_small_050"


def test_what_was_changed_in_training_can_be_told(source, capsys):
    assert run([str(source), "--bn-eps", "0.001", "--pad-type", "same_depthwise"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "  bn_eps        0.001 (as told)" in lines
    assert "  pad_type      same_depthwise (as told)" in lines


@pytest.mark.parametrize("arguments, told", [
    (["--to", "timm"], "--to needs a file to write, DST"),
    (["--ema"], "it holds no averaged weights (EMA), only those as they were trained"),
    (["--arch", "mobilenetv2_100"], "it is a mobilenetv3_small_050 by its names and shapes, not a"),
    (["--arch", "mobilnet"], "Unknown model 'mobilnet'"),
    (["DST.pth", "--to", "torchvision"], "has no place in torchvision"),
    (["DST.npz"], "does not end with .pth or .pth.tar or .pt or .safetensors"),
])
def test_errors_are_one_sentence_and_status_1(source, tmp_path, capsys, arguments, told):
    arguments = [str(tmp_path / name) if name.startswith("DST") else name for name in arguments]
    assert run([str(source), *arguments]) == 1
    error = capsys.readouterr().err
    assert error.startswith("mobilenetv3.convert: error: ") and error.count("\n") == 1
    assert told in error
    assert [path.name for path in tmp_path.iterdir()] == ["src.pth"]


def test_a_file_that_is_not_there(tmp_path, capsys):
    assert run([str(tmp_path / "no.pth")]) == 1
    assert capsys.readouterr().err.startswith("mobilenetv3.convert: error: no checkpoint at ")


def test_the_help_names_the_families_and_the_formats():
    text = " ".join(parser().format_help().split())
    for part in ("timm, torchvision, mmpretrain, mindcv;", ".pth, .pth.tar, .pt, .safetensors or "
                 ".ckpt", "--arch NAME", "d-li14, xiaolai"):
        assert part in text
