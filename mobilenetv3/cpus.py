"""Which CPUs the loader processes of a rank run on: its own share of the host's, side by side.

Left to the system, the loader processes of eight ranks wander over both sockets and away from the
memory that they fill. Each rank's get a set of CPUs of its own, of as few NUMA nodes as it can be,
with hyperthreads of a core together. The training process itself is not bound, nor is anything
where somebody else has chosen: a launcher that binds each rank (Slurm, MPI, numactl) or torch_npu
with CPU_AFFINITY_CONF. What they have chosen, loader processes inherit.
"""
import contextlib
import glob
import os
import re
from typing import FrozenSet, List

from mobilenetv3 import host

_CPU = "/sys/devices/system/cpu"
_NODES = "/sys/devices/system/node/node[0-9]*"


def _affinity(process: int = 0) -> FrozenSet[int]:
    """The CPUs that a process may run on; none where the system does not tell."""
    try:
        return frozenset(os.sched_getaffinity(process))
    except (AttributeError, OSError):
        return frozenset()


# As for host.usable_cpus: taken before a device is opened.
_AT_START = _affinity()


def for_workers(local_rank: int, local_ranks: int) -> FrozenSet[int]:
    """The CPUs of the loader processes of one of a host's ranks; none to leave them as they are.

    The sets of a host's ranks do not overlap, and cover all CPUs. A single rank has them all.
    """
    own = _affinity()
    if local_ranks < 2 or not own or own != _AT_START or own != _all_cpus():
        return frozenset()
    if os.environ.get("CPU_AFFINITY_CONF", "0").strip() not in ("", "0"):
        return frozenset()
    return shares(own, local_ranks)[local_rank]


def per_rank(local_ranks: int) -> int:
    """CPUs that each of a host's ranks may use, 1 or more."""
    # Where the launcher has bound each rank by itself, the CPUs seen are this rank's alone.
    sharing = 1 if is_bound_alone() else local_ranks
    return max(1, host.usable_cpus() // sharing)


def is_bound_alone() -> bool:
    """Whether this process was started on fewer CPUs than the process that started it has."""
    return bool(_AT_START) and _affinity(os.getppid()) > _AT_START


def bind(cpus: FrozenSet[int]) -> None:
    """Let this process run on these CPUs only, where that is allowed; none is no change."""
    if not cpus:
        return
    with contextlib.suppress(OSError):  # a container may forbid it, and CPUs may have gone since
        os.sched_setaffinity(0, cpus)


def shares(cpus: FrozenSet[int], ranks: int) -> List[FrozenSet[int]]:
    """Divide CPUs into as many sets, all alike to one core; empty ones where there are too few."""
    if len(cpus) < ranks:
        return [frozenset()] * ranks
    nodes = {cpu: int(re.sub(r"\D", "", os.path.basename(folder)))
             for folder in glob.glob(_NODES) for cpu in parse(host.read(folder + "/cpulist"))}

    def place(core):
        return nodes.get(core[0], 0), core[0]

    units = sorted({_core(cpu, cpus) for cpu in cpus}, key=place)
    if len(units) < ranks:
        units = [(cpu,) for core in units for cpu in core]
    cuts = [len(units) * rank // ranks for rank in range(ranks + 1)]
    return [frozenset(cpu for core in units[begin:end] for cpu in core)
            for begin, end in zip(cuts, cuts[1:])]


def _core(cpu: int, cpus: FrozenSet[int]) -> tuple:
    """The CPUs of one core, this one among them."""
    siblings = parse(host.read(f"{_CPU}/cpu{cpu}/topology/thread_siblings_list")) | {cpu}
    return tuple(sorted(siblings & cpus))


def parse(text: str) -> FrozenSet[int]:
    """A list of CPUs as Linux writes it: 0-3,8,10-11."""
    found = set()
    for part in re.findall(r"\d+(?:-\d+)?", text):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _all_cpus() -> FrozenSet[int]:
    """The CPUs that a process of this container has to which nobody assigned any."""
    online = parse(host.read(f"{_CPU}/online")) or frozenset(range(os.cpu_count() or 1))
    online -= parse(host.read(f"{_CPU}/isolated"))
    group = _cpuset()
    return online & group if group else online


def _cpuset() -> FrozenSet[int]:
    """The CPUs of this process's control group; none where there are no such groups."""
    for folder in host.cgroup_folders("cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus", "cpuset.cpus"):
            found = parse(host.read(f"{folder}/{name}"))
            if found:
                return found
    return frozenset()
