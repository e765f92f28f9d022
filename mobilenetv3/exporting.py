"""A network with its weights as ONNX, TorchScript or safetensors, compared with PyTorch.

Everything happens in memory: bytes that did not pass the comparison never become a file.
"""
import copy
import io
import json
import math
import tempfile
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from mobilenetv3 import onnxfile
from mobilenetv3.formats import safetensors
from mobilenetv3.models import create_model

SUFFIXES = {"onnx": ".onnx", "torchscript": ".torchscript.pt", "safetensors": ".safetensors"}
TOLERANCE = 1e-4
METADATA_FILE = "metadata.json"
"""Name of TorchScript's extra file with the metadata."""

Run = Callable[[Tensor], Tensor]


class Comparison(NamedTuple):
    """How an exported network answers, beside the PyTorch one."""

    images: int
    largest: float
    """Largest absolute difference of an output."""
    rounding: float
    """The same between PyTorch's float32 and its float64."""
    same_class: int
    """Images for which the largest output is the same one."""

    def allowed(self, tolerance: Optional[float] = None) -> float:
        """The difference that passes: `tolerance`, or if that is None what float32 makes likely.

        That is TOLERANCE, but where PyTorch's own outputs carry an error of that size (weights that
        are not trained give outputs of hundreds), ten times that error.
        """
        if tolerance is not None:
            return tolerance
        return max(TOLERANCE, 10 * self.rounding) if math.isfinite(self.rounding) else TOLERANCE


class Exported(NamedTuple):
    """An exported network."""

    content: bytes
    run: Run
    """(N, C, H, W) -> outputs, computed from `content` by the program that reads such files."""
    runtime: str
    """That program and its version."""


def metadata(model: nn.Module, classes: Sequence[str], prepare: Dict[str, Any]) -> Dict[str, str]:
    """What a user of the file has to know, each value a text: JSON, where it is not a name.

    Args:
        classes: names of the classes in the order of the outputs; empty where they are not known.
        prepare: how images are prepared: img_size, mean, std, crop_pct, interpolation.
    """
    described = {
        "arch": model.config["arch"],
        "model": model.config,
        "classes": list(classes),
        "input": f"{onnxfile.INPUT}: float32 (N, {model.config['in_chans']}, H, W), RGB, scaled to "
                 "0..1, minus mean, divided by std",
        **{name: list(v) if isinstance(v, (list, tuple)) else v for name, v in prepare.items()},
    }
    return {
        name: value if isinstance(value, str) else json.dumps(value)
        for name, value in described.items()
    }


def to_onnx(model: nn.Module, img_size: int, batch_size: int, opset: int,
            described: Dict[str, str]) -> Exported:
    """The network as an ONNX model, see `onnxfile.write`."""
    content = onnxfile.write(model, img_size, batch_size, opset, described)
    _, onnxruntime = onnxfile.packages()
    return Exported(content, onnxfile.reader(content), f"onnxruntime {onnxruntime.__version__}")


def to_torchscript(model: nn.Module, img_size: int, described: Dict[str, str]) -> Exported:
    """The network as a traced TorchScript module; it takes any batch.

    The metadata is one JSON object in the extra file METADATA_FILE, see torch.jit.load.
    """
    sample = torch.zeros(1, model.config["in_chans"], img_size, img_size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on TorchScript's own future
        traced = torch.jit.trace(model, sample, check_trace=False)
        buffer = io.BytesIO()
        torch.jit.save(traced, buffer, _extra_files={METADATA_FILE: json.dumps(described)})
        loaded = torch.jit.load(io.BytesIO(buffer.getvalue()))
    return Exported(buffer.getvalue(), loaded, f"TorchScript of PyTorch {torch.__version__}")


def to_safetensors(model: nn.Module, described: Dict[str, str]) -> Exported:
    """The weights, with timm's names, as safetensors; no graph.

    Raises:
        ValueError: what is read back is not bit by bit what was written.
    """
    state = model.state_dict()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        safetensors.save(path, state, described)
        content = path.read_bytes()
    read, _ = safetensors.parse(content)
    differing = sorted(state.keys() ^ read.keys()) or [
        name for name in state if not torch.equal(state[name], read[name])
    ]
    if differing:
        raise ValueError(f"safetensors reads back other tensors than it wrote: {differing[:5]}")
    rebuilt = create_model(**model.config).eval()
    rebuilt.load_state_dict(read)
    return Exported(content, rebuilt, "the network built from the file")


def compare(model: nn.Module, run: Run, images: Tensor, batch_size: int) -> Comparison:
    """Give the same images to both networks.

    Args:
        images: (N, C, H, W).
        batch_size: the batch that `run` takes, the last one filled up with the first images; 0 for
            any, which is tried with one image and with the others together.
    """
    precise = copy.deepcopy(model).double()
    largest, rounding, same_class = 0.0, 0.0, 0
    with torch.no_grad():
        for part in images.split(8):
            rounding = max(rounding, _distance(model(part), precise(part.double())))
        for chosen, counted in _batches(len(images), batch_size):
            expected, answer = model(images[chosen]), run(images[chosen])
            if answer.shape != expected.shape:
                return Comparison(len(images), math.inf, rounding, 0)
            largest = max(largest, _distance(answer, expected))
            same_class += int((answer.argmax(1) == expected.argmax(1))[:counted].sum())
    return Comparison(len(images), largest, rounding, same_class)


def _distance(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference; infinite where something is no number."""
    distance = (one - other).abs().max().item()
    return distance if math.isfinite(distance) else math.inf


def _batches(count: int, batch_size: int) -> List[Tuple[List[int], int]]:
    """The images of each batch, and how many of them were in none before, which come first."""
    every = list(range(count))
    if not batch_size:
        return [(every[:1], 1), (every[1:] or [0, 0], count - 1)]
    filled = [index % count for index in range(-(-count // batch_size) * batch_size)]
    return [
        (filled[start:start + batch_size], min(batch_size, count - start))
        for start in range(0, count, batch_size)
    ]
