"""Which CPUs a rank's loader processes run on."""
import os
import subprocess
import sys

import pytest
import torch

from mobilenetv3 import cpus, data, device, host
from mobilenetv3.data.loader import build_loader

needs_affinity = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"),
                                    reason="this system does not bind processes to CPUs")


def machine(monkeypatch, nodes, threads=1, **files):
    """A host of NUMA nodes of so many cores each, numbered as Linux does: second threads last."""
    cores = nodes[0] * len(nodes)
    found = {"/sys/devices/system/cpu/online": f"0-{cores * threads - 1}\n"}
    for cpu in range(cores * threads):
        siblings = range(cpu % cores, cores * threads, cores)
        found[f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"] = ",".join(
            map(str, siblings))
    for node, size in enumerate(nodes):
        own = [f"{node * size + t * cores}-{(node + 1) * size - 1 + t * cores}"
               for t in range(threads)]
        found[f"/sys/devices/system/node/node{node}/cpulist"] = ",".join(own) + "\n"
    found.update(files)
    monkeypatch.setattr(host, "read", lambda path: found.get(path, ""))
    monkeypatch.setattr(cpus.glob, "glob", lambda pattern: sorted(
        (os.path.dirname(path) for path in found if "/node" in path), reverse=True))
    return frozenset(range(cores * threads))


def started_on(monkeypatch, own, parents=None, now=None):
    monkeypatch.setattr(cpus, "_AT_START", frozenset(own))
    monkeypatch.setattr(cpus, "_affinity", lambda process=0: frozenset(
        (own if parents is None else parents) if process else (own if now is None else now)))
    monkeypatch.delenv("CPU_AFFINITY_CONF", raising=False)


@pytest.mark.parametrize("nodes, threads, ranks", [
    ((32, 32), 2, 8), ((24, 24, 24, 24), 1, 8), ((48,), 1, 8), ((7,), 1, 3), ((4,), 2, 8),
    ((3, 3), 2, 4),
])
def test_the_sets_of_a_hosts_ranks_are_disjoint_and_cover_it(monkeypatch, nodes, threads, ranks):
    whole = machine(monkeypatch, nodes, threads)
    found = cpus.shares(whole, ranks)
    assert len(found) == ranks
    assert sorted(cpu for share in found for cpu in share) == sorted(whole)
    sizes = sorted(map(len, found))
    # Cores are not cut in two while there is one for each rank.
    assert sizes[-1] - sizes[0] <= (threads if len(nodes) * nodes[0] >= ranks else 1)


def test_a_share_is_of_one_node_and_has_both_threads_of_its_cores(monkeypatch):
    whole = machine(monkeypatch, (4, 4), threads=2)
    found = cpus.shares(whole, 4)  # cores 0-3 and their second threads 8-11 are node 0
    assert found == [{0, 1, 8, 9}, {2, 3, 10, 11}, {4, 5, 12, 13}, {6, 7, 14, 15}]
    assert cpus.shares(whole, 16)[:3] == [{0}, {8}, {1}]
    assert cpus.shares(whole, 17) == [frozenset()] * 17  # too few to divide


def test_a_rank_is_given_its_share_of_a_whole_host(monkeypatch):
    whole = machine(monkeypatch, (8,))
    started_on(monkeypatch, whole)
    assert [cpus.for_workers(rank, 2) for rank in (0, 1)] == [{0, 1, 2, 3}, {4, 5, 6, 7}]
    assert cpus.for_workers(0, 1) == frozenset()  # a single rank has all CPUs anyway


def test_a_containers_cpus_are_a_whole_and_isolated_ones_are_nobodys(monkeypatch):
    machine(monkeypatch, (8,), **{
        "/proc/self/cgroup": "0::/pod/own\n", "/sys/devices/system/cpu/isolated": "7\n",
        "/sys/fs/cgroup/pod/cpuset.cpus.effective": "4-7\n"})
    started_on(monkeypatch, {4, 5, 6})
    assert [cpus.for_workers(rank, 3) for rank in range(3)] == [{4}, {5}, {6}]
    machine(monkeypatch, (8,), **{
        "/proc/self/cgroup": "4:cpuset:/docker/1\n0::/\n",
        "/sys/fs/cgroup/cpuset/cpuset.cpus": "0-1\n"})  # the path is the host's
    started_on(monkeypatch, {0, 1})
    assert cpus.for_workers(1, 2) == {1}


def test_what_a_launcher_has_bound_is_left_as_it_is(monkeypatch):
    machine(monkeypatch, (8,))
    started_on(monkeypatch, {0, 1, 2, 3})
    assert cpus.for_workers(0, 2) == frozenset()


def test_what_torch_npu_has_bound_is_left_as_it_is(monkeypatch):
    whole = machine(monkeypatch, (8,))
    started_on(monkeypatch, whole, now={0, 1})  # since the start
    assert cpus.for_workers(0, 2) == frozenset()
    started_on(monkeypatch, whole)
    monkeypatch.setenv("CPU_AFFINITY_CONF", "2")  # its own rules place loader processes
    assert cpus.for_workers(0, 2) == frozenset()
    monkeypatch.setenv("CPU_AFFINITY_CONF", "0")
    assert cpus.for_workers(0, 2) == {0, 1, 2, 3}


def test_ranks_bound_one_by_one_each_have_their_own_cpus(monkeypatch):
    monkeypatch.setattr(host, "usable_cpus", lambda: 16)
    started_on(monkeypatch, range(16), parents=range(16))  # all ranks of a job under taskset
    assert cpus.per_rank(8) == 2
    started_on(monkeypatch, range(16), parents=range(128))  # srun bound this one
    assert cpus.per_rank(8) == 16


def test_a_system_without_affinity_leaves_workers_alone(monkeypatch):
    monkeypatch.setattr(cpus, "_AT_START", frozenset())
    monkeypatch.setattr(cpus, "_affinity", lambda process=0: frozenset())
    assert cpus.for_workers(0, 2) == frozenset()
    assert not cpus.is_bound_alone()


def test_lists_of_cpus_are_read_as_linux_writes_them():
    assert cpus.parse("0-3,8,10-11\n") == {0, 1, 2, 3, 8, 10, 11}
    assert cpus.parse("\n") == frozenset()


class Whereabouts(torch.utils.data.Dataset):
    """Each item tells the CPUs of the process that makes it."""

    def __len__(self):
        return 2

    def __getitem__(self, key):
        import numpy as np

        mask = sum(1 << cpu for cpu in os.sched_getaffinity(0))
        return np.zeros((3, 1, 1), np.uint8), mask


def seen_by_a_worker(own):
    sampler = data.ValSampler(2, 1, 0, 1)
    loader = build_loader(Whereabouts(), sampler, device.select("cpu"), 1, 0, own)
    return {mask.item() for _, mask in loader}


@needs_affinity
def test_a_worker_runs_on_its_ranks_cpus_and_the_training_process_on_all():
    before = os.sched_getaffinity(0)
    everything = sum(1 << cpu for cpu in before)
    assert seen_by_a_worker(frozenset()) == {everything}  # of a single rank
    for share in cpus.shares(frozenset(before), 2)[: len(before)]:
        assert seen_by_a_worker(share) == {sum(1 << cpu for cpu in share) or everything}
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_cpus_that_cannot_be_had_are_no_error():
    before = os.sched_getaffinity(0)
    cpus.bind(frozenset({4095}))
    assert os.sched_getaffinity(0) == before


@needs_affinity
def test_a_process_that_was_bound_on_its_way_here_knows_it():
    one = min(os.sched_getaffinity(0))
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU cannot be narrowed")
    code = "from mobilenetv3 import cpus; print(cpus.is_bound_alone(), cpus.per_rank(8))"
    told = subprocess.run(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {one}), check=True)
    assert told.stdout.split() == ["True", "1"]
