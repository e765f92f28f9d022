"""Says what this host has for training, and one line with the remedy for whatever is wrong.

    python -m mobilenetv3.device                  # as train.py --device auto would find it
    python -m mobilenetv3.device --device npu     # is everything there for that kind of device?

Exit status 0: training can run here on the device asked for; 1: it cannot.
"""
import argparse
import functools
import json
import os
import signal
import subprocess
import sys
from importlib import util
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

from mobilenetv3 import host

PROBE_SECONDS = 180
"""An NPU's first kernel may be compiled for a minute; what takes longer hangs."""

# CANN's compiler is written in Python; without these it ends the process with a core dump (EH9999).
CANN_NEEDS = {
    "numpy": "numpy", "decorator": "decorator", "sympy": "sympy", "cffi": "cffi",
    "google.protobuf": "protobuf", "attr": "attrs", "yaml": "pyyaml", "pathlib2": "pathlib2",
    "scipy": "scipy", "requests": "requests", "psutil": "psutil", "absl": "absl-py",
}
LITTLE_SHARED_MEMORY = 512 << 20
"""Bytes; a batch of 256 images of 224 x 224 is 37 MiB, and each loader process has some ready."""

# In the order of the report.
ROWS = ("python", "numpy", "torch", "torchvision", "timm", "torch_npu", "CANN", "Apex", "driver",
        "cards", "device", "collectives", "AMP", "float16 overflow", "JPEG", "CPUs",
        "shared memory")


class Problem(NamedTuple):
    """Something wrong on this host."""

    what: str
    remedy: str
    stops: bool
    """Whether training on the device asked for cannot run because of it."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}" if self.remedy else self.what


class Report:
    """Facts by name, and problems."""

    def __init__(self):
        self.facts: Dict[str, Any] = {"python": f"{sys.version.split()[0]} ({sys.executable})"}
        self.problems: List[Problem] = []

    @property
    def is_ok(self) -> bool:
        """Whether training can run."""
        return not any(problem.stops for problem in self.problems)

    def text(self) -> str:
        """For people."""
        width = max(map(len, ROWS)) + 2
        facts = dict(self.facts, cards=self._cards())
        lines = [f"{name:{width}}{facts[name]}" for name in ROWS if name in facts]
        lines.append("")
        lines += [f"{'ERROR' if problem.stops else 'note'}: {problem}" for problem in self.problems]
        place = f" on {self.facts['device']}" if "device" in self.facts else ""
        lines.append(f"Training can run here{place}." if self.is_ok
                     else "Training cannot run here as things are.")
        return "\n".join(lines)

    def _cards(self) -> str:
        """Cards of one name together: "npu: 8 x Ascend910B3"."""
        kinds = []
        for kind, names in self.facts.get("cards", {}).items():
            each = (f"{names.count(name)} x {name}" for name in sorted(set(names)))
            kinds.append(f"{kind}: {', '.join(each)}")
        return "; ".join(kinds) or "none"

    def json(self) -> str:
        """For programs."""
        return json.dumps({"ok": self.is_ok, "facts": self.facts,
                           "problems": [problem._asdict() for problem in self.problems]}, indent=2)


def examine(kind: str = "auto") -> Report:
    """Everything that can be told about this host, for a kind of device; raises nothing."""
    report = Report()
    checks = (torch_npu, cann, apex, driver, cpus, shared_memory)
    for check in (*checks, functools.partial(ask_probe, kind=kind)):
        try:
            check(report)
        except Exception as error:  # noqa: BLE001  (one that fails must not hide the others)
            name = getattr(check, "__name__", "PyTorch")
            report.problems.append(Problem(
                f"the check of {name} failed ({type(error).__name__}: {error})", "",
                check not in checks,
            ))
    return report


# ---- In this process: nothing that could end it.


def torch_npu(report: Report) -> None:
    """Ascend's extension of PyTorch, and the Python packages that CANN needs."""
    version = host.installed("torch_npu")
    if not is_there("torch_npu"):
        report.facts["torch_npu"] = "not installed"
        return
    report.facts["torch_npu"] = version or "of unknown version"
    torch = host.installed("torch")
    if torch and not host.is_torch_npu_for(torch):
        report.problems.append(Problem(
            f"torch_npu {version} is not for PyTorch {torch}",
            "install the torch_npu of this PyTorch's version", False
        ))
    missing = [package for module, package in CANN_NEEDS.items() if not is_there(module)]
    if missing:
        report.problems.append(Problem(
            f"CANN needs Python packages that are missing: {', '.join(missing)}",
            f"pip install {' '.join(missing)}", False
        ))


def is_there(module: str) -> bool:
    """Whether a module could be imported; nothing of it is run but the packages around it."""
    try:
        return util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def cann(report: Report) -> None:
    """Ascend's toolkit."""
    script = host.cann_script()
    if not script:
        report.facts["CANN"] = "not found"
        return
    state = "in use" if host.is_cann_sourced() else "not sourced"
    version = host.cann_version(script) or "of unknown version"
    report.facts["CANN"] = f"{version}, {state} ({script})"


def apex(report: Report) -> None:
    """Apex, or what bears its name; nothing here needs it."""
    spec = util.find_spec("apex")
    if spec is None:
        report.facts["Apex"] = "not installed (not needed: O0 to O3 are built in)"
        return
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()]
    version = host.installed("apex")
    if any("def initialize(" in read(folder / "amp" / "frontend.py") for folder in folders):
        whose = "Ascend's" if "ascend" in version else "NVIDIA's"
        report.facts["Apex"] = f"{whose}, {version or 'of unknown version'}"
    elif any((folder / "multi_tensor_apply").is_dir() for folder in folders):
        report.facts["Apex"] = f"NVIDIA's, {version}, without amp (removed in 2025; not needed)"
    else:
        report.facts["Apex"] = f"not Apex, but another package of that name, {version}"
        report.problems.append(Problem(
            f"the package apex {version} is not NVIDIA's Apex", "pip uninstall apex", False
        ))


def read(path: Path) -> str:
    """A text file's content, "" where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def driver(report: Report) -> None:
    """The accelerators' drivers."""
    report.facts["driver"] = host.drivers() or "none found"


def cpus(report: Report) -> None:
    """CPUs, which decode the images."""
    usable, cores = host.usable_cpus(), os.cpu_count()
    report.facts["CPUs"] = f"{usable} usable" + (f" of {cores}" if usable != cores else "")


def shared_memory(report: Report) -> None:
    """The memory through which the ranks of a host may exchange data."""
    free = host.shared_memory()
    if free is None:
        report.facts["shared memory"] = "no /dev/shm"
        return
    report.facts["shared memory"] = f"{free / 2**30:.1f} GiB free in /dev/shm"
    if free < LITTLE_SHARED_MEMORY:
        report.problems.append(Problem(
            f"/dev/shm has only {free >> 20} MiB free: NCCL, and loader processes that are not "
            "forked, die with a bus error when it is full",
            "start the container with --shm-size=8g or --ipc=host", False
        ))


# ---- In another process: PyTorch and the accelerator.


def ask_probe(report: Report, kind: str, seconds: float = PROBE_SECONDS) -> None:
    """Add what `probe` finds, as far as it gets."""
    paths = [str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]
    process = subprocess.Popen(
        [sys.executable, "-m", "mobilenetv3.probe", kind], stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, paths))),
    )
    is_late = False
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        is_late = True
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    except BaseException:  # Ctrl-C
        os.killpg(process.pid, signal.SIGKILL)
        raise
    doing = add_findings(report, out.decode(errors="replace"))
    if process.returncode == 0:
        return
    last = err.decode(errors="replace").strip().splitlines()[-1:]
    last_words = f" (its last words: {last[0]})" if last else ""
    how = f"was busy for {seconds:g} s" if is_late else f"ended {ending(process.returncode)}"
    report.problems.append(Problem(
        f"{doing}: the process {how}{last_words}",
        "see what else is noted here, and the card's own tool (npu-smi info, nvidia-smi)", True
    ))


def add_findings(report: Report, lines: str) -> str:
    """Add what the probe wrote, and return what it said last that it was doing."""
    doing = "starting Python"
    for line in lines.splitlines():
        try:
            finding = json.loads(line)
        except ValueError:  # the process ended while it wrote
            break
        if "doing" in finding:
            doing = finding["doing"]
        elif "fact" in finding:
            report.facts[finding["fact"]] = finding["value"]
        else:
            report.problems.append(Problem(finding["problem"], finding["remedy"], finding["stops"]))
    return doing


def ending(status: int) -> str:
    """How a process ended, in words."""
    if status >= 0:
        return f"with status {status}"
    try:
        return f"by {signal.Signals(-status).name}"
    except ValueError:
        return f"by signal {-status}"


def main(argv=None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        "python -m mobilenetv3.device", description=__doc__.splitlines()[0],
        epilog="Exit status 0: training can run here on the device asked for; 1: it cannot.",
    )
    parser.add_argument("--device", metavar="KIND", default="auto",
                        help="as for train.py: auto, npu, cuda or cpu (default: auto)")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    options = parser.parse_args(argv)
    report = examine(options.device)
    print(report.json() if options.json else report.text())
    return 0 if report.is_ok else 1


if __name__ == "__main__":
    sys.exit(main())
