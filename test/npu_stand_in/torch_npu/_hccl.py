"""The process-group backend "hccl", with HCCL's rule that every rank has a card of its own."""
import os
import socket

import torch.distributed as dist

from torch_npu import _C


def register() -> None:
    """Make "hccl" a name that torch.distributed knows."""
    dist.Backend.register_backend("hccl", _create, extended_api=True, devices=["npu"])


def _create(options, _backend_options):
    card = _C.current_device()
    # The group's store serves all its ranks, and adding is atomic: the second one learns of it.
    if options.store.add(f"npu {socket.gethostname()} {card}", 1) > 1:
        raise RuntimeError(
            f"hccl: npu:{card} is used by two ranks of this group; each must call set_device "
            "before init_process_group"
        )
    if "NPU_STAND_IN_RANKS" in os.environ:  # a file for whoever wants to know which rank is where
        with open(os.environ["NPU_STAND_IN_RANKS"], "a") as file:
            file.write(f"rank {options.group_rank} of {options.group_size}: npu:{card}\n")
    return _C.hccl_over(dist.ProcessGroupGloo(
        options.store, options.group_rank, options.group_size, timeout=options.timeout
    ))
