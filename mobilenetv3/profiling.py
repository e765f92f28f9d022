"""--profile: where the time of a training step goes, as a trace and as a table.

Rank 0 watches some steps after a warm-up. Each of their phases ends when the device has done what
the phase asked of it, so that the time is the phase's own; for that the steps are a little slower
than others. The trace opens in https://ui.perfetto.dev and chrome://tracing; before PyTorch 1.9
there is none, and no table of operators.
"""
import contextlib
import gzip
import shutil
import sys
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch.autograd.profiler import record_function

from mobilenetv3.device import TORCH_VERSION, Device

WARMUP = 5
"""Steps before those that are watched."""
PHASES = ("data wait", "forward", "backward", "optimizer")
_EXCHANGES = ("allreduce", "all_reduce", "allgather", "all_gather", "broadcast", "c10d::")
_TOP = 12


class Profile:
    """Watches steps; the engine tells it what begins and when a step is over.

    Args:
        folder: of the run; the trace and the summary go to its folder profile/.
        steps: number of steps to watch.
    """

    def __init__(self, device: Device, folder: Path, steps: int, log: Callable[[str], None],
                 warmup: int = WARMUP):
        self.device, self.folder, self.steps, self.log = device, folder / "profile", steps, log
        self._until_start = warmup
        self._profiler: Any = None
        self._is_over = False
        self._seconds: Dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._watched, self._started = 0, 0.0

    def phase(self, name: str):
        """A context for one of PHASES."""
        return contextlib.nullcontext() if self._profiler is None else self._timed(name)

    @contextlib.contextmanager
    def _timed(self, name: str):
        started = time.perf_counter()
        with record_function(f"step: {name}"):
            yield
            self.device.synchronize()
        self._seconds[name] += time.perf_counter() - started

    def step(self) -> None:
        """A step is over."""
        if self._is_over:
            return
        if self._profiler is None:
            self._until_start -= 1
            if self._until_start <= 0:
                self._start()
            return
        self._watched += 1
        if self._watched == self.steps:
            self.close()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._profiler = _profiler(self.device, self.folder)
        self._profiler.__enter__()
        self.device.synchronize()
        self._started = time.perf_counter()

    def close(self) -> None:
        """Write what has been watched; after the last step, or where the run ends before it."""
        if self._is_over:
            return
        self._is_over = True
        if self._profiler is None or not self._watched:
            if self._profiler is not None:  # still on when the process ends, PyTorch's crashes
                self._profiler.__exit__(None, None, None)
                self._profiler = None
            self.log("=> --profile: the run was over before the steps that it was to watch")
            return
        self.device.synchronize()
        seconds = time.perf_counter() - self._started
        profiler, self._profiler = self._profiler, None
        profiler.__exit__(None, None, None)
        trace = ""
        # torch_npu's writes files of its own instead, and 1.8 has phases only.
        if hasattr(profiler, "key_averages"):
            trace = "rank0.json.gz"
            plain = self.folder / "rank0.json"
            profiler.export_chrome_trace(str(plain))
            with open(str(plain), "rb") as read, gzip.open(str(self.folder / trace), "wb") as to:
                shutil.copyfileobj(read, to)
            plain.unlink()
        lines = self._summary(seconds, profiler)
        (self.folder / "summary.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        for line in lines:
            self.log(f"=> {line}" if line else line)
        found = f", trace: {self.folder / trace}" if trace or not self.device.is_builtin else ""
        self.log(f"=> --profile: {self.folder / 'summary.txt'}{found}")

    def _summary(self, seconds: float, profiler: Any) -> List[str]:
        phases = dict(self._seconds, other=max(0.0, seconds - sum(self._seconds.values())))
        lines = [f"profile of {self._watched} steps, each phase waited for",
                 f"{'':22}ms/step  share"]
        lines += [_row(name, spent / self._watched, spent / seconds)
                  for name, spent in phases.items()]
        lines.append(_row("whole step", seconds / self._watched, 1.0))
        if not hasattr(profiler, "key_averages"):
            return lines
        operators = _own_times(profiler.key_averages())
        total = sum(own for _, own, _ in operators) or 1.0
        exchange = sum(own for name, own, _ in operators if _is_exchange(name))
        lines.append(_row("communication", exchange / self._watched, exchange / seconds)
                     + "  (within the phases, beside other work)")
        lines += ["", "operators by their own time", f"{'':46}ms/step  share  calls/step"]
        for name, own, calls in operators[:_TOP]:
            lines.append(f"{name[:42]:44}{own / self._watched * 1e3:9.3f} {own / total:6.1%} "
                         f"{calls / self._watched:8.1f}")
        return lines


def _row(name: str, seconds: float, share: float) -> str:
    return f"{name:20}{seconds * 1e3:9.2f} {share:6.1%}"


def _profiler(device: Device, folder: Path):
    """PyTorch's profiler, or that of the package that brings the device."""
    if TORCH_VERSION < (1, 9):  # 1.8's takes many minutes to sort the events of two steps
        return contextlib.nullcontext()
    outer = None
    if not device.is_builtin:
        package = sys.modules[device.module.__name__.partition(".")[0]]
        outer = getattr(package, "profiler", None)
    source = outer or torch.profiler
    kinds = [getattr(source.ProfilerActivity, kind, None) for kind in ("CPU", device.type.upper())]
    options = {"activities": list({kind: None for kind in kinds if kind is not None})}
    if outer is not None:
        options["on_trace_ready"] = outer.tensorboard_trace_handler(str(folder))
    return source.profile(**options)


def _own_times(averages) -> List[Tuple[str, float, int]]:
    """(name, seconds of its own, calls) of all operators, or on a card of its kernels; longest
    first."""
    # A kernel's time is in its own row, in that of the operator that started it, and in that of a
    # range around both.
    kernels = [entry for entry in averages if entry.device_type != torch.autograd.DeviceType.CPU
               and not getattr(entry, "is_user_annotation", False)]
    # Its name since 2.5, the one before, and for the CPU.
    for name in ("self_device_time_total", "self_cuda_time_total", "self_cpu_time_total"):
        found = [(entry.key, getattr(entry, name, 0) * 1e-6, entry.count)
                 for entry in kernels or averages
                 if not entry.key.startswith(("step: ", "ProfilerStep"))]
        if any(own for _, own, _ in found):
            return sorted(found, key=lambda row: -row[1])
    return []


def _is_exchange(name: str) -> bool:
    return any(part in name.lower() for part in _EXCHANGES)
