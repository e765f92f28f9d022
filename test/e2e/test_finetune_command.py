"""Fine-tuning as a user runs it: weights from a file or the hub, frozen parts, slower backbones."""
import json
import struct
import subprocess
import sys
from pathlib import Path

import cifar_archive
import pytest
import torch
from conftest import QUICK, ROOT, Result

from mobilenetv3 import checkpoint, device

FROZEN = ("conv_stem.", "bn1.", "blocks.0.", "blocks.1.")
START = ("--model", "mobilenetv3_small_050", "--max_steps", 3, "--epochs", 1, "--skip_validation")


def state(folder, key="state_dict"):
    return checkpoint.load(Path(str(folder)) / checkpoint.LAST)[key]


@pytest.fixture(scope="module")
def start(script, tmp_path_factory):
    """Weights to start from: after three steps, so that BatchNorm has statistics of its own."""
    folder = tmp_path_factory.mktemp("start") / "run"
    result = script("train.py", *QUICK, *START, "--output", folder)
    assert result.status == 0, result.err
    return folder / checkpoint.LAST


def assert_frozen(before, after, starts):
    """Weights and statistics under `starts` are as they were, and all others have moved."""
    for name in before:
        if name.startswith(starts):
            assert torch.equal(after[name], before[name]), name
        elif not name.endswith("num_batches_tracked"):
            assert not torch.equal(after[name], before[name]), name


def test_frozen_stages_stay_as_they_were_in_weights_average_and_log(script, start, tmp_path):
    result = script(
        "train.py", *QUICK, *START, "--ckpt_path", start, "--freeze_stages", 2, "--model_ema",
        "--model_ema_decay", 0.5, "--backbone_lr_scale", 0.1, "--filter_bias_and_bn", "--drop_path",
        0.1, "--output", tmp_path / "run")
    assert result.status == 0, result.err
    before = checkpoint.load(start)["state_dict"]
    assert_frozen(before, state(tmp_path / "run"), FROZEN)
    assert_frozen(before, state(tmp_path / "run", "state_dict_ema"), FROZEN)
    assert result.lines("=> frozen: the stem and 2 of 6 stages")
    assert result.lines("=> learning rate: x 0.1 for all but the classifier")
    groups = state(tmp_path / "run", "optimizer")["param_groups"]
    lr = groups[0]["lr"]
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [
        (lr, 0.0), (lr, 1e-4), (pytest.approx(lr / 10), 0.0), (pytest.approx(lr / 10), 1e-4)
    ]
    assert f"LR {lr:g}" in result.lines("Epoch: [0][2/")[0]  # the log shows the full rate


def test_other_classes_replace_only_the_classifier_which_alone_trains(script, start, tmp_path):
    """With O2, where the CPU has it: only the classifier has masters then."""
    has_half = device.TORCH_VERSION >= (2, 1)
    result = script("train.py", *QUICK, *START, "--ckpt_path", start, "--num_classes", 12,
                    "--freeze_backbone", f"--apex={has_half}", "--output", tmp_path / "run")
    assert result.status == 0, result.err
    assert [line for line in result.lines("=> ") if "classifier" in line and "12" in line]
    after = state(tmp_path / "run")
    for name, value in checkpoint.load(start)["state_dict"].items():
        if name.startswith("classifier."):
            assert value.shape[0] == 10 and after[name].shape[0] == 12
            continue
        # With O2 the network computes, and is saved, with weights rounded to half precision.
        rounded = value.bfloat16().to(value.dtype) if has_half else value
        assert torch.equal(after[name], value) or torch.equal(after[name], rounded), name
    (group,) = state(tmp_path / "run", "optimizer")["param_groups"]
    assert len(group["params"]) == 2  # the classifier's weight and bias


def test_two_ranks_fine_tune_as_one_does(launched, script, start, tmp_path):
    arguments = [*QUICK, *START, "--ckpt_path", start, "--freeze_stages", 6, "--layer_decay", 0.5]
    one = script("train.py", *arguments, "--output", tmp_path / "one")
    two = launched(2, "train.py", *arguments, "--output", tmp_path / "two")
    assert one.status == two.status == 0, one.err + two.err
    before, after = checkpoint.load(start)["state_dict"], state(tmp_path / "two")
    assert_frozen(before, after, ("conv_stem.", "bn1.", "blocks."))
    # Every BatchNorm is frozen, so the gradients of the halves add up to those of the whole.
    for name, value in state(tmp_path / "one").items():
        assert torch.allclose(value.float(), after[name].float(), atol=1e-6), name


def test_a_resumed_fine_tuning_ends_as_one_that_was_not_stopped(script, start, tmp_path):
    arguments = [*QUICK, "--batch_size", 256, "--model", "mobilenetv3_small_050", "--epochs", 2,
                 "--ckpt_path", start, "--freeze_stages", 3, "--backbone_lr_scale", 0.1,
                 "--model_ema", "--sched", "cosine", "--skip_validation"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    result = script("train.py", *arguments, "--output", whole)
    assert result.status == 0, result.err
    # One command, twice: the first starts from the weights, the second goes on. 1437 / 256 is 5.
    for steps in (5, 10):
        result = script("train.py", *arguments, "--max_steps", steps, "--output", parts, "--resume",
                        "auto")
        assert result.status == 0, result.err
    assert result.lines("=> resumed from")
    for key in ("state_dict", "state_dict_ema"):
        expected = state(whole, key)
        assert all(torch.equal(value, expected[name]) for name, value in state(parts, key).items())

    saved = (parts / checkpoint.LAST).read_bytes()
    result = script("train.py", *arguments, "--freeze_stages", 2, "--output", parts, "--resume",
                    "auto")
    assert result.status == 1 and "its run had 3, this one has 2" in result.last, result.err
    assert (parts / checkpoint.LAST).read_bytes() == saved


def test_freezing_random_weights_is_refused(script, tmp_path):
    result = script("train.py", *QUICK, "--freeze_backbone", "--output", tmp_path / "run")
    assert result.status == 2
    assert "--freeze_backbone keeps weights as they are" in result.last
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------- CIFAR-10 and timm's weights by download

# Runs train.py with torchvision's CIFAR10 described by an environment variable.
PATCHED = """
import json, os, runpy, sys
from torchvision import datasets
for name, value in json.loads(os.environ["TEST_CIFAR10"]).items():
    setattr(datasets.CIFAR10, name, value)
sys.path.insert(0, os.path.dirname(sys.argv[1]))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A cache of huggingface_hub with random weights as timm's large_100: its folder, and they."""
    timm = pytest.importorskip("timm")
    home = tmp_path_factory.mktemp("hf")
    repository = home / "hub" / "models--timm--mobilenetv3_large_100.ra_in1k"
    snapshot = repository / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("0" * 40)
    torch.manual_seed(0)
    weights = timm.create_model("mobilenetv3_large_100").state_dict()
    write_safetensors(snapshot / "model.safetensors", weights)
    return home, weights


def write_safetensors(path, tensors):
    """The format by hand, because safetensors itself does not serve PyTorch 1.8: a length of eight
    bytes, a JSON header of so many, the data."""
    header, data = {}, b""
    for name, value in tensors.items():
        content = value.numpy().tobytes()
        header[name] = {"dtype": {torch.float32: "F32", torch.int64: "I64"}[value.dtype],
                        "shape": list(value.shape),
                        "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    described = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(described)) + described + data)


@pytest.fixture
def patched(environment, tmp_path):
    """patched(arguments, NAME=value...) -> Result of train.py with a stand-in for CIFAR-10."""
    folder = tmp_path / "served"
    folder.mkdir()
    attributes = cifar_archive.write(folder)
    with cifar_archive.served(folder) as (address, asked):
        attributes["url"] = address + attributes["url"]

        def run(*arguments, **variables):
            env = dict(environment, TEST_CIFAR10=json.dumps(attributes), HF_HUB_OFFLINE="1",
                       MOBILENETV3_CACHE=str(tmp_path / "cache"), **variables)
            process = subprocess.run(
                [sys.executable, "-c", PATCHED, str(ROOT / "train.py"), *map(str, arguments)],
                cwd=str(tmp_path), env=env, capture_output=True, text=True, timeout=300)
            return Result(process)

        run.asked = asked
        yield run


MINDCV = ("--model=mobilenet_v3_large_100", "--pretrained", "--opt=momentum", "--lr=0.001",
          "--dataset=cifar10", "--num_classes=10", "--dataset_download")


def test_the_command_of_mindcvs_readme_fetches_cifar10_and_trains(patched, hub, tmp_path):
    home, weights = hub
    result = patched(*MINDCV, "--max_steps=1", "--epochs=1", "--device=cpu", "--workers=0",
                     "--freeze_backbone", HF_HOME=str(home))
    assert result.status == 0, result.err
    assert patched.asked == ["/" + cifar_archive.NAME] * cifar_archive.REQUESTS
    assert result.lines(f"=> CIFAR-10 in {tmp_path / 'cache' / 'cifar10'}")
    assert '"img_size": 224' in result.lines("=> run ")[0]  # the small images are enlarged
    assert len(result.lines(" * Acc@1")) == 1  # scored on the 16 test images
    (run,) = (tmp_path / "output").iterdir()
    trained = state(run)
    assert trained["classifier.weight"].shape == (10, 1280)
    for name, value in weights.items():
        if not name.startswith("classifier."):
            assert torch.equal(trained[name], value), name


def test_the_command_without_a_network_says_what_to_do(patched, tmp_path):
    result = patched(*MINDCV, "--device=cpu", HF_HOME=str(tmp_path / "empty"))
    assert result.status == 1
    assert "--pretrained" in result.last and "HF_HOME" in result.last
    assert "mobilenetv3_large_100" in result.last
    assert "Traceback" not in result.err
    assert not (tmp_path / "output").exists()
