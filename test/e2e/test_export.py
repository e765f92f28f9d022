"""export.py from a checkpoint to files, with and without an `atc` on PATH."""
import importlib.util
import json
import os
import re
import stat
from pathlib import Path

import pytest
import torch

from mobilenetv3 import checkpoint, convert
from mobilenetv3.models import create_model
from mobilenetv3.options.export import parse_export

ROOT = Path(__file__).resolve().parents[2]
CLASSES = [f"digit {label}" for label in range(10)]
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
ATC = """#!/bin/sh
printf '%s\\n' "$@" > "$(dirname "$0")/arguments"
for word in "$@"; do case $word in --output=*) out=${word#--output=} ;; esac; done
[ "$(cat "$(dirname "$0")/status")" = 0 ] || { echo "E10001: no such operator" >&2; exit 7; }
echo om > "$out.om"
"""


@pytest.fixture(name="weights")
def weights_file(tmp_path):
    """A checkpoint of train.py's form: random weights, ten classes, images of 64 pixels."""
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", num_classes=10, bn_eps=1e-3)
    path = tmp_path / "run" / "model_best.pth.tar"
    path.parent.mkdir()
    checkpoint.save(path, {
        "format": 1, "epoch": 1, "arch": "mobilenetv3_small_050", "model": model.config,
        "classes": CLASSES, "state_dict": model.state_dict(), "state_dict_ema": None,
        "config": {"img_size": 64, "mean": MEAN, "std": STD, "crop_pct": 0.9},
    })
    return path


@pytest.fixture(name="atc")
def stub_atc(tmp_path, monkeypatch):
    """A folder on PATH with an `atc` that notes its arguments and fails if `status` is not 0."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "atc").write_text(ATC)
    (folder / "atc").chmod(0o755)
    (folder / "status").write_text("0")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


@pytest.fixture(name="export")
def in_this_process():
    """export(arguments...) runs export.py's main; its errors are raised."""
    spec = importlib.util.spec_from_file_location("export", str(ROOT / "export.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return lambda *arguments: module.main(parse_export(list(map(str, arguments))))


@pytest.fixture(name="onnx")
def onnx_module():
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    return pytest.importorskip("onnx", reason="onnx is not installed")


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def properties(onnx, path):
    return {entry.key: entry.value for entry in onnx.load(str(path)).metadata_props}


def test_onnx_with_all_that_belongs_to_it(onnx, script, weights, atc):
    result = script("export.py", "--ckpt_path", weights, "--format", "onnx",
                    PATH=os.environ["PATH"])
    assert result.status == 0, result.err
    folder = weights.parent
    assert names(folder) == ["model_best.aipp.cfg", "model_best.om", "model_best.onnx",
                             "model_best.pth.tar"]

    # The comparison: what differed, what passes, and how many images.
    line = result.lines("=> onnxruntime")[0]
    largest = float(re.search(r"PyTorch differ by (\S+) at most on 2 photographs", line).group(1))
    assert 0 < largest <= 1e-4
    assert line.endswith("(0.0001 passes); the best class is the same for 2 of 2")

    # The file answers, and says what it is.
    import onnxruntime

    session = onnxruntime.InferenceSession(str(folder / "model_best.onnx"),
                                           providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].shape == [1, 3, 64, 64]
    assert session.get_outputs()[0].shape == [1, 10]
    assert stat.S_IMODE((folder / "model_best.onnx").stat().st_mode) & 0o600 == 0o600
    found = properties(onnx, folder / "model_best.onnx")
    assert json.loads(found["classes"]) == CLASSES
    assert json.loads(found["model"])["bn_eps"] == 1e-3
    assert (json.loads(found["mean"]), json.loads(found["std"])) == (MEAN, STD)
    assert (json.loads(found["img_size"]), json.loads(found["crop_pct"])) == (64, 0.9)

    # AIPP: 0.5 * 255 is subtracted from red, and 1 / (0.2 * 255) multiplied.
    aipp = (folder / "model_best.aipp.cfg").read_text()
    assert aipp in result.out
    assert "min_chn_0: 127.5\n" in aipp and "var_reci_chn_0: 0.0196078431\n" in aipp
    assert "src_image_size_w: 64\n" in aipp

    # ATC: what is printed is what was run.
    words = (atc / "arguments").read_text().splitlines()
    assert result.lines("atc ") == [" ".join(["atc", *words])]
    assert f"--model={folder}/model_best.onnx" in words
    assert "--input_shape=input:1,3,64,64" in words
    assert "--soc_version=Ascend310P3" in words
    assert f"--insert_op_conf={folder}/model_best.aipp.cfg" in words


def test_an_atc_that_fails_is_an_error_and_the_onnx_file_is_kept(onnx, export, weights, atc, capfd):
    (atc / "status").write_text("1")
    with pytest.raises(ValueError, match="atc failed with exit status 7"):
        export("--ckpt_path", weights)
    assert "E10001: no such operator" in capfd.readouterr().err
    assert names(weights.parent) == ["model_best.aipp.cfg", "model_best.onnx", "model_best.pth.tar"]


def test_any_batch_another_size_and_another_chip(onnx, export, weights, atc, capsys):
    export("--ckpt_path", weights, "--dynamic", "--img_size", 96, "--soc_version", "Ascend910B4",
           "--mean", 0, 0, 0, "--opset", 13, "--skip_atc")
    model = onnx.load(str(weights.parent / "model_best.onnx"))
    shape = model.graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in shape] == ["batch", 3, 96, 96]
    assert model.opset_import[0].version == 13
    out = capsys.readouterr().out
    assert "--input_shape=input:-1,3,96,96" in out and "--dynamic_batch_size=" in out
    assert "--soc_version=Ascend910B4" in out
    assert not (atc / "arguments").exists()
    aipp = (weights.parent / "model_best.aipp.cfg").read_text()
    assert "min_chn_0: 0\n" in aipp and "src_image_size_h: 96\n" in aipp


def test_nothing_is_overwritten_without_force(onnx, export, weights):
    output = weights.parent / "there.onnx"
    output.write_text("precious")
    with pytest.raises(ValueError, match="there.onnx exists already.*--force"):
        export("--ckpt_path", weights, "--output", output, "--skip_atc")
    (weights.parent / "new.aipp.cfg").write_text("precious")
    with pytest.raises(ValueError, match="new.aipp.cfg exists already"):
        export("--ckpt_path", weights, "--output", weights.parent / "new.onnx", "--skip_atc")
    assert output.read_text() == "precious"
    assert not (weights.parent / "new.onnx").exists()
    export("--ckpt_path", weights, "--output", output, "--skip_atc", "--force")
    onnx.checker.check_model(str(output))


def test_a_difference_that_is_too_large_leaves_no_file(onnx, export, weights):
    before, output = names(weights.parent), weights.parent / "there.onnx"
    with pytest.raises(ValueError, match="and 1e-12 passes; nothing was written"):
        export("--ckpt_path", weights, "--tolerance", "1e-12", "--skip_atc")
    assert names(weights.parent) == before
    output.write_text("precious")
    with pytest.raises(ValueError, match="nothing was written"):
        export("--ckpt_path", weights, "--tolerance", "1e-12", "--output", output, "--force")
    assert output.read_text() == "precious"


def test_weights_are_never_overwritten_by_what_is_made_of_them(export, weights):
    source = weights.with_name("model.safetensors")
    convert.save(convert.read(weights), source)
    before = source.read_bytes()
    with pytest.raises(ValueError, match="holds the weights themselves"):
        export("--ckpt_path", source, "--format", "safetensors", "--force")
    assert source.read_bytes() == before


@pytest.mark.parametrize("classes", [
    CLASSES, [f"n0144{label}764" for label in range(10)], None,
], ids=["names", "synsets", "unknown"])
def test_safetensors_are_read_again_with_all_that_was_known(export, weights, classes):
    checkpoint.save(weights, dict(checkpoint.load(weights), classes=classes))
    export("--ckpt_path", weights, "--format", "safetensors")
    before, after = convert.read(weights), convert.read(weights.with_name("model_best.safetensors"))
    assert (after.classes, after.config) == (classes, before.config)
    assert (after.prepare["img_size"], list(after.prepare["mean"])) == (64, MEAN)
    assert before.state_dict.keys() == after.state_dict.keys()
    for name, value in before.state_dict.items():
        assert torch.equal(value, after.state_dict[name]), name


def test_torchscript_is_checked_on_the_images_that_are_named(export, weights, tmp_path, capsys):
    from PIL import Image

    photographs = tmp_path / "photographs" / "more"
    photographs.mkdir(parents=True)
    for index in range(3):
        Image.new("RGB", (80, 70), (40 * index, 200, 90)).save(str(photographs / f"{index}.png"))
    export("--ckpt_path", weights, "--format", "torchscript",
           "--check_images", photographs.parent, photographs / "0.png", "--batch_size", 4)
    out, err = capsys.readouterr()
    assert " at most on 4 images " in out and "the same for 4 of 4" in out
    assert "--batch_size has no effect with --format torchscript" in err
    assert (weights.parent / "model_best.torchscript.pt").is_file()
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(FileNotFoundError, match="no images in that folder"):
        export("--ckpt_path", weights, "--format", "torchscript", "--force",
               "--check_images", empty)


def test_a_network_for_grey_images_has_aipps_grey_format(onnx, export, tmp_path):
    torch.manual_seed(0)
    model = create_model("mobilenetv3_small_050", num_classes=10, in_chans=1)
    path = tmp_path / "grey.pth"
    checkpoint.save(path, {
        "format": 1, "arch": "mobilenetv3_small_050", "model": model.config, "classes": CLASSES,
        "state_dict": model.state_dict(), "config": {"img_size": 64, "mean": MEAN, "std": STD},
    })
    export("--ckpt_path", path, "--skip_atc")
    aipp = (tmp_path / "grey.aipp.cfg").read_text()
    assert "input_format: YUV400_U8\n" in aipp
    assert "min_chn_0: 102\n" in aipp and "chn_1" not in aipp  # (0.5 + 0.4 + 0.3) / 3 * 255


@pytest.mark.parametrize("arguments, message", [
    ([], "no weights to export: give --ckpt_path FILE"),
    (["--pretrained"], "add --model NAME"),
    (["--ckpt_path", "a.pth", "--pretrained", "b.pth"], "both name weights"),
    (["--ckpt_path", "a.pth", "--dynamic", "--batch_size", "4"], "--dynamic takes any batch"),
    (["--ckpt_path", "a.pth", "--opset", "9"], "--opset: expected an integer of 11 or more"),
    (["--ckpt_path", "a.pth", "--format", "om"], "--format: expected one of onnx, torchscript"),
    (["--ckpt_path", "a.pth", "--sock_version", "x"], "did you mean --soc_version?"),
])
def test_a_mistake_on_the_command_line_is_one_sentence(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        parse_export(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_file_that_is_not_there_is_named(export, tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        export("--ckpt_path", tmp_path / "nowhere.pth")
