"""How the stand-in NPU is built and loaded."""
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from npu_process import STAND_IN, build, environment

BUILD = str(STAND_IN / "torch_npu" / "_build.py")


def run(*command, **variables):
    return subprocess.run(
        [sys.executable, *command], env=environment(**variables), capture_output=True,
        text=True, timeout=120,
    )


@pytest.fixture
def needs_build():
    if build():
        pytest.skip(build())


def test_the_test_process_itself_has_no_npu():
    assert not hasattr(torch, "npu") or "stand_in" not in str(torch.npu)


def test_a_missing_compiler_is_told_in_one_line_with_status_77(tmp_path):
    done = run(BUILD, CXX="no-such-compiler", NPU_STAND_IN_CACHE=str(tmp_path))
    assert done.returncode == 77
    assert len(done.stderr.strip().splitlines()) == 1
    old = "the stand-in NPU needs PyTorch 2.6 or newer"
    assert old in done.stderr or "there is no no-such-compiler" in done.stderr


def test_a_killed_build_stops_no_other_and_a_failing_one_leaves_nothing_behind(
        needs_build, tmp_path):
    compiler, cache = tmp_path / "c++", tmp_path / "cache"

    def replace_compiler(action):
        compiler.write_text(
            f'#!/bin/sh\ncase "$*" in *all.cpp*) {action} ;; esac\nexec c++ "$@"\n')
        compiler.chmod(0o755)

    replace_compiler("exec sleep 600")
    variables = {"CXX": str(compiler), "NPU_STAND_IN_CACHE": str(cache)}
    first = subprocess.Popen([sys.executable, BUILD], env=environment(**variables),
                             start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(cache.glob("build.*")):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert list(cache.glob("build.*"))

    replace_compiler("echo 'all.cpp:1:1: fatal error: out of ink' >&2; exit 1")
    done = run(BUILD, **variables)
    assert done.returncode == 1
    assert "does not compile" in done.stderr and "out of ink" in done.stderr
    assert os.listdir(str(cache)) == ["lock"]


@pytest.mark.parametrize("given, status, told", [
    ("3", 0, "3 True"), ("99", 1, "expected 0 to 16"),
])
def test_the_number_of_cards_can_be_chosen(needs_build, given, status, told):
    done = run("-c", "import torch, torch_npu; print(torch.npu.device_count(), "
                     "torch.npu.is_available())", NPU_STAND_IN_DEVICES=given)
    assert (done.returncode, told in done.stdout + done.stderr) == (status, True), done.stderr


def test_pytorch_loads_it_by_itself_where_it_is_installed(needs_build, tmp_path):
    """As it loads torch_npu of 2.5 and newer: plain `import torch` brings the device."""
    installed = tmp_path / "torch_npu-0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: torch_npu\nVersion: 0\n")
    (installed / "entry_points.txt").write_text("[torch.backends]\nnpu = torch_npu:_autoload\n")
    done = run("-c", "import torch; print(torch.ones(1, device='npu').device)",
               PYTHONPATH=os.pathsep.join([str(STAND_IN), str(tmp_path)]),
               TORCH_DEVICE_BACKEND_AUTOLOAD="1")
    assert done.stdout == "npu:0\n", done.stderr
