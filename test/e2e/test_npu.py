"""The commands as on a host with eight NPUs, over the stand-in of test/npu_stand_in.

None of this was run on an NPU; what the stand-in can show, and what it cannot, is in its README.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import pytest
import torch
from conftest import QUICK, ROOT, Result

from mobilenetv3 import checkpoint, logfmt

pytestmark = pytest.mark.slow

STAND_IN = ROOT / "test" / "npu_stand_in"
ON_NPU = (*QUICK[2:], "--epochs", 1, "--sched", "step")  # QUICK without its --device
assert QUICK[0] == "--device"


@pytest.fixture(scope="module", autouse=True)
def npu(environment):
    """Variables of a host with NPUs; skips where the stand-in cannot be built."""
    build = [sys.executable, str(STAND_IN / "torch_npu" / "_build.py")]
    variables = {"PYTHONPATH": str(STAND_IN), "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}
    done = subprocess.run(build, env=dict(environment, **variables), capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr
    return variables


@pytest.fixture(scope="module")
def trained(script, npu, tmp_path_factory):
    """One epoch with --device auto on card 3: (run folder, result)."""
    folder = tmp_path_factory.mktemp("npu") / "run"
    result = script("train.py", *ON_NPU, "--device_id", 3, "--output", folder, **npu)
    assert result.status == 0, result.err
    return folder, result


def weights(folder):
    return checkpoint.load(folder / checkpoint.LAST)["state_dict"]


def assert_same_weights(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


def cards_in(path):
    """Devices that the tensors in a checkpoint were saved from."""
    with zipfile.ZipFile(str(path)) as archive:
        pickled = archive.read(next(n for n in archive.namelist() if n.endswith("data.pkl")))
    return {name.decode() for name in re.findall(rb"npu:\d", pickled)}


def run_record(result):
    return json.loads(result.lines("=> run ")[0][len("=> run "):])


# ---- One card ----

def test_auto_takes_the_npu_and_the_card_that_was_asked_for(trained):
    folder, result = trained
    assert run_record(result)["device"] == "npu"
    assert cards_in(folder / checkpoint.LAST) == {"npu:3"}
    assert result.lines(" * Acc@1")


def test_a_checkpoint_of_the_npu_scores_the_same_on_npu_and_cpu(trained, script, npu):
    folder, result = trained
    # The same network with other kernels for its activations: logits differ in the last digits.
    expected = logfmt.parse(result.lines(" * Acc@1")[0]).acc1
    for device, variables in (("npu", npu), ("cpu", {"PYTHONPATH": ""})):
        scored = script("validate.py", "--device", device, "--workers", 0, "--ckpt_path",
                        folder / checkpoint.LAST, **variables)
        assert scored.status == 0, scored.err
        assert run_record(scored)["device"] == device
        found = logfmt.parse(scored.lines(" * Acc@1")[0]).acc1
        assert found == (expected if device == "npu" else pytest.approx(expected, abs=0.6))


@pytest.mark.parametrize("level", ["O0", "O2"])
def test_a_run_stopped_between_epochs_goes_on_as_if_it_had_not_been(script, npu, tmp_path, level):
    options = [*ON_NPU, "--device", "npu", "--apex", "--apex-opt-level", level, "--max_steps"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for folder, epochs, more in ((whole, 2, ()), (parts, 1, ()), (parts, 2, ("--resume", "auto"))):
        result = script("train.py", *options, 44, "--epochs", epochs, "--output", folder, *more,
                        **npu)
        assert result.status == 0, result.err
        assert run_record(result)["amp"].startswith(level)
    assert_same_weights(weights(parts), weights(whole))


def test_a_run_of_the_npu_goes_on_on_the_cpu(trained, script, npu, tmp_path):
    folder = tmp_path / "moved"
    shutil.copytree(str(trained[0]), str(folder))
    options = [*ON_NPU, "--output", folder, "--resume", "auto", "--epochs"]
    result = script("train.py", *options, 2, "--device", "cpu", PYTHONPATH="")
    assert result.status == 0, result.err
    assert "(epoch 1)" in result.lines("=> resumed from")[0]
    assert cards_in(folder / checkpoint.LAST) == set()
    result = script("train.py", *options, 3, "--device", "npu", **npu)
    assert result.status == 0, result.err
    assert cards_in(folder / checkpoint.LAST) == {"npu:0"}


# ---- Cards that are not there ----

@pytest.mark.parametrize("cards, told", [
    ("7", "this host has 7"),  # and rank 7 needs the eighth
    ("0", "--device npu was asked for"),
])
def test_a_card_that_is_not_there_is_an_error_that_says_how_many_are(
        script, npu, tmp_path, cards, told):
    rank_7_of_8 = {"RANK": "7", "LOCAL_RANK": "7", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8",
                   "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29400"}
    result = script("train.py", *ON_NPU, "--device", "npu", "--output", tmp_path / "run",
                    NPU_STAND_IN_DEVICES=cards, **rank_7_of_8, **npu)
    assert result.status == 1
    assert told in result.last


def test_without_cards_auto_takes_the_cpu(script, npu, tmp_path):
    result = script("train.py", *ON_NPU, "--max_steps", 2, "--skip_validation", "--output",
                    tmp_path / "run", NPU_STAND_IN_DEVICES="0", **npu)
    assert result.status == 0, result.err
    assert run_record(result)["device"] == "cpu"


# ---- Eight cards, by the shell scripts ----

@pytest.fixture
def tree(tmp_path):
    """A copy of the package, for its test/output."""
    root = tmp_path / "the package"
    shutil.copytree(str(ROOT), str(root), ignore=shutil.ignore_patterns(
        ".*", "__pycache__", "output", "unit", "e2e", "npu_stand_in"))
    return root


@pytest.fixture
def start_8p(environment, npu, tree, tmp_path):
    """start_8p(arguments...) -> process of test/train_full_8p.sh on npu:0 to npu:7."""
    def start(*arguments, **variables):
        variables.update(npu, PYTHON=sys.executable, MNV3_CHECKED_PYTHON=sys.executable,
                         TMPDIR=str(tmp_path), NPU_STAND_IN_RANKS=str(tmp_path / "ranks"))
        return subprocess.Popen(
            ["bash", str(tree / "test" / "train_full_8p.sh"), "--device=npu", "--batch_size=64",
             *arguments], env=dict(environment, **variables), stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, cwd=str(tmp_path),
        )
    return start


def test_eight_ranks_train_over_hccl_each_on_its_own_card(start_8p, tree, tmp_path):
    process = start_8p("--epochs=1")
    process.stdout, process.stderr = process.communicate(timeout=300)
    result = Result(process)
    assert result.status == 0, result.err
    record = run_record(result)
    assert (record["device"], record["ranks"], record["amp"]) == ("npu", 8, "O2 float16")
    assert sorted((tmp_path / "ranks").read_text().splitlines()) == [
        f"rank {rank} of 8: npu:{rank}" for rank in range(8)]
    output = tree / "test" / "output"
    assert sorted(os.listdir(str(output))) == [str(rank) for rank in range(8)]
    written = sorted(str(path.relative_to(output)) for path in output.rglob("*.pth.tar"))
    assert written == ["0/ckpt/checkpoint.pth.tar", "0/ckpt/model_best.pth.tar"]
    assert cards_in(output / "0" / "ckpt" / checkpoint.LAST) == {"npu:0"}
    assert "Final Train Accuracy" in result.out
    table = subprocess.run([sys.executable, "-m", "mobilenetv3.report", str(output / "0")],
                           cwd=str(ROOT), capture_output=True, text=True).stdout.splitlines()
    head, row = ([cell.strip() for cell in line.split("|")[1:-1]] for line in (table[0], table[2]))
    shown = dict(zip(head, row))
    assert shown["Device"].startswith("npu")
    assert shown["AMP_Type"] == "O2 float16"


def test_eight_ranks_on_seven_cards_fail_and_say_how_many_there_are(start_8p):
    process = start_8p("--epochs=1", NPU_STAND_IN_DEVICES="7")
    out, err = process.communicate(timeout=120)
    assert process.returncode not in (0, None)
    assert "this host has 7" in out + err
    assert "rank 7 failed first" in err.splitlines()[-1]


def test_a_killed_rank_ends_the_job_within_thirty_seconds_and_is_named(start_8p, tmp_path):
    process = start_8p("--epochs=100")
    for line in process.stdout:
        if line.startswith("Epoch: [0][1/"):
            break
    pid = int(next(tmp_path.glob("mobilenetv3.*/pid.5")).read_text())
    killed = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert time.monotonic() - killed < 30
    assert process.returncode == 137
    assert "rank 5 failed first: it was killed by SIGKILL" in err.splitlines()[-1]
