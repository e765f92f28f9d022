"""Checkpoints: written whole or not at all, read without running anything they contain.

Our own is a dict of tensors and plain containers, in torch.save's format. The names of the files,
and the keys `epoch`, `arch`, `state_dict` and `optimizer`, are the ones users of ModelZoo and timm
know. What others wrote is read too, whatever the file is called: what it is, its content says.
"""
import copy
import io
import mmap
import os
import tarfile
from typing import Any, BinaryIO, Callable, Dict, Mapping, Optional, Tuple

import torch

from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.formats import mindspore, safetensors, torchfile, torchwriter
from mobilenetv3.formats.tensorbytes import Refusal

LAST = "checkpoint.pth.tar"
BEST = "model_best.pth.tar"

_HEAD = 32  # bytes, enough to tell every format by


def save(path: PathLike, state: Dict[str, Any]) -> None:
    """Write a checkpoint atomically, for torch.load and `load`.

    Raises:
        ValueError: it holds a tensor of a type that torch.load of PyTorch 1.8 does not know.
    """
    write_atomically(path, lambda file: write(file, state))


def write(file: BinaryIO, state: Dict[str, Any]) -> None:
    """Write a checkpoint to an open file; the same state makes the same bytes."""
    torchwriter.write_zip(file, state)


def copy_of(state: Any) -> Any:
    """The state with every tensor copied to the CPU; tensors that share memory share the copy.

    Copies from cards are begun together and waited for once, at the end.
    """
    taken: Dict[Tuple, torch.Tensor] = {}
    cards: Dict[torch.device, torch.Tensor] = {}
    copied = _copied(state, taken, cards)
    for tensor in cards.values():
        tensor.reshape(-1)[:1].cpu()  # waits for all that its card was given before
    return copied


def _copied(value: Any, taken: Dict[Tuple, torch.Tensor],
            cards: Dict[torch.device, torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        tensor = value.detach()
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() == 0 or place not in taken:
            taken[place] = tensor.to("cpu", non_blocking=True, copy=True)
            if tensor.device.type != "cpu" and tensor.numel():
                cards[tensor.device] = tensor
        return taken[place]
    if isinstance(value, dict):
        # A dict's own class, such as OrderedDict, tells a reader nothing.
        return {key: _copied(item, taken, cards) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_copied(item, taken, cards) for item in value)
    return copy.deepcopy(value)


def save_safetensors(
    path: PathLike,
    tensors: Mapping[str, torch.Tensor],
    metadata: Optional[Mapping[str, str]] = None,
) -> None:
    """Write tensors as safetensors, atomically; `metadata_of` gives the metadata back.

    Raises:
        ValueError: something is not a tensor, or metadata is not text.
    """
    safetensors.save(path, tensors, metadata or {})


def save_mindspore(path: PathLike, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write tensors as a MindSpore checkpoint, atomically.

    Raises:
        ValueError: something is not a tensor, or of a type that MindSpore has not.
    """
    mindspore.save(path, tensors)


def load(path: PathLike) -> Any:
    """Read a checkpoint onto the CPU; nothing in the file is executed.

    Whatever its name: a zip archive or an older stream of torch.save (what was saved; a Parameter
    as a plain tensor, numpy's numbers as Python's, an argparse.Namespace as such, mmengine's
    training logs left out), safetensors ({name: tensor}), or a MindSpore checkpoint ({name: tensor}
    with MindSpore's own names, texts as str).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or holds more than tensors and plain containers.
    """
    return _read(path, _reader)


def loads(data: bytes) -> Any:
    """What `save`, or torch.save, wrote, from memory; nothing in it is executed.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return torchfile.read_zip(io.BytesIO(data), len(data))
    except Exception as error:
        raise ValueError(f"a checkpoint in memory is damaged ({_one_line(error)})") from error


def metadata_of(path: PathLike) -> Dict[str, str]:
    """The metadata of a safetensors file; {} for a file of another format.

    Raises:
        As `load`.
    """
    def reader(head, size):
        if not safetensors.looks_like(head, size):
            return lambda file, size: {}
        return lambda file, size: safetensors.parse(_map(file))[1]

    return _read(path, reader)


def _read(path: PathLike, choose: Callable[[bytes, int], Callable[[BinaryIO, int], Any]]) -> Any:
    """What the reader that `choose(first bytes, size)` gives makes of a file, named in errors."""
    if not os.path.isfile(str(path)):
        raise FileNotFoundError(f"no checkpoint at {path}; expected a file")
    try:
        with open(str(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD)
            file.seek(0)
            return choose(head, size)(file, size)
    except Refusal as error:
        raise ValueError(f"{path} {_one_line(error)}") from error
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {_one_line(error)}") from error
    except Exception as error:
        # A damaged file fails in as many ways as there are places to damage it.
        raise ValueError(
            f"{path} is damaged or not a checkpoint ({_one_line(error)}); use an earlier one"
        ) from error


def _reader(head: bytes, size: int) -> Callable[[BinaryIO, int], Any]:
    """The reader (file, its size) -> value for a file that begins with `head`."""
    if safetensors.looks_like(head, size):  # first: it begins with a number, which may be any byte
        return lambda file, size: safetensors.parse(_map(file))[0]
    if head.startswith(torchfile.ZIP_MAGIC):
        return torchfile.read_zip
    if head.startswith(b"\x80"):  # a pickle's first opcode
        return lambda file, size: torchfile.read_stream(_map(file), size)
    if mindspore.looks_like(head, size):
        return lambda file, size: mindspore.parse(_map(file))
    return _not_a_checkpoint


def _map(file: BinaryIO) -> mmap.mmap:
    # Read as it is needed; closed with the last reference, which an error may still hold.
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _not_a_checkpoint(file: BinaryIO, size: int) -> None:
    """Say what a file is that people take for a checkpoint."""
    head = file.read(_HEAD)
    file.seek(0)
    if size == 0:
        raise Refusal("is empty; it was not written to its end")
    if head.startswith(b"version https://git-lfs"):
        raise Refusal("is a Git LFS pointer, not the file itself; fetch it with git lfs pull")
    if head.startswith(b"\x1f\x8b") or head[:6] == b"\xfd7zXZ\0":
        raise Refusal("is compressed; unpack it first")
    if head.lstrip()[:1] == b"<":
        raise Refusal("is a web page, not a checkpoint; the download went wrong")
    try:
        tarfile.open(fileobj=file, mode="r:").close()
    except tarfile.TarError:
        raise ValueError("it begins like no format that is read") from None
    raise Refusal("is a tar archive; unpack it and give the checkpoint inside it")


def _one_line(error: Exception) -> str:
    """An error's message, fit to be printed: names in it come from the file."""
    lines = str(error).splitlines() or [type(error).__name__]
    text = "".join(c if c.isprintable() else "?" for c in lines[0])
    return text if len(text) <= 400 else text[:400] + "..."


def weights_of(state: Any) -> Dict[str, torch.Tensor]:
    """The weights to evaluate or to start from, out of a checkpoint or a bare state dict.

    The averaged weights where there are any: they are the ones a run with EMA scores.
    """
    for key in ("state_dict_ema", "state_dict"):
        if isinstance(state, dict) and state.get(key):
            state = state[key]
            break
    if not isinstance(state, dict) or not all(torch.is_tensor(v) for v in state.values()):
        raise ValueError("it holds no state_dict, that is, no names with tensors")
    prefix = "module."
    if all(name.startswith(prefix) for name in state):
        state = {name[len(prefix):]: value for name, value in state.items()}
    return state


def load_weights(model: torch.nn.Module, state: Any, path: PathLike) -> None:
    """Load weights strictly.

    Raises:
        ValueError: names or shapes differ; lists what is missing, unexpected and of another shape.
    """
    try:
        given = weights_of(state)
    except ValueError as error:
        raise ValueError(f"{path} cannot be loaded: {error}") from error
    wanted = model.state_dict()
    problems = {
        "missing": sorted(wanted.keys() - given.keys()),
        "unexpected": sorted(given.keys() - wanted.keys()),
        "of another shape": [
            f"{name} {tuple(given[name].shape)} (the model's is {tuple(wanted[name].shape)})"
            for name in wanted if name in given and given[name].shape != wanted[name].shape
        ],
    }
    if any(problems.values()):
        told = "; ".join(
            f"{len(names)} {kind}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"
            for kind, names in problems.items() if names
        )
        raise ValueError(f"the weights in {path} do not fit the model: {told}")
    model.load_state_dict(given)


def check_resumable(state: Any, path: PathLike, model: Dict[str, Any], has_ema: bool) -> None:
    """Refuse to go on from a checkpoint that belongs to another run.

    Args:
        model: the configuration of the model that is to be trained.
        has_ema: whether the run keeps averaged weights.

    Raises:
        ValueError: names what differs, with both values.
    """
    needed = {"epoch", "model", "state_dict", "optimizer", "precision"}
    if not isinstance(state, dict) or not needed <= state.keys():
        raise ValueError(
            f"{path} cannot be resumed: it holds weights but not the state of a run; start from "
            "its weights with --ckpt_path"
        )
    for name, value in model.items():
        saved = state["model"].get(name, value)  # an option that is newer than the checkpoint
        if saved != value:
            raise ValueError(
                f"{path} cannot be resumed: its model has {name} {saved}, this run's has {value}"
            )
    if has_ema and not state.get("state_dict_ema"):
        raise ValueError(
            f"{path} cannot be resumed with --model-ema: it was saved by a run without it"
        )
