"""What PyTorch would let pass on its way to the device."""
import torch
import torch._tensor_str as tensor_str
from torch.overrides import TorchFunctionMode


class _NoIntegerDevices(TorchFunctionMode):
    """Refuses a bare number where a device is expected.

    Newer versions take it as a card of whatever accelerator there is; before 2.5 it meant CUDA.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name, given = getattr(func, "__name__", ""), kwargs.get("device")
        if given is None and name in _DEVICE_COMES_FIRST:
            given = next((a for a in args if not isinstance(a, (torch.Tensor, type))), None)
        # tensor.npu(0) says which device it means.
        if type(given) is int and name != "npu":
            raise TypeError(
                f"device={given} means CUDA to PyTorch before 2.5; give torch.device('npu', "
                f"{given})"
            )
        return func(*args, **kwargs)


# Tensor.to(0), nn.Module.to(0), torch.device(0)
_DEVICE_COMES_FIRST = ("to", "_parse_to", "device")


def refuse_integer_devices() -> None:
    """From now on, in the thread that calls this: the one that runs the program."""
    _NoIntegerDevices().__enter__()


def print_without_double() -> None:
    """Let tensors of the device be printed: PyTorch formats them in float64, which is refused."""
    original = tensor_str.tensor_totype
    tensor_str.tensor_totype = lambda t: t.float() if t.device.type == "npu" else original(t)
