"""What the machine does to a run, in the words of PyTorch that were seen, told in one sentence."""
from argparse import Namespace

import pytest

from mobilenetv3 import entry, faults

CFG = Namespace(batch_size=512, img_size=224, grad_accum_steps=1, workers=8, dist_url="env://")

CUDA = ("CUDA out of memory. Tried to allocate 1.53 GiB. GPU 0 has a total capacity of 79.1 GiB of "
        "which 1.2 GiB is free.")
NPU = ("NPU out of memory. Tried to allocate 98.00 MiB (NPU 0; 32.00 GiB total capacity; 29.33 GiB "
       "already allocated)")
CPU = ("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
       "you tried to allocate 822083584000 bytes. Error code 12 (Cannot allocate memory)")
CPU_1_8 = ("[enforce fail at CPUAllocator.cpp:67] . DefaultCPUAllocator: not enough memory: you "
           "tried to allocate 822083584000 bytes. Error code 12 (Cannot allocate memory)")


@pytest.mark.parametrize("text, asked, where", [
    (CUDA, "1.53 GiB", "the device's memory"), (NPU, "98.00 MiB", "the device's memory"),
    (CPU, "822083584000 bytes", "memory"), (CPU_1_8, "822083584000 bytes", "memory"),
], ids=["cuda", "npu", "cpu", "cpu of 1.8"])
def test_a_full_memory_names_the_batch_size_and_what_to_do(text, asked, where, capsys, monkeypatch):
    monkeypatch.delenv("RANK", raising=False)

    def main(cfg):
        raise RuntimeError(text)

    assert entry.run(main, CFG, "train.py") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == (
        f"train.py: error: {where} is full with --batch_size 512 and --img_size 224 ({asked} more "
        "were asked for); --batch_size 256 --grad_accum_steps 2 makes the same updates from half "
        "the memory, and --apex takes less"
    )


def test_a_full_memory_in_a_command_that_does_not_train():
    told = faults.explain(MemoryError(), Namespace(batch_size=64))
    assert told == "memory is full with --batch_size 64; a smaller --batch_size takes less"


@pytest.mark.parametrize("text", [
    "The server socket has failed to listen on any local network address. port: 29500, useIpv6: "
    "false, code: -98, name: EADDRINUSE, message: address already in use",
    "Address already in use",
])
def test_a_taken_port_is_named(text, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", "29500")
    told = faults.explain(RuntimeError(text), CFG)
    assert "taken by another program (MASTER_PORT 29500)" in told and "--master_port" in told


def test_a_killed_loader_process_is_told_with_its_number():
    for text in ("DataLoader worker (pid(s) 19673) exited unexpectedly",
                 "DataLoader worker (pid 19673) is killed by signal: Killed. "):
        told = faults.explain(RuntimeError(text), CFG)
        assert told.startswith("a loader process (process 19673) was killed") and "8" in told


def test_shared_memory_that_ran_out_is_told():
    text = ("DataLoader worker (pid 77) is killed by signal: Bus error. It is possible that "
            "dataloader's workers are out of shared memory. Please try to raise your shared memory "
            "limit.")
    assert "--shm-size" in faults.explain(RuntimeError(text), CFG)


def test_what_is_not_the_machines_keeps_its_traceback():
    assert faults.explain(TypeError("unsupported operand"), CFG) is None
