"""What a command found, as JSON: the figures, and all that is needed to find them again."""
import json
import math
import os
import platform
import shlex
import sys
import time
from typing import Any, Dict, List, Sequence

import PIL
import timm
import torch
import torchvision

import mobilenetv3
from mobilenetv3 import host
from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.text import printable


def about(device: torch.device) -> Dict[str, Any]:
    """The command, the versions and the device, for the head of a file of results."""
    return {
        "command": " ".join(map(shlex.quote, [os.path.basename(sys.argv[0]), *sys.argv[1:]])),
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {
            "mobilenetv3": mobilenetv3.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "timm": timm.__version__,
            "pillow": PIL.__version__,
        },
        "device": {"type": device.type, "name": device_name(device)},
    }


def start_of(device: torch.device, ranks: int, epoch: int, step: int) -> Dict[str, Any]:
    """What a run is started with, or goes on with from a place: `about` and the host."""
    return dict(
        about(device), ranks=ranks, epoch=epoch, step=step, host={
            "system": platform.platform(), "processor": host.processor(),
            "cpus": host.usable_cpus(), "memory_gib": host.memory_gib(),
            "cann": host.cann_version(host.cann_script()), "drivers": host.drivers(),
        })


def device_name(device: torch.device) -> str:
    """Name of the card, or the processor's architecture."""
    module = getattr(torch, device.type, None)
    if hasattr(module, "get_device_name"):
        return module.get_device_name(device.index or 0)
    return platform.machine()


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> List[str]:
    """The lines of a table; its first columns hold texts, so many, and the others numbers."""
    marks = ["---"] * texts + ["---:"] * (len(head) - texts)
    cells = [[printable(cell).replace("|", "\\|") for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, marks, *cells)]


def write_json(path: PathLike, content: Any) -> None:
    """Write JSON that every reader takes: ASCII, numbers that are not finite as null.

    File names come back as they were, also those that are no valid UTF-8 (as Python's surrogates).
    """
    text = json.dumps(_finite(content), indent=1) + "\n"
    write_atomically(path, lambda file: file.write(text.encode("ascii")))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
