"""A run that is asked to end saves and says so; a rank that hangs is named with its step."""
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import QUICK, ROOT

from mobilenetv3 import checkpoint

pytestmark = pytest.mark.slow
SMALL = (*QUICK, "--model", "mobilenetv3_small_050", "--print_freq", 1)


def start(environment, *arguments, **variables):
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *map(str, arguments)],
        env=dict(environment, **variables), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True)


def read_until(process, start_of_line):
    for line in process.stdout:
        if line.startswith(start_of_line):
            return
    raise AssertionError(f"no {start_of_line!r}: {process.stderr.read()}")


def test_a_run_that_sigterm_ended_goes_on_to_the_weights_of_one_that_never_stopped(
        environment, script, tmp_path, metrics):
    folder, common = tmp_path / "run", (*SMALL, "--epochs", 1, "--workers", 2, "--drop_path", 0.2)
    process = start(environment, *common, "--output", folder)
    read_until(process, "Epoch: [0][5/")
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 128 + signal.SIGTERM
    told = err.splitlines()[-1]
    assert told.startswith(f"train.py: interrupted by SIGTERM; saved in {folder} (epoch 0, step ")
    assert "--resume auto" in told

    resumed = script("train.py", *common, "--output", folder, "--resume", "auto")
    assert resumed.status == 0, resumed.err
    whole = script("train.py", *common, "--output", tmp_path / "whole")
    assert whole.status == 0, whole.err
    states = [checkpoint.load(path / checkpoint.LAST) for path in (folder, tmp_path / "whole")]
    for name, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][name]), name
    losses = [metrics(path)[0]["train_loss"] for path in (folder, tmp_path / "whole")]
    assert losses[0] == losses[1]


def test_a_rank_that_hangs_is_named_with_its_step(environment, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    ranks = [start(environment, *SMALL, "--output", tmp_path / "run", "--epochs", 50,
                   "--distributed", "--world_size", 2, "--dist_rank", rank, "--dist_url", url,
                   "--dist_timeout", 15) for rank in range(2)]
    try:
        read_until(ranks[0], "Epoch: [1][3/")  # places are told every 1.5 s
        os.kill(ranks[1].pid, signal.SIGSTOP)
        _, err = ranks[0].communicate(timeout=60)
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert ranks[0].returncode == 1
    told = err.strip().splitlines()[-1]
    assert "another rank stopped answering" in told
    assert "behind are rank 1: " in told and ", step " in told
