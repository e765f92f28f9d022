"""Errors whose cause is the machine, told in a sentence that says what to do.

PyTorch and the system word them in many ways, and rarely say which option helps.
"""
import os
import re
from typing import Any, Optional


def explain(error: BaseException, cfg: Any) -> Optional[str]:
    """What happened and what helps; None for an error that is not the machine's.

    Args:
        cfg: the configuration of the command, of which only what is there is named.
    """
    text = f"{type(error).__name__}: {error}"
    for pattern, sentence in _SENTENCES:
        if re.search(pattern, text, re.IGNORECASE):
            return sentence(text, cfg)
    return None


def _out_of_memory(text: str, cfg: Any) -> str:
    asked = re.search(r"(?:tried to allocate|allocate)\s+([\d.]+ ?[KMGT]i?B|\d+ bytes)", text, re.I)
    where = "the device's memory" if re.search("cuda|npu|hip", text, re.I) else "memory"
    sizes = [f"--{name} {value}" for name in ("batch_size", "val_batch_size", "img_size")
             for value in [getattr(cfg, name, None)] if value]
    what = f" with {' and '.join(sizes)}" if sizes else ""
    more = f" ({asked.group(1)} more were asked for)" if asked else ""
    if hasattr(cfg, "grad_accum_steps"):
        # The same update from smaller steps.
        halved = max(1, (getattr(cfg, "batch_size", 0) or 2) // 2)
        helps = (f"--batch_size {halved} --grad_accum_steps {2 * cfg.grad_accum_steps} makes the "
                 "same updates from half the memory, and --apex takes less")
    else:
        helps = "a smaller --batch_size takes less"
    return f"{where} is full{what}{more}; {helps}"


def _port_taken(text: str, cfg: Any) -> str:
    port = os.environ.get("MASTER_PORT", "")
    url = getattr(cfg, "dist_url", "env://")
    where = url if url != "env://" else f"MASTER_PORT {port}".strip()
    return (f"the port at which the ranks are to meet is taken by another program ({where}); name "
            "a free one: MASTER_PORT=29501, torchrun --master_port, or --dist_url tcp://HOST:PORT")


def _no_shared_memory(text: str, cfg: Any) -> str:
    return ("a loader process ran out of shared memory; give the container more (docker run "
            f"--shm-size=8g), or start fewer than --workers {getattr(cfg, 'workers', '')}".rstrip())


def _worker_killed(text: str, cfg: Any) -> str:
    pids = re.search(r"pid(?:\(s\))? ?([\d, ]+)", text)
    which = f" (process {pids.group(1).strip(', ')})" if pids else ""
    return (f"a loader process{which} was killed, by the system where memory ran out, or by hand; "
            "go on with --resume auto, where memory is short with fewer --workers than "
            f"{getattr(cfg, 'workers', 'now')}")


_SENTENCES = (
    (r"out of shared memory|unable to (open|write|allocate) shared memory", _no_shared_memory),
    (r"DataLoader worker .*bus error", _no_shared_memory),
    (r"DataLoader worker .*(killed by signal|exited unexpectedly)", _worker_killed),
    (r"OutOfMemoryError|out of memory|can't allocate memory|not enough memory|MemoryError",
     _out_of_memory),
    (r"EADDRINUSE|address already in use", _port_taken),
)
"""Pattern in an error's type and message -> its sentence; the first that fits."""
