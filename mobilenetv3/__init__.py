"""MobileNetV3 and MobileNetV2 for training on Ascend NPU, NVIDIA GPU and CPU.

The public names are loaded on first use, so that importing the package (as `train.py --help` does)
imports neither torch nor any device extension.
"""
import importlib
import os

__version__ = "0.1.0"

# From 2.5 on `import torch` loads installed device extensions by itself, and dies where one of them
# lacks its driver libraries. The device module loads what was asked for, and can explain a failure.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")

_PUBLIC = {
    "classify": "mobilenetv3.api",
    "create_model": "mobilenetv3.models",
    "inference_model": "mobilenetv3.api",
    "init_model": "mobilenetv3.api",
    "list_models": "mobilenetv3.models",
    "load_model": "mobilenetv3.api",
    "MobileNetV2": "mobilenetv3.models",
    "MobileNetV3_Large": "mobilenetv3.models",
    "MobileNetV3_Small": "mobilenetv3.models",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name):
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'mobilenetv3' has no attribute {name!r}")


def __dir__():
    return sorted(list(globals()) + __all__)
