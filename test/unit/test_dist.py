import pytest

from mobilenetv3 import dist

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
