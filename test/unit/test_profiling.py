"""--profile: phases, trace and summary; nothing where it is off."""
import contextlib
import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mobilenetv3 import device, engine, profiling

CPU = device.select("cpu")
ROOT = Path(__file__).resolve().parents[2]


def steps(profile, count):
    layer = torch.nn.Linear(64, 64)
    for _ in range(count):
        with profile.phase("data wait"):
            time.sleep(0.02)
        with profile.phase("forward"):
            loss = layer(torch.randn(8, 64)).sum()
        with profile.phase("backward"):
            loss.backward()
        with profile.phase("optimizer"):
            layer.zero_grad()
        profile.step()


def test_a_profile_has_a_trace_and_says_where_the_time_went(tmp_path):
    lines = []
    profile = profiling.Profile(CPU, tmp_path, 3, lines.append, warmup=2)
    steps(profile, 8)
    summary = (tmp_path / "profile" / "summary.txt").read_text()
    assert "profile of 3 steps" in summary
    shown = {line[:20].strip(): line[20:].split() for line in summary.splitlines()}
    # The wait is most of a step here, and cannot be shorter than asked for.
    assert float(shown["data wait"][0]) >= 20.0
    assert float(shown["data wait"][1].rstrip("%")) > 50
    parts = [float(shown[name][0]) for name in (*profiling.PHASES, "other")]
    assert abs(sum(parts) - float(shown["whole step"][0])) < 0.05  # five roundings to 0.01 ms
    assert any("profile of 3 steps" in line for line in lines)
    if device.TORCH_VERSION < (1, 9):
        return  # phases only
    assert "addmm" in summary
    with gzip.open(str(tmp_path / "profile" / "rank0.json.gz")) as file:
        names = {event.get("name") for event in json.load(file)["traceEvents"]}
    assert {f"step: {name}" for name in profiling.PHASES} <= names


def test_a_run_that_ends_before_the_first_watched_step_does_not_crash_the_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, pathlib\n"
        "from mobilenetv3 import device, profiling\n"
        "import torch\n"
        "profile = profiling.Profile(device.select('cpu'), pathlib.Path(sys.argv[1]), 3, print,"
        " warmup=1)\n"
        "torch.ones(3).sum()\n"
        "profile.step()\n"
        "profile.close()\n")
    done = subprocess.run([sys.executable, str(script), str(tmp_path)], cwd=str(ROOT),
                          env=dict(os.environ, PYTHONPATH=str(ROOT)), stdout=subprocess.PIPE)
    assert done.returncode == 0  # it was killed by SIGSEGV
    assert b"over before the steps" in done.stdout


def test_a_run_that_ends_early_writes_what_there_is(tmp_path):
    lines = []
    profile = profiling.Profile(CPU, tmp_path, 100, lines.append, warmup=1)
    steps(profile, 3)
    profile.close()
    profile.close()
    assert "profile of 2 steps" in (tmp_path / "profile" / "summary.txt").read_text()
    assert sum("summary.txt" in line for line in lines) == 1


def test_a_run_without_the_steps_to_watch_says_so(tmp_path):
    lines = []
    profile = profiling.Profile(CPU, tmp_path, 3, lines.append, warmup=5)
    steps(profile, 2)
    profile.close()
    assert len(lines) == 1
    assert "over before" in lines[0]
    assert not (tmp_path / "profile").exists()


@pytest.mark.parametrize("time_of", ["self_device_time_total", "self_cuda_time_total"])
def test_a_kernel_is_not_counted_again_for_the_operator_that_started_it(time_of):
    kinds = torch.autograd.DeviceType

    def row(key, kind, microseconds, **more):
        return SimpleNamespace(key=key, device_type=kind, count=2, self_cpu_time_total=7,
                               **{time_of: microseconds}, **more)
    found = profiling._own_times([
        row("aten::mm", kinds.CPU, 30), row("gemm_kernel", kinds.CUDA, 30),
        row("c10d::allreduce_", kinds.CPU, 20), row("ncclDevKernel_AllReduce", kinds.CUDA, 20),
        row("nccl:all_reduce", kinds.CUDA, 20, is_user_annotation=True),
        row("step: forward", kinds.CUDA, 50),
    ])
    assert [name for name, _, _ in found] == ["gemm_kernel", "ncclDevKernel_AllReduce"]
    assert [own for _, own, _ in found] == pytest.approx([30e-6, 20e-6])


def test_an_exchange_between_ranks_is_communication():
    names = ["nccl:all_reduce", "gloo:all_reduce", "c10d::allreduce_", "hcom_allReduce__1",
             "ncclDevKernel_AllReduce_Sum_f32_RING_LL"]
    assert all(profiling._is_exchange(name) for name in names)
    assert not any(profiling._is_exchange(name) for name in ("aten::conv2d", "aten::sum"))


def test_an_engine_that_is_not_watched_enters_nothing():
    off = engine.Unprofiled()
    assert isinstance(off.phase("forward"), contextlib.nullcontext)
    assert off.phase("forward") is off.phase("backward")
    assert off.step() is None
