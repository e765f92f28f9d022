"""Ranks: read from the launcher's environment, and the few collectives that training needs."""
import contextlib
import os
from datetime import timedelta
from typing import List, NamedTuple, Optional
from urllib.parse import urlparse

import numpy as np
import torch
import torch.distributed as td
from torch import nn

from mobilenetv3 import peers
from mobilenetv3.device import Device

PARTING_S = 20.0
"""How long the ranks of an interrupted run wait for each other; schedulers give about 30 s."""


class Ranks(NamedTuple):
    """This process among the others of the job."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    url: str = "env://"

    @property
    def card(self) -> Optional[int]:
        """Card that a launcher gave this rank; None where the user chooses it by --device_id."""
        return self.local_rank if self.world > 1 and self.url == "env://" else None

    @property
    def is_main(self) -> bool:
        """Whether this process writes: the log, the metrics and the checkpoints."""
        return self.rank == 0


def ranks(distributed: bool = False, world_size: int = 1, rank: int = 0,
          url: str = "env://") -> Ranks:
    """Read RANK, WORLD_SIZE, LOCAL_RANK as torchrun sets them.

    The arguments serve jobs whose processes are started by hand, one command a rank, with
    `--distributed --world-size N --dist-rank R --dist-url tcp://HOST:PORT`.

    Raises:
        ValueError: the environment or the arguments do not describe a job.
    """
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        try:
            found = Ranks(
                int(env["RANK"]), int(env["WORLD_SIZE"]),
                int(env.get("LOCAL_RANK", env["RANK"])),
                int(env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"])),
            )
        except ValueError:
            raise ValueError(
                "RANK={RANK!r} and WORLD_SIZE={WORLD_SIZE!r} must be whole numbers; they are set "
                "by torchrun".format(**env)
            ) from None
    elif world_size > 1:
        if not url.startswith("tcp://"):
            raise ValueError(
                f"--world-size {world_size} without torchrun needs --dist-url tcp://HOST:PORT "
                f"(got {url!r}); or start the ranks with torchrun"
            )
        found = Ranks(rank, world_size, 0, 1, url)
    elif distributed:
        raise ValueError(
            "--distributed was given, but RANK and WORLD_SIZE are not set; start the ranks with "
            "`torchrun --nproc_per_node=N train.py ...` or test/train_full_8p.sh"
        )
    else:
        return Ranks()
    if not 0 <= found.rank < found.world:
        raise ValueError(
            f"rank {found.rank} does not exist in a job of {found.world} ranks "
            f"(0 to {found.world - 1})"
        )
    return found


def init(who: Ranks, device: Device, backend: Optional[str] = None,
         timeout_s: float = 1800.0) -> None:
    """Join the process group. The device must be bound already, or rank 0's card serves all."""
    if who.world == 1:
        return
    timeout = timedelta(seconds=timeout_s)
    td.init_process_group(
        backend or device.backend, init_method=who.url, rank=who.rank, world_size=who.world,
        timeout=timeout,
    )
    # Hosts talk through a group of their own: what they agree on must not wait for the cards.
    _hosts.group = td.new_group(backend="gloo", timeout=timeout)
    _hosts.parting = td.new_group(backend="gloo", timeout=timedelta(seconds=PARTING_S))
    if who.world > who.local_world:
        _introduce(who, device)


def _introduce(who: Ranks, device: Device) -> None:
    """Tell all ranks each other's addresses, for an error that must name one."""
    url = os.environ.get("MASTER_ADDR", "") if who.url == "env://" else urlparse(who.url).hostname
    letters = peers.address_towards(url or "").encode()[:64].ljust(64)
    parts = all_gather(torch.tensor(list(letters), dtype=torch.int32, device=device.torch_device))
    peers.remember([bytes(part.tolist()).decode().strip() for part in parts], who.rank)


class _Hosts:
    """Process groups in which the host processes exchange what lies in their memory."""

    group = None
    parting = None
    """For the end, where nobody is waited for long."""


_hosts = _Hosts()


def shutdown() -> None:
    """Leave the process group, if there is one."""
    _hosts.group = _hosts.parting = None
    if td.is_available() and td.is_initialized():
        td.destroy_process_group()


def is_parallel() -> bool:
    """Whether this process belongs to a job of several ranks."""
    return td.is_available() and td.is_initialized()


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor over all ranks, in place; the same tensor where there is one rank."""
    if is_parallel():
        td.all_reduce(tensor)
    return tensor


def all_gather(tensor: torch.Tensor) -> List[torch.Tensor]:
    """The tensors of all ranks, which must have one shape; the tensor alone where there is one."""
    if not is_parallel():
        return [tensor]
    parts = [torch.empty_like(tensor) for _ in range(td.get_world_size())]
    td.all_gather(parts, tensor)
    return parts


def start_max(values: torch.Tensor):
    """Begin to replace a tensor of the host by the largest values of all ranks, in place.

    Returns:
        an object whose wait() ends it; None where there is one rank.
    """
    if _hosts.group is None:
        return None
    return td.all_reduce(values, op=td.ReduceOp.MAX, group=_hosts.group, async_op=True)


def gather_bytes(data: bytes) -> List[bytes]:
    """What each rank gave, in the order of the ranks; every rank must call it."""
    if _hosts.group is None:
        return [data]
    world = td.get_world_size()
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    td.all_gather(sizes, torch.tensor([len(data)]), group=_hosts.group)
    longest = max(int(size) for size in sizes)
    own = torch.zeros(max(1, longest), dtype=torch.uint8)  # gloo of PyTorch 1.8 dies of no values
    own[: len(data)] = _tensor(data)
    parts = [torch.zeros_like(own) for _ in range(world)]
    td.all_gather(parts, own, group=_hosts.group)
    return [part[: int(size)].numpy().tobytes() for part, size in zip(parts, sizes)]


def sum_of_numbers(number: int) -> int:
    """The sum of what the ranks gave; every rank must call it."""
    return sum(map(int, gather_bytes(b"%d" % number)))


def broadcast_bytes(data: Optional[bytes]) -> bytes:
    """What rank 0 gave; what the others give is not looked at. Every rank must call it."""
    if _hosts.group is None:
        return data
    size = torch.tensor([0 if data is None else len(data)])
    td.broadcast(size, 0, group=_hosts.group)
    if not int(size):
        return b""
    is_main = td.get_rank() == 0
    content = _tensor(data) if is_main else torch.zeros(int(size), dtype=torch.uint8)
    td.broadcast(content, 0, group=_hosts.group)
    return content.numpy().tobytes()


def _tensor(data: bytes) -> torch.Tensor:
    """The bytes in memory of PyTorch's own.

    gloo may be the last to let go of what it sends. Memory of numpy's needs Python for that, and in
    PyTorch 1.8 destroy_process_group() keeps Python to itself until gloo is done: both wait.
    """
    return torch.tensor(np.frombuffer(data, np.uint8))


def part() -> None:
    """Wait for all ranks before this one ends, but no longer than PARTING_S; then leave."""
    if _hosts.parting is not None:
        with contextlib.suppress(RuntimeError):  # a rank that is gone need not be waited for
            td.barrier(group=_hosts.parting)


def store():
    """The job's key-value store, which all ranks reach; None where there is one rank."""
    if not is_parallel():
        return None
    get = getattr(td.distributed_c10d, "_get_default_store", None)
    return get() if get is not None else None


def barrier() -> None:
    """Wait for all ranks."""
    if is_parallel():
        td.barrier()


def per_rank_batch(batch_size: int, world: int) -> int:
    """Share of the global batch that one rank takes.

    Raises:
        ValueError: the batch does not divide evenly; names the nearest sizes that do.
    """
    if batch_size % world:
        below = batch_size // world * world
        sizes = [size for size in (below, below + world) if size > 0]
        raise ValueError(
            "--batch_size {} is for all ranks together and does not divide evenly among {}; "
            "use {}".format(batch_size, world, " or ".join(map(str, sizes)))
        )
    return batch_size // world


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DistributedDataParallel."""
    return model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
