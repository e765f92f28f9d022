"""This host, as far as it can be told without PyTorch: Ascend's CANN, drivers, CPUs, shared memory.

Nothing here starts an accelerator, and all of it answers in a moment.
"""
import glob
import os
import platform
import re
import shlex
from importlib import metadata
from typing import Iterator, NamedTuple, Optional

SOURCE_USUAL = "source /usr/local/Ascend/ascend-toolkit/set_env.sh"

# Where CANN says it is; test/env_npu.sh looks at the same places in the same order.
HOME_VARIABLES = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_HOME")
INFO_FILES = ("/etc/Ascend/ascend_cann_install.info", "~/Ascend/ascend_cann_install.info")
FOLDERS = ("/usr/local/Ascend", "~/Ascend")
# Since CANN 8.5; before; the edition without compilers.
EDITIONS = ("cann", "ascend-toolkit", "nnae")

DRIVER_INFO = "/etc/ascend_install.info"
NVIDIA_VERSION = "/proc/driver/nvidia/version"
CGROUPS = "/sys/fs/cgroup"
DRIVER_LIBRARIES = ("libascend_hal.so", "libdcmi.so", "libdrvdsmi_host.so")


class Fault(NamedTuple):
    """Something that does not work here."""

    what: str
    remedy: str
    is_meant: bool = True
    """Whether something on this host says that it was meant to be used."""

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


def cann_script() -> str:
    """Path of CANN's set_env.sh, or "" where there is none."""
    for root in _cann_roots():
        root = os.path.expanduser(root)
        folders = [root] + [os.path.join(root, edition) for edition in EDITIONS]
        parent = os.path.dirname(root.rstrip("/"))
        if os.path.basename(parent) in EDITIONS:  # of .../ascend-toolkit/latest
            folders.append(parent)
        for folder in folders:
            path = os.path.join(folder, "set_env.sh")
            if os.path.isfile(path):
                return path
    return ""


def _cann_roots() -> Iterator[str]:
    for name in HOME_VARIABLES:
        if os.environ.get(name):
            yield os.environ[name]
    for path in INFO_FILES:
        for line in read(path).splitlines():
            key, _, value = line.partition("=")
            if key.strip().endswith(("Install_Path", "InstallPath")) and value.strip():
                yield value.strip()
    yield from FOLDERS


def is_cann_sourced() -> bool:
    """Whether set_env.sh has prepared this process: CANN's home is in its library path."""
    homes = [os.environ[name] for name in HOME_VARIABLES[:2] if os.environ.get(name)]
    homes = [home.rstrip("/") + "/" for path in homes for home in (path, os.path.realpath(path))]
    libraries = os.environ.get("LD_LIBRARY_PATH", "").split(":")
    return any(os.path.isdir(home) and path.startswith(home)
               for home in homes for path in libraries)


def cann_version(script: str) -> str:
    """Version of the CANN that a set_env.sh belongs to, such as "8.5.0", or ""."""
    folder = glob.escape(os.path.dirname(script))
    for pattern in ("ascend_*_install.info", "version.info", "*/version.info"):
        for below in ("*-linux", "latest/*-linux", ".", "latest"):
            for path in sorted(glob.glob(os.path.join(folder, below, pattern))):
                text = read(path)
                for key in ("version_dir", "version"):
                    found = re.search(rf"^{key}\s*=\s*(\S+)", text, re.MULTILINE | re.IGNORECASE)
                    if found:
                        return found.group(1)
    return ""


def drivers() -> str:
    """Versions of the accelerators' drivers, such as "Ascend 24.1.0, NVIDIA 550.54", or ""."""
    found = re.search(r"^Driver_Install_Path_Param=(.+)$", read(DRIVER_INFO), re.MULTILINE)
    ascend = os.path.join(found.group(1).strip() if found else FOLDERS[0], "driver/version.info")
    version = {
        "Ascend": re.search(r"^Version=(\S+)", read(ascend), re.MULTILINE),
        "NVIDIA": re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)", read(NVIDIA_VERSION)),
    }
    return ", ".join(f"{name} {match.group(1)}" for name, match in version.items() if match)


def has_ascend_cards() -> bool:
    """Whether the driver shows Ascend cards to this process, or to its container."""
    return bool(glob.glob("/dev/davinci[0-9]*"))


def has_nvidia_cards() -> bool:
    """Whether NVIDIA's driver shows cards to this process, or to its container."""
    return bool(glob.glob("/dev/nvidia[0-9]*"))


def torch_npu_fault(error: BaseException, torch: str) -> Fault:
    """Why importing torch_npu failed, and what to do; torch is the version of PyTorch."""
    reason = first_line(error).rstrip(".")
    library = re.search(r"(lib[\w.+-]+?\.so[\w.]*): cannot open shared object", reason)
    if library and library.group(1) in DRIVER_LIBRARIES:
        remedy = ("the Ascend driver is missing: install it, or in a container mount "
                  "/usr/local/Ascend/driver and have its lib64 folders in LD_LIBRARY_PATH")
    elif library:
        remedy = _cann_remedy()
    elif "No module named 'torch_npu" in reason:
        remedy = ("the installation is incomplete, or a folder named torch_npu in the current "
                  "folder is taken for it: reinstall it, or start from elsewhere")
    elif "Two accelerators" in reason:
        remedy = ("with this PyTorch it cannot be used beside another kind of card: use that one, "
                  "or install the CPU build of PyTorch")
    elif "undefined symbol" in reason or not is_torch_npu_for(torch):
        remedy = (f"it was built for another PyTorch than {torch}: install the torch_npu of this "
                  "PyTorch's version")
    else:
        remedy = '`python -c "import torch, torch_npu"` shows where it fails'
    return Fault(f"{_torch_npu()} cannot be imported ({reason})", remedy)


def is_torch_npu_for(torch: str) -> bool:
    """Whether the installed torch_npu has PyTorch's version: 2.9.0.post4 goes with 2.9.0+cpu."""
    own = installed("torch_npu")
    return not own or own.split(".")[:2] == torch.split(".")[:2]


def _cann_remedy() -> str:
    script = cann_script()
    if not script:
        return f"CANN was not found here: install CANN's toolkit, then run `{SOURCE_USUAL}` first"
    if is_cann_sourced():
        version = f" {cann_version(script)}".rstrip()
        return (f"CANN{version} in {os.path.dirname(script)} does not have it: install the CANN "
                "that belongs to this torch_npu")
    return f"CANN is here, but not on the library path: run `source {shlex.quote(script)}` first"


def no_ascend_card_fault(error: Optional[BaseException] = None) -> Fault:
    """Why torch_npu works and yet sees no card; the error is what asking for the cards raised."""
    what = f"{_torch_npu()} works, but sees no card"
    if error is not None:
        what += f" ({first_line(error)})"
    visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
    if visible is not None:
        return Fault(what, f"ASCEND_RT_VISIBLE_DEVICES is {visible!r}: unset it, or name a card")
    if not has_ascend_cards():
        return Fault(what, "there is no /dev/davinci*: install the Ascend driver, or in a "
                     "container pass the cards in with /dev/davinci_manager, /dev/devmm_svm and "
                     "/dev/hisi_hdc")
    return Fault(what, "`npu-smi info` shows the cards' state; this user must be in the driver's "
                 "group, HwHiAiUser")


def no_cuda_card_fault(torch: str, is_cuda_build: bool, reason: str) -> Fault:
    """Why PyTorch sees no CUDA card; the reason is what it warned of, if it did."""
    is_meant = has_nvidia_cards()
    if not is_cuda_build:
        return Fault(f"PyTorch {torch} is built without CUDA",
                     "install a CUDA build of PyTorch, see https://pytorch.org", is_meant)
    what = f"PyTorch {torch} sees no CUDA card"
    if reason.strip():
        what += f" ({first_line(reason)})"
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and is_meant:
        return Fault(what, f"CUDA_VISIBLE_DEVICES is {visible!r}: unset it, or name a card")
    return Fault(what, "`nvidia-smi` must show a card; in a container, start it with the cards "
                 "(docker run --gpus all)", is_meant)


def installed(name: str) -> str:
    """Version of an installed package, "" where there is none."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _torch_npu() -> str:
    return f"torch_npu {installed('torch_npu')}".strip()


def first_line(error) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__


def _own_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Taken before a device is opened: with CPU_AFFINITY_CONF torch_npu then binds the process to its
# card's share of the CPUs, and the rest would look as if it were not there.
_AT_START = _own_cpus()


def usable_cpus() -> int:
    """CPUs that the processes of this job may use together: affinity and cgroup quota, 1 or more.

    The affinity is that at the import of this module.
    """
    quota = _cgroup_quota()
    return max(1, min(_AT_START, int(quota)) if quota else _AT_START)


def _cgroup_quota() -> Optional[float]:
    """CPUs' worth of time that the cgroup allows, None for no limit."""
    limits = []
    for folder in cgroup_folders("cpu"):  # the limits of the groups around it count, too
        old = folder + "/cpu.cfs_"  # version 1
        limits.append(read(folder + "/cpu.max").split())
        limits.append([*read(old + "quota_us").split(), *read(old + "period_us").split()])
    quotas = [int(limit[0]) / int(limit[1]) for limit in limits
              if len(limit) == 2 and all(part.isdigit() for part in limit) and int(limit[1])]
    return min(quotas) if quotas else None


def cgroup_folders(controller: str) -> Iterator[str]:
    """The folders of this process's control group and of those around it, which may not exist.

    Those of cgroups' version 2 come first. In a container the path may be the host's: then only the
    last, the root, is there.

    Args:
        controller: "cpu" or "cpuset".
    """
    groups = read("/proc/self/cgroup")
    old = rf"^\d+:(?:[^:\n]*,)?{controller}(?:,[^:\n]*)?:(/.*)$"
    for line, root in ((r"^0::(/.*)$", CGROUPS), (old, f"{CGROUPS}/{controller}")):
        found = re.search(line, groups, re.MULTILINE)
        folder = root + (found.group(1).rstrip("/") if found else "")
        while folder.startswith(root):
            yield folder
            folder = os.path.dirname(folder)


def processor() -> str:
    """Name of the CPUs' model, or their architecture."""
    found = re.search(r"^model name\s*:\s*(.+)$", read("/proc/cpuinfo"), re.MULTILINE)
    return found.group(1).strip() if found else platform.machine()


def memory_gib() -> Optional[float]:
    """Main memory of the host, GiB."""
    found = re.search(r"^MemTotal:\s*(\d+) kB", read("/proc/meminfo"), re.MULTILINE)
    return round(int(found.group(1)) / 2**20, 1) if found else None


def shared_memory() -> Optional[int]:
    """Free bytes in /dev/shm, through which NCCL's ranks exchange data; None without one."""
    try:
        stat = os.statvfs("/dev/shm")
    except OSError:
        return None
    return stat.f_bavail * stat.f_frsize


def read(path: str) -> str:
    """A text file's content, "" where it cannot be read."""
    try:
        with open(os.path.expanduser(path), encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
