import contextlib
import io
import multiprocessing
import re
import socket
import time
from pathlib import Path

import pytest
import torch

from mobilenetv3 import device, dist, entry

LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in LAUNCHER:
        monkeypatch.delenv(name, raising=False)


def test_without_a_launcher_there_is_one_rank():
    assert dist.ranks() == dist.Ranks(rank=0, world=1, local_rank=0, local_world=1)


def test_ranks_come_from_the_launchers_environment(monkeypatch):
    for name, value in zip(LAUNCHER, ("9", "16", "1", "8")):
        monkeypatch.setenv(name, value)
    assert dist.ranks() == dist.Ranks(9, 16, 1, 8)


def test_ranks_started_by_hand_name_their_meeting_point():
    found = dist.ranks(True, world_size=2, rank=1, url="tcp://127.0.0.1:29501")
    assert (found.rank, found.world, found.url) == (1, 2, "tcp://127.0.0.1:29501")


def test_distributed_without_a_launcher_is_an_error_that_says_how():
    with pytest.raises(ValueError, match="torchrun --nproc_per_node"):
        dist.ranks(distributed=True)
    with pytest.raises(ValueError, match="tcp://HOST:PORT"):
        dist.ranks(distributed=True, world_size=2)


def test_a_rank_outside_the_job_is_an_error(monkeypatch):
    monkeypatch.setenv("RANK", "8")
    monkeypatch.setenv("WORLD_SIZE", "8")
    with pytest.raises(ValueError, match="rank 8 does not exist in a job of 8 ranks"):
        dist.ranks()
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(ValueError, match="whole numbers"):
        dist.ranks()


@pytest.mark.parametrize("batch, world, share", [(1024, 8, 128), (64, 1, 64), (8, 8, 1)])
def test_the_global_batch_is_divided_by_the_ranks(batch, world, share):
    assert dist.per_rank_batch(batch, world) == share


def test_a_batch_that_does_not_divide_names_those_that_do():
    with pytest.raises(ValueError, match="use 96 or 104"):
        dist.per_rank_batch(100, 8)
    with pytest.raises(ValueError, match="use 8$"):
        dist.per_rank_batch(4, 8)


def _in_two_processes(target, url):
    """What target(rank, url) returns in two processes of their own, which must end well."""
    # Not forked: of a test process that has threads, a fork may never end.
    context = multiprocessing.get_context("spawn")
    pipes, both = [context.Pipe() for _ in range(2)], context.Barrier(2)
    ranks = [context.Process(target=_answer, args=(target, rank, url, pipes[rank][1], both),
                             daemon=True) for rank in range(2)]
    for process in ranks:
        process.start()
    found = [pipe.recv() if pipe.poll(60) else None for pipe, _ in pipes]
    for process in ranks:
        process.join(20)
    assert [process.exitcode for process in ranks] == [0, 0]
    return found


def _answer(target, rank, url, pipe, both):
    torch.set_num_threads(1)
    both.wait(60)  # on a busy machine one is up long before the other
    pipe.send(target(rank, url))


def _exchange(rank, url):
    """What two ranks get of each other's bytes, none among them."""
    dist.init(dist.Ranks(rank, 2, url=url), device.select("cpu"), timeout_s=30)
    given = [b"", b"a" * rank, b"x" * (5 + rank)]
    found = [dist.gather_bytes(data) for data in given] + [
        dist.broadcast_bytes(data if rank == 0 else None) for data in given]
    dist.shutdown()
    return found


def test_ranks_that_have_nothing_to_say_do_not_bring_each_other_down():
    """gloo of PyTorch 1.8 divides by the number of values (SIGFPE)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = _in_two_processes(_exchange, f"tcp://127.0.0.1:{port}")
    assert found == [[[b"", b""], [b"", b"a"], [b"x" * 5, b"x" * 6], b"", b"", b"x" * 5]] * 2


MEETINGS = 40


def _meet_again_and_again(rank, url):
    """Send and leave at once, many times: how often that went well."""
    for meeting in range(MEETINGS):
        dist.init(dist.Ranks(rank, 2, url=f"{url}{meeting}"), device.select("cpu"), timeout_s=30)
        dist.broadcast_bytes(b"x" * 100 if rank == 0 else None)
        dist.shutdown()
    return MEETINGS


def test_a_rank_that_leaves_right_after_it_sent_does_not_hang(tmp_path):
    """On PyTorch 1.8 one of the first few did, when bytes were sent from memory of numpy's."""
    assert _in_two_processes(_meet_again_and_again, f"file://{tmp_path}/") == [MEETINGS] * 2


PATIENCE = 4  # seconds that a rank waits for the other


def _wait_for_the_second_of_two_sums(rank, url):
    """What a command says whose second sum is waited for when the first has timed out."""
    dist.init(dist.Ranks(rank, 2, url=url), device.select("cpu"), timeout_s=PATIENCE)
    dist.broadcast_bytes(b"x" if rank == 0 else None)  # they have met
    told, has_told = io.StringIO(), Path(f"{url[len('file://'):]} has told")

    def train(cfg):
        torch.distributed.all_reduce(torch.ones(1), async_op=True)
        time.sleep(PATIENCE / 2)
        torch.distributed.all_reduce(torch.ones(1), async_op=True).wait()

    if rank == 0:
        with contextlib.redirect_stderr(told):
            entry.run(train, None, "train.py")
        has_told.touch()
    while not has_told.exists():  # rank 1 takes part in neither sum
        time.sleep(0.1)
    dist.shutdown()
    return told.getvalue()


def test_a_sum_that_another_ones_time_out_ended_is_told_as_a_lost_rank(tmp_path):
    """Buckets of a backward pass are under way together, and any may be the first to time out."""
    told, _ = _in_two_processes(_wait_for_the_second_of_two_sums, f"file://{tmp_path}/meeting")
    assert re.fullmatch(
        r"train.py: error: another rank stopped answering \(Application timeout caused pair closure"
        r"\); .*--dist_timeout is how long a rank waits\n", told)
