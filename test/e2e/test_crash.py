"""Kills at random moments, in short; `python test/e2e/crash.py` makes as many as one likes."""
import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow


def test_a_run_that_is_killed_three_times_ends_as_one_that_was_left_alone():
    process = subprocess.run(
        [sys.executable, str(ROOT / "test" / "e2e" / "crash.py"), "--kills", "3", "--inside", "1"],
        capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, process.stdout + process.stderr
    rows = [line.split(" | ") for line in process.stdout.splitlines() if " | " in line][1:]
    assert len(rows) >= 3
    assert all(row[-1] == "yes |" for row in rows)
    assert any(row[4] == "yes" for row in rows)  # inside the write of a checkpoint
    assert any(row[5].startswith("epoch") for row in rows)  # something had been saved
