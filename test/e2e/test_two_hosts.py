"""Two hosts: two network namespaces of this machine, joined by a cable (a veth pair).

Each has a network of its own, with nothing but that cable and a loopback, so what passes here needs
no shared address and no way out. Making namespaces takes root and iproute2.
"""
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import SMALL
from harness_stub import copy_package

from mobilenetv3 import checkpoint

ADDRESSES = ("10.77.77.1", "10.77.77.2")  # seen in the namespaces only
TIMEOUT = 25  # seconds that a rank waits for others, also while they start
pytestmark = pytest.mark.slow


class Hosts:
    """Two namespaces; commands run in either."""

    def __init__(self):
        self.names = [f"mnv3-{os.getpid()}-{number}" for number in (0, 1)]
        self.processes = []

    def make(self):
        first, second = self.names
        for name in self.names:
            self.ip("netns", "add", name)
            self.ip("-n", name, "link", "set", "lo", "up")
        self.ip("-n", first, "link", "add", "cable", "type", "veth", "peer", "name", "cable",
                "netns", second)
        for name, address in zip(self.names, ADDRESSES):
            self.ip("-n", name, "address", "add", f"{address}/24", "dev", "cable")
            self.ip("-n", name, "link", "set", "cable", "up")

    def remove(self):
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True)

    def cut(self):
        self.ip("-n", self.names[1], "link", "set", "cable", "down")

    def start(self, number, command, env):
        process = subprocess.Popen(
            ["ip", "netns", "exec", self.names[number], *command], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True, start_new_session=True, env=env)
        self.processes.append(process)
        return process

    @staticmethod
    def ip(*arguments):
        subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@pytest.fixture(scope="module")
def hosts():
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("two hosts are made of network namespaces, which takes root and iproute2")
    pytest.importorskip("torch.distributed.run", reason="torchrun came with PyTorch 1.9")
    hosts = Hosts()
    try:
        try:
            hosts.make()
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces on this machine: {error.stderr.strip()}")
        yield hosts
    finally:
        hosts.remove()


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    return copy_package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def env(environment):
    return dict(environment, PYTHON=sys.executable, MNV3_CHECKED_PYTHON=sys.executable,
                MNV3_STOP_SECONDS="3")


def command(package, epochs, **arguments):
    """Train with the script for several nodes: eleven steps an epoch, at a steady learning rate."""
    given = [f"--{name}={value}" for name, value in arguments.items()]
    return ["bash", str(package / "test" / "train_full_16p.sh"), *given, f"--epochs={epochs}",
            "--", *map(str, SMALL), "--batch_size", "128", "--sched", "step",
            f"--dist_timeout={TIMEOUT}"]


class CutRun:
    """Two hosts of two ranks train; after the first epoch the cable between them is cut."""

    def __init__(self, hosts, package, env, folder):
        # The machine's name belongs to no address here, so gloo must be told the network.
        env = dict(env, GLOO_SOCKET_IFNAME="cable")
        nodes = [
            hosts.start(number, command(package, 1000, nproc=2, node_rank=number, output=folder,
                                        master_addr=ADDRESSES[0]), env)
            for number in (0, 1)
        ]
        self.state = self.first_epoch(folder / checkpoint.LAST, nodes)
        hosts.cut()
        cut = time.monotonic()
        self.out, self.err = zip(*(node.communicate(timeout=TIMEOUT + 60) for node in nodes))
        self.seconds = time.monotonic() - cut
        self.statuses = [node.returncode for node in nodes]
        self.metrics = metrics_of(folder)

    @staticmethod
    def first_epoch(path, nodes):
        end = time.monotonic() + 90
        while not path.exists():
            assert time.monotonic() < end, "no checkpoint after 90 s"
            assert nodes[0].poll() is None, nodes[0].communicate()
            time.sleep(0.05)
        return checkpoint.load(path)


def metrics_of(folder):
    """Numbers of the first epoch."""
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])


@pytest.fixture(scope="module")
def cut_run(hosts, package, env, tmp_path_factory):
    return CutRun(hosts, package, env, tmp_path_factory.mktemp("runs") / "two hosts")


def test_two_hosts_of_two_ranks_train_what_four_ranks_of_one_host_train(
        cut_run, package, env, warm, tmp_path):
    folder = tmp_path / "one host"
    env = dict(env, PYTHON=warm({}), MNV3_CHECKED_PYTHON=warm({}))
    alone = subprocess.run(command(package, 1, nnodes=1, nproc=4, output=folder), env=env,
                           capture_output=True, text=True, timeout=120)
    assert alone.returncode == 0, alone.stderr
    assert cut_run.state["epoch"] == 1
    # gloo adds in an order that depends on the ranks, not on where they are: equal to the last bit.
    ours, theirs = cut_run.metrics, metrics_of(folder)
    assert (ours["val_loss"], ours["val_acc1"]) == (theirs["val_loss"], theirs["val_acc1"])
    # Its sum is cut into pieces by the length of the FPS warm-up, thus by the number of epochs.
    assert ours["train_loss"] == pytest.approx(theirs["train_loss"], rel=1e-6)
    one = checkpoint.load(folder / checkpoint.LAST)["state_dict"]
    assert cut_run.state["state_dict"].keys() == one.keys()
    assert all(torch.equal(cut_run.state["state_dict"][name], one[name]) for name in one)
    assert '"ranks": 4' in cut_run.out[0] and "=> run" not in cut_run.out[1]


def test_a_cut_cable_ends_the_run_on_both_hosts_and_names_the_peer(cut_run):
    assert cut_run.statuses == [1, 1]
    # The time-out, and some seconds in which four processes end.
    assert cut_run.seconds < TIMEOUT + 30
    for number, (out, err) in enumerate(zip(cut_run.out, cut_run.err)):
        assert f"rendezvous: {ADDRESSES[0]}:29500, node {number} of 2\n" in out
        assert f"rendezvous: {ADDRESSES[0]}:29500, node {number} of 2. A time-out or a lost" in err
        assert re.search(r"rank [0-3] failed first: ", err.splitlines()[-1])
        assert "Final" not in out
        other, ranks = ADDRESSES[1 - number], ("ranks 2 to 3", "ranks 0 to 1")[number]
        said = f"no answer from {other} ({ranks}): that host, or the network to it, is down"
        assert said in out + err, err
    assert any("Timed out" in text for text in cut_run.out + cut_run.err)
