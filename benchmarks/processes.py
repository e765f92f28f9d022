"""Scripts as processes of their own, with as many threads each as a benchmark gives to all."""
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mobilenetv3 import logfmt  # noqa: E402

RANK_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR",
                  "MASTER_PORT")


class Failed(Exception):
    """A process that did not end well; its text says how."""


def environment(threads: int = 1) -> dict:
    """The variables of a process that is one of nobody's ranks."""
    kept = {name: value for name, value in os.environ.items() if name not in RANK_VARIABLES}
    return dict(kept, OMP_NUM_THREADS=str(threads))


def run(*command, threads: int = 1, cpu_time: bool = False) -> str:
    """Run Python with these arguments; returns what was printed.

    Args:
        cpu_time: what loops.py measures is CPU time.

    Raises:
        Failed: it ended with another status than 0.
    """
    env = dict(environment(threads), MEASURE_CPU_TIME=str(int(cpu_time)))
    done = subprocess.run([sys.executable, *map(str, command)], env=env, capture_output=True,
                          text=True)
    if done.returncode:
        script = next((str(part) for part in command if str(part).endswith(".py")), command[0])
        raise Failed(f"{Path(script).name} ended with status {done.returncode}: "
                     f"{done.stderr.strip()[-400:]}")
    return done.stdout


def fps(text: str) -> float:
    """The last FPS in what train.py printed.

    Raises:
        Failed: there is none.
    """
    return _last(text, logfmt.Throughput, "FPS").fps


def acc1(text: str) -> float:
    """The last validation's Acc@1 in what train.py printed, of the weights that count.

    Raises:
        Failed: there is none.
    """
    return _last(text, logfmt.Accuracy, "accuracy").acc1


def _last(text: str, kind: type, what: str):
    """The last record of a kind in what train.py printed."""
    found = [record for record in map(logfmt.parse, text.splitlines()) if isinstance(record, kind)]
    if not found:
        raise Failed(f"train.py printed no {what}")
    return found[-1]
