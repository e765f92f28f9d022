"""Memory that is kept: seen from outside, as page faults."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
STEPS = """
import resource, sys
from mobilenetv3 import heap
kept = heap.keep_freed() if sys.argv[1] == "keep" else None
def step():
    return len(b"x" * (64 << 20))  # every page is written
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
before = faults()
for _ in range(5):
    step()
print(kept, faults() - before)
"""


def run(how, **variables):
    env = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", STEPS, how], cwd=str(ROOT), check=True,
                          stdout=subprocess.PIPE, env=dict(env, **variables))
    kept, faults = done.stdout.split()
    return kept.decode(), int(faults)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other C libraries")
def test_freed_memory_is_used_again_without_asking_the_kernel():
    kept, faults = run("keep")
    if kept != "True":
        pytest.skip("this C library has no mallopt")
    # Five times 64 MB are 81,920 pages of 4 kB, fewer where the kernel gives large ones.
    assert faults < 1000
    assert faults <= run("leave")[1]


def test_who_has_set_the_allocator_keeps_it():
    assert run("keep", MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
