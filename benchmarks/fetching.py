"""Loader processes: the CPU time they take, and what a rank does with their batches."""
import os
import sys
import time
from pathlib import Path
from typing import Iterable

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mobilenetv3.data import slots  # noqa: E402

QUEUE = slots.AHEAD
"""Batches that PyTorch's loader keeps ready for each worker; this is PyTorch's own choice, too."""


def cpu_seconds(workers: Iterable[int]) -> float:
    """CPU time that this process and these others have had so far."""
    return time.process_time() + sum(map(of_process, workers))


def of_process(process: int) -> float:
    """CPU time that a process on Linux has had so far, in steps of a hundredth of a second."""
    # The name in brackets may have spaces; after it come state, ... user and system time.
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def taken(batch):
    """A batch in memory of its own, as pinning it for a card would have it: images and labels."""
    images, labels = batch.opened()[:2] if isinstance(batch, slots.Parked) else batch[:2]
    return images.clone(), labels
