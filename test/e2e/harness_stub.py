"""A copy of the shell scripts around a stub of train.py, for the tests of the scripts themselves.

The stub writes down how each rank was called, then runs the Python text in the variable STUB, so a
test says what "training" does: good_run(), sys.exit(3), die(9), hang().
"""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

STUB = '''
import json, os, signal, sys, time
from mobilenetv3.logfmt import Accuracy, Best, Run, Throughput, TrainLine
rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
call = dict(argv=sys.argv, cwd=os.getcwd(), pid=os.getpid(), env=dict(os.environ))
calls = os.environ["STUB_CALLS"]
with open(os.path.join(calls, "new." + str(os.getpid())), "w") as file:  # of runs at the same time
    json.dump(call, file)
os.replace(file.name, os.path.join(calls, "call." + str(rank)))

def good_run():
    if rank == 0:
        print(Run("mobilenetv3_large_100", "demo", "cpu", world, 128, 1, "O0", "2", 224, 1).line())
        for step in range(3):
            print(TrainLine(0, step, 3, 0.5, 0.5, 256.0, 256.0, 0.0, 0.0, 7.0 - step, 6.5, 1.0, 1.0,
                            5.0, 5.0, 0.1).line())
        print(Throughput(1150.0).line())
        print(Accuracy(73.5, 91.3).line())
        print(Best(73.5, 0, "ckpt/model_best.pth.tar").line())

def die(number):
    print("last words of rank", rank, flush=True)
    os.kill(os.getpid(), number)

def hang(deaf=()):
    for name in deaf:
        signal.signal(name, signal.SIG_IGN)
    print("hanging", flush=True)
    time.sleep(300)

exec(os.environ.get("STUB", "good_run()"))
'''


class Tree:
    """The copied package, below a folder whose name has spaces and quotes."""

    def __init__(self, folder: Path):
        self.root = folder / "it's a \"copy\" $(x)"
        shutil.copytree(
            str(ROOT / "test"), str(self.root / "test"),
            ignore=shutil.ignore_patterns("output", "unit", "e2e", "__pycache__"),
        )
        shutil.copytree(str(ROOT / "mobilenetv3"), str(self.root / "mobilenetv3"),
                        ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("train.py", "validate.py"):
            (self.root / name).write_text(STUB)
        for name in ("requirements.txt", "1.8_requirements.txt"):
            shutil.copy(str(ROOT / name), str(self.root))
        self.calls = folder / "calls"
        self.calls.mkdir()
        self.output = self.root / "test" / "output"

    def start(self, script, *arguments, cwd=None, **env):
        """Start a script of test/ without waiting for it; an `env` of None unsets a variable."""
        variables = dict(os.environ, STUB_CALLS=str(self.calls), PYTHON=sys.executable,
                         MNV3_CHECKED_PYTHON=sys.executable)
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "ASCEND_DEVICE_ID", "OMP_NUM_THREADS"):
            variables[name] = None
        variables.update(env)
        return subprocess.Popen(
            ["bash", str(self.root / "test" / script), *map(str, arguments)],
            cwd=str(cwd or self.root), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
            env={name: value for name, value in variables.items() if value is not None},
        )

    def run(self, script, *arguments, cwd=None, **env):
        """Run a script to its end; returns an object with returncode, stdout and stderr."""
        return finish(self.start(script, *arguments, cwd=cwd, **env))

    def call(self, rank=0):
        """How a rank's training was called: argv, cwd, pid, env."""
        return json.loads((self.calls / f"call.{rank}").read_text())

    def arguments(self):
        """The arguments that rank 0's training got."""
        return self.call()["argv"][1:]

    def wait_for_ranks(self, count, seconds=60):
        """Wait until that many ranks are running their stub; returns their process ids."""
        end = time.monotonic() + seconds
        while len(list(self.calls.glob("call.*"))) < count:
            assert time.monotonic() < end, "the ranks did not start"
            time.sleep(0.05)
        return [self.call(rank)["pid"] for rank in range(count)]


def copy_package(folder: Path) -> Path:
    """A copy of the whole package, whose test/output is its own; returns `folder`."""
    for name in ("mobilenetv3", "configs", "test"):
        shutil.copytree(str(ROOT / name), str(folder / name), ignore=shutil.ignore_patterns(
            "output", "unit", "e2e", "npu_stand_in", "__pycache__"))
    for name in ("train.py", "requirements.txt", "1.8_requirements.txt"):
        shutil.copy(str(ROOT / name), str(folder))
    return folder


def finish(process, seconds=120):
    """Wait for a started script; its output is complete then."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def is_running(pid):
    """Whether a process is there and not merely waiting to be collected."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"
