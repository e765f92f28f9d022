"""Runs tests in a process that has the stand-in NPU: in the test process "auto" would be npu, too.

    @on_npu
    def test_something():
        ...                       # runs in the other process; arguments must be JSON

One process serves all such tests. Each starts on card 0 with its host syncs counted from 0. With
variables, @on_npu(NPU_STAND_IN_SATURATES="1"), there is one process for those that give the same.
"""
import ast
import atexit
import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import traceback
import types
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
STAND_IN = ROOT / "test" / "npu_stand_in"
SECONDS = 120  # for one test
_IS_OTHER = "NPU_STAND_IN_PROCESS"


def environment(**variables):
    """Environment of a process that finds the stand-in as torch_npu, and nothing of a launcher."""
    env = {key: value for key, value in os.environ.items()
           if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
                          "ASCEND_DEVICE_ID")}
    folders = [str(STAND_IN), str(ROOT), str(ROOT / "test" / "unit"), env.get("PYTHONPATH", "")]
    env.update(PYTHONPATH=os.pathsep.join(filter(None, folders)), OMP_NUM_THREADS="1",
               TORCH_DEVICE_BACKEND_AUTOLOAD="0")
    return dict(env, **variables)


@functools.lru_cache(maxsize=None)
def build():
    """Build the stand-in; returns why that is not possible here, or nothing. Errors are raised."""
    done = subprocess.run(
        [sys.executable, str(STAND_IN / "torch_npu" / "_build.py")], env=environment(),
        capture_output=True, text=True,
    )
    # Where there is a compiler for sure, as in CI, a skip would hide that nothing was tested.
    may_skip = os.environ.get("NPU_STAND_IN_REQUIRED") != "1"
    if done.returncode == 77 and may_skip:
        return done.stderr.strip().splitlines()[-1]
    if done.returncode:
        raise RuntimeError(done.stderr)
    return ""


def on_npu(test=None, **variables):
    """Decorator: run this test in the other process."""
    if test is None:
        return functools.partial(on_npu, **variables)
    if os.environ.get(_IS_OTHER):
        return test

    @functools.wraps(test)
    def run(**arguments):
        import pytest

        missing = build()
        if missing:
            pytest.skip(missing)
        other = _other(tuple(sorted(variables.items())))
        failure = other.call(test.__code__.co_filename, test.__name__, arguments)
        if failure:
            pytest.fail(failure, pytrace=False)
    return run


class _Other:
    """The process with the stand-in, which lives as long as it does not crash."""

    def __init__(self, variables):
        self.process = subprocess.Popen(
            [sys.executable, __file__], env=environment(**variables, **{_IS_OTHER: "1"}),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        atexit.register(self.process.kill)

    def call(self, file, name, arguments):
        """Run a test; returns what went wrong, or nothing."""
        request = json.dumps({"file": file, "name": name, "arguments": arguments})
        timer = threading.Timer(SECONDS, self.process.kill)
        timer.start()
        try:
            self.process.stdin.write(request + "\n")
            self.process.stdin.flush()
            answer = self.process.stdout.readline()
        finally:
            timer.cancel()
        if answer:
            return json.loads(answer)
        _other.cache_clear()
        return f"the process ended in this test, status {self.process.wait()}"


@functools.lru_cache(maxsize=None)
def _other(variables):
    return _Other(dict(variables))


@functools.lru_cache(maxsize=None)
def _load(file):
    """Import a test file, with pytest's assertions, which tell the values."""
    source = Path(file).read_bytes()
    tree = ast.parse(source)
    with contextlib.suppress(ImportError):
        from _pytest.assertion.rewrite import rewrite_asserts

        rewrite_asserts(tree, source)
    module = types.ModuleType(Path(file).stem)
    module.__file__ = file
    exec(compile(tree, file, "exec"), module.__dict__)
    return module


def _serve():
    """The other process: read requests, run tests, answer."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a test prints must not be taken for an answer
    import torch
    import torch_npu  # noqa: F401

    for line in sys.stdin:
        request = json.loads(line)
        torch.npu.set_device(0)
        torch.npu.reset_host_syncs()
        failure = ""
        try:
            getattr(_load(request["file"]), request["name"])(**request["arguments"])
        except BaseException:  # pytest.raises fails with something that is no Exception
            failure = traceback.format_exc()
        answers.write(json.dumps(failure) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
