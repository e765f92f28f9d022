"""A training that is killed goes on by itself, from its newest checkpoint."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SMALL
from harness_stub import copy_package

from mobilenetv3 import checkpoint

pytestmark = pytest.mark.slow


def running(name):
    """Process id of the Python that runs this script."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().decode().split("\0")
        except (OSError, UnicodeDecodeError):
            continue
        if words[1:2] == [name]:
            return int(folder.name)
    raise AssertionError(f"{name} is not running")


def test_a_killed_training_is_restarted_and_goes_on_to_its_end(environment, tmp_path, metrics):
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    package, folder = copy_package(tmp_path / "package"), tmp_path / "run"
    process = subprocess.Popen(
        ["bash", str(package / "test" / "train_full_8p.sh"), "--nproc=1", "--max_restarts=1",
         "--epochs=2", f"--output={folder}", "--", *map(str, SMALL), "--batch_size", "128"],
        env=dict(environment, PYTHON=sys.executable, MNV3_CHECKED_PYTHON=sys.executable),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        end = time.monotonic() + 60
        while not (folder / checkpoint.LAST).exists():
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.05)
        os.kill(running(str(package / "train.py")), signal.SIGKILL)
        out, err = process.communicate(timeout=100)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, err
    assert "rank 0 was killed by SIGKILL" in err and "restart 1 of 1" in err
    assert out.count("=> run ") == 2
    assert re.search(r"^=> resumed from .* \(epoch 1\)$", out, re.M)
    assert [record["epoch"] for record in metrics(folder)] == [0, 1]
    assert "Final Train Accuracy : " in out
