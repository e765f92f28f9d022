"""The stand-in for torch_npu: a device "npu" of eight cards over host memory, for tests only.

Importing it registers PyTorch's PrivateUse1 backend under the name "npu", torch.npu, and the
process-group backend "hccl". See README.md one folder up.
"""
import importlib.util
import sys

import torch

from torch_npu import _build


def _load_extension():
    spec = importlib.util.spec_from_file_location(_build.NAME, str(_build.library()))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_C = sys.modules[__name__ + "._C"] = _load_extension()
_C.device_count()  # a wrong NPU_STAND_IN_DEVICES is told here, not in the middle of training

from torch_npu import _strict, _sync_batch_norm, npu  # noqa: E402

__version__ = "0.0.0+stand.in"


def _register() -> None:
    torch.utils.rename_privateuse1_backend("npu")
    torch._register_device_module("npu", npu)
    torch.utils.generate_methods_for_privateuse1_backend(
        for_tensor=True, for_module=True, for_packed_sequence=True, for_storage=True
    )
    _sync_batch_norm.register()
    _strict.refuse_integer_devices()
    _strict.print_without_double()
    if torch.distributed.is_available():
        from torch_npu import _hccl

        _hccl.register()


_register()


def _autoload() -> None:
    """What PyTorch calls where torch_npu is installed: importing has done everything."""
