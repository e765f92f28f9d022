"""What PyTorch and the accelerator say of themselves, for the doctor.

Importing a device extension, or the first kernel, may end or hang the process where a driver is
broken. So this runs in a process of its own, and every finding is a line of JSON, written at once.
"""
import importlib
import importlib.util
import json
import os
import sys
from typing import Any, Callable, Dict

from mobilenetv3 import host

# Module, its package on the index, and the oldest version that serves.
PACKAGES = (
    ("numpy", "numpy", ""), ("torch", "torch", "1.8.1"), ("torchvision", "torchvision", "0.9.1"),
    ("timm", "timm", "0.9.16"), ("PIL", "pillow", ""), ("yaml", "pyyaml", ""),
    ("sklearn", "scikit-learn", ""), ("tqdm", "tqdm", ""),
)
SHOWN = ("numpy", "torch", "torchvision", "timm")
ONLY_LOOKED_FOR = ("sklearn", "tqdm")  # slow to import, and plain enough to work if it is there

WITHOUT_CARD = "the card's own tool (npu-smi info, nvidia-smi) shows more; --device cpu needs none"


class Findings:
    """Writes findings as lines: what is being done, facts, and problems."""

    def __init__(self, write: Callable[[str], Any]):
        self.write = write

    def doing(self, what: str) -> None:
        """Said before anything that may not come back."""
        self.write(json.dumps({"doing": what}))

    def fact(self, name: str, value: Any) -> None:
        """Something found, as text or plain containers."""
        self.write(json.dumps({"fact": name, "value": value}))

    def problem(self, what: str, remedy: str, stops: bool) -> None:
        """Something wrong; `stops`: training as asked for cannot run."""
        self.write(json.dumps({"problem": what, "remedy": remedy, "stops": stops}))


def probe(kind: str, found: Findings) -> None:
    """Report on the packages and on a kind of device, or on the one that "auto" takes."""
    modules = import_packages(found)
    if "PIL" in modules:
        jpeg(found)
    if "torch" not in modules:
        return
    found.doing(f"--device {kind}")
    from mobilenetv3 import device as devices

    if kind != "auto" and kind not in devices.BACKENDS:
        found.problem(f"there is no --device {kind}",
                      f"use auto, {', '.join(devices.BACKENDS)}", True)
        return
    # Only what was asked for is opened, as in training.
    cards = {}
    for each in devices.BACKENDS if kind == "auto" else (kind,):
        fault = devices.fault(each)
        if fault is None and each != "cpu":
            cards[each] = card_names(each)
        elif fault is not None and (fault.is_meant or each == kind):
            found.problem(fault.what, fault.remedy, each == kind)
    found.fact("cards", cards)
    if kind != "auto" and devices.fault(kind) is not None:
        return
    index, _ = devices.card_index(None, None)
    chosen = devices.select(kind, index)
    found.fact("device", chosen.type if chosen.type == "cpu" else f"{chosen.type}:{chosen.index}")
    found.doing(f"a convolution on {chosen.torch_device}")
    check_kernel(chosen)
    found.doing(f"the questions to {chosen.torch_device}")
    found.fact("float16 overflow", "inf and NaN" if chosen.has_inf_nan else
               "saturates; the chip's overflow flag is read instead")
    collectives(chosen, found)
    if "timm" in modules:
        found.fact("AMP", amp(chosen))


def import_packages(found: Findings) -> Dict[str, Any]:
    """Import what training needs; the modules that could be imported, by name."""
    modules = {}
    for name, package, oldest in PACKAGES:
        found.doing(f"import {name}")
        try:
            if name in ONLY_LOOKED_FOR and importlib.util.find_spec(name) is not None:
                continue
            modules[name] = importlib.import_module(name)
        except ModuleNotFoundError as error:
            missing = package if error.name == name else error.name
            found.problem(str(error), f"pip install {missing}", True)
            continue
        except Exception as error:  # noqa: BLE001  (a broken binary fails in many ways)
            with_torch = "" if name in ("torch", "numpy") else " in the version for this PyTorch"
            found.problem(f"{name} cannot be imported ({type(error).__name__}: {error})",
                          f"install {package} again{with_torch}", True)
            continue
        version = str(getattr(modules[name], "__version__", "?"))
        if name in SHOWN:
            found.fact(name, version)
        if oldest and numbers(version) < numbers(oldest):
            found.problem(f"{name} {version} is too old",
                          f"install {package} {oldest} or newer", True)
    return modules


def numbers(version: str):
    """"0.9.16+cpu" -> (0, 9, 16)."""
    parts = version.split("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def card_names(kind: str):
    """Names of the cards of a kind."""
    import torch

    from mobilenetv3 import device as devices

    names = []
    for index in range(devices.count(kind)):
        try:
            names.append(getattr(torch, kind).get_device_name(index))
        except Exception as error:  # noqa: BLE001  (a card may have failed)
            names.append(f"({type(error).__name__}: {str(error).splitlines()[0]})")
    return names


def check_kernel(chosen) -> None:
    """Run a convolution: it needs the compiler, the kernels and the memory of the device.

    Raises:
        RuntimeError: it fails, or calculates wrongly.
    """
    import torch

    place = chosen.torch_device
    images, weights = torch.ones(1, 3, 8, 8, device=place), torch.ones(4, 3, 3, 3, device=place)
    total = torch.nn.functional.conv2d(images, weights).sum().item()
    if total != 4 * 36 * 27:  # output channels, their pixels, products summed in each
        raise RuntimeError(f"a convolution of ones gave {total}, not {4 * 36 * 27}")


def collectives(chosen, found: Findings) -> None:
    """Whether torch.distributed has the library that several ranks on this device need."""
    import torch.distributed as td

    name = chosen.backend
    is_there = td.is_available()
    if is_there:
        ask = getattr(td, f"is_{name}_available", None)
        is_there = ask() if ask is not None else hasattr(td.Backend, name.upper())
    found.fact("collectives", name if is_there else f"{name} is missing")
    if not is_there:
        found.problem(f"this PyTorch has no {name}",
                      "several ranks need a build that has it, or --dist-backend gloo", False)


def amp(chosen) -> str:
    """What --apex, which is O2 unless said otherwise, means on this device."""
    from mobilenetv3 import precision, scaling

    try:
        made = precision.create_precision("O2", chosen)
    except ValueError as error:
        return str(error)
    is_dynamic = isinstance(made.scaler, scaling.DynamicScaler)
    return f"--apex is {made.amp_type}, loss scale {'dynamic' if is_dynamic else '1'}"


def jpeg(found: Findings) -> None:
    """The library that decodes the images."""
    from PIL import Image, features

    name = f"Pillow {Image.__version__}"
    if not features.check("jpg"):
        found.problem(f"{name} cannot read JPEG", "install Pillow's own wheel: pip install "
                      "--force-reinstall pillow", True)
    elif features.check_feature("libjpeg_turbo"):
        name += f", libjpeg-turbo {features.version_feature('libjpeg_turbo')}"
    else:
        name += ", libjpeg (slow)"
        found.problem("Pillow decodes JPEG without libjpeg-turbo, several times slower",
                      "install Pillow's own wheel: pip install --force-reinstall pillow", False)
    try:
        name += f"; simplejpeg {importlib.import_module('simplejpeg').__version__}"
    except (ImportError, ValueError) as error:  # ValueError: built for another numpy
        found.problem(f"--decode fast takes Pillow: {error}", "pip install simplejpeg", False)
    found.fact("JPEG", name)


def main(kind: str) -> None:
    """Write findings to what was standard output; what libraries print goes to standard error."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        found = Findings(lambda line: print(line, file=out, flush=True))
        try:
            probe(kind, found)
        except Exception as error:  # noqa: BLE001  (whatever it is, it is a finding)
            told = isinstance(error, ValueError)  # our own, with a remedy in it
            what = str(error) if told else f"{type(error).__name__}: {host.first_line(error)}"
            found.problem(what, "" if told else WITHOUT_CARD, True)


if __name__ == "__main__":
    main(sys.argv[1])
