"""Knowledge distillation: a trained network answers the training images, too (Hinton et al. 2015).

The teacher is no part of the run: it is not trained, not in the checkpoints, and each rank has one.
"""
import hashlib
import os
from typing import List, NamedTuple, Optional, Sequence

import timm
import torch
from torch import nn
from torch.nn import functional as F

from mobilenetv3 import checkpoint, convert, models
from mobilenetv3.models.pretrained import read_for_timm

FILES = (".pth", ".pt", ".tar", ".safetensors", ".ckpt", ".bin")
"""A teacher's name that ends so is a file's."""


class Found(NamedTuple):
    """A teacher's network, with its weights."""

    title: str
    model: nn.Module
    mean: Sequence[float]
    std: Sequence[float]
    classes: Optional[List[str]]
    """Names of its classes, where its file has them."""


def find(name: str, file: str, num_classes: int) -> Found:
    """The network that --teacher names.

    Args:
        name: a file of weights of any family that `convert` reads; or, without `file`, a model of
            timm's, by timm's name or an alias of this package, whose weights are taken from the hub
            or its cache.
        file: the weights of the network `name`, one of this package's or of timm's.
        num_classes: of the run; tells how large the classifier in `file` is to be.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the network is not known, its weights cannot be had, or they do not fit.
    """
    if os.path.isfile(name) or name.endswith(FILES):
        if file:
            raise ValueError(f"--teacher {name} is a file with its own weights; --teacher_ckpt is "
                             "for a teacher that is given by its name")
        return _of_any_family(convert.read(name))
    try:
        ours = models.canonical_name(name)
    except ValueError:  # timm's alone
        ours = ""
    if not file:
        return _published(ours or name)
    return _of_any_family(convert.read(file, arch=ours)) if ours else _of_timm(
        name, file, num_classes)


def _of_any_family(weights: convert.Weights) -> Found:
    arch = weights.config["arch"]
    if models.canonical_name(arch) in models.SEGMENTERS:
        raise ValueError(f"--teacher: {weights.path} holds a {arch}, which labels pixels; expected "
                         "a classifier")
    model = convert.build(weights)
    return Found(f"{weights.path} ({model.config['arch']})", model, weights.prepare["mean"],
                 weights.prepare["std"], weights.classes)


def _of_timm(name: str, file: str, num_classes: int) -> Found:
    state = checkpoint.load(file)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):  # DeiT's files
        state = state["model"]
    try:
        tensors = checkpoint.weights_of(state)
    except ValueError as error:
        raise ValueError(f"--teacher_ckpt {file}: {error}") from error
    model = _create(name, "there is no such network", num_classes=num_classes)
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        told = " ".join(str(error).split())[:300]
        raise ValueError(f"--teacher_ckpt {file} does not fit timm's {name} with {num_classes} "
                         f"classes, the number that this run has: {told}") from error
    return _with_timms_mean(f"timm's {name} from {file}", model)


def _published(name: str) -> Found:
    model = _create(name, "its weights are neither in the cache nor within reach, or there is no "
                    "such network; --teacher_ckpt FILE gives them", pretrained=True)
    return _with_timms_mean(f"timm's {name}", model)


def _create(name: str, or_else: str, pretrained: bool = False, **options) -> nn.Module:
    try:
        more = read_for_timm(name) if pretrained else {}
        return timm.create_model(name, pretrained=pretrained, **more, **options)
    except Exception as error:  # the hub, the network and timm fail in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"--teacher {name}: timm does not give it ({reason}): {or_else}"
                         ) from error


def _with_timms_mean(title: str, model: nn.Module) -> Found:
    prepared = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", {})
    return Found(title, model, prepared["mean"], prepared["std"], None)


class Teacher:
    """Answers images as the student sees them: augmented, mixed, normalised for the student.

    Args:
        found: from `find`; its network is taken over.
        precision: the run's: the teacher computes as the student does.
        mean, std: that the student's images were normalised with.
        device: torch.device; memory_format: of its weights.
    """

    def __init__(self, found: Found, precision, mean: Sequence[float], std: Sequence[float],
                 device: torch.device, memory_format=torch.contiguous_format):
        self.title, self.classes, self.precision = found.title, found.classes, precision
        self.digest = _digest(found.model)
        self.parameters = sum(parameter.numel() for parameter in found.model.parameters())
        model = found.model.eval().requires_grad_(False)
        model = precision.for_inference(model.to(device, memory_format=memory_format))
        self.model = model.eval()
        theirs, ours = (torch.tensor([list(found.mean), list(found.std)]),
                        torch.tensor([list(mean), list(std)]))
        self._factor = self._shift = None  # from the student's normalisation to the teacher's
        if not torch.allclose(theirs, ours):
            factor, shift = ours[1] / theirs[1], (ours[0] - theirs[0]) / theirs[1]
            self._factor, self._shift = (
                value.view(1, 3, 1, 1).to(device) for value in (factor, shift))

    @torch.no_grad()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Logits (N, C), float32, of images (N, 3, H, W)."""
        if self._factor is not None:
            images = images * self._factor + self._shift
        return self.precision.forward(self.model, images)

    def check(self, sides: Sequence[int], num_classes: int, device: torch.device) -> None:
        """Answer blank images once, before the run begins.

        Raises:
            ValueError: it does not take images of one of these sides, or has other classes than
                the run, or its answer is not finite.
        """
        for side in sides:
            try:
                answer = self(torch.zeros(2, 3, side, side, device=device))
            except (RuntimeError, AssertionError, ValueError) as error:
                reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
                raise ValueError(f"--teacher: {self.title} does not take training images of "
                                 f"{side}x{side} ({reason})") from error
            if answer.dim() != 2 or answer.shape[1] != num_classes:
                has = f"{answer.shape[1]} classes" if answer.dim() == 2 else "no class scores"
                raise ValueError(
                    f"--teacher: {self.title} has {has}, and this run has {num_classes}; a teacher "
                    "must have been trained on the same classes: give its own checkpoint"
                )
            if not torch.isfinite(answer).all():
                raise ValueError(f"--teacher: {self.title} answers a blank image with numbers that "
                                 f"are not finite, in {self.precision.amp_type}")

    def notes(self, alpha: float, temperature: float, classes: List[str]) -> List[str]:
        """What the log says of it, a line each.

        Args:
            classes: names of the run's classes.

        Raises:
            ValueError: its classes are the run's in another order, or only partly.
        """
        lines = [f"=> teacher: {self.title}, {self.parameters / 1e6:.2f} M parameters, weights "
                 f"{self.digest}; Loss is {1 - alpha:g} x that of the labels + {alpha:g} x "
                 f"{temperature:g}^2 x the divergence from the teacher at temperature "
                 f"{temperature:g}"]
        names = self.classes
        if names is None or list(names) == list(classes):
            return lines
        if set(names) & set(classes):
            raise ValueError(
                f"--teacher: {self.title} has other classes ({', '.join(names[:3])}, ...) than "
                f"this run ({', '.join(classes[:3])}, ...), or the same in another order"
            )
        return [*lines, f"=> the teacher's classes have other names ({', '.join(names[:3])}, ...) "
                        f"than the data set's ({', '.join(classes[:3])}, ...): taken to be in the "
                        "same order"]


def _digest(model: nn.Module) -> str:
    """Tells one set of weights from another."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        found.update(name.encode())
        found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()[:12]


class DistillationLoss:
    """(1 - alpha) x the labels' loss + alpha x T^2 x KL(teacher at T || student at T), batch means.

    At temperature T logits are divided by T before the softmax; T^2 keeps the gradients of the two
    parts in proportion. Source: Hinton et al. 2015, section 2; the weighting is DeiT's, whose
    second part is smaller by the number of classes: its mean is also over them.

    A criterion like any other, but it must `see` the images of a batch before it is asked about it;
    the loader shows them (`DeviceLoader.observe`).

    Args:
        criterion: of the labels; (logits (N, C), targets) -> scalar.
    """

    def __init__(self, criterion, teacher: Teacher, alpha: float, temperature: float):
        self.criterion, self.teacher = criterion, teacher
        self.alpha, self.temperature = alpha, temperature
        self._images: Optional[torch.Tensor] = None

    def see(self, images: torch.Tensor) -> None:
        """Take note of the images (N, 3, H, W) of the batch that comes next."""
        self._images = images

    def __call__(self, output: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss of logits (N, C), a scalar."""
        assert self._images is not None and len(self._images) == len(output)
        taught, self._images = self.teacher(self._images), None
        ours = F.log_softmax(output / self.temperature, 1)
        theirs = F.log_softmax(taught / self.temperature, 1)
        soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        soft = soft * self.temperature ** 2
        return (1.0 - self.alpha) * self.criterion(output, targets) + self.alpha * soft
