"""torch.npu.amp: autocast and the gradient scaler under the names of torch_npu."""
import torch


def autocast(enabled=True, dtype=torch.float16, cache_enabled=True):
    """torch.autocast for the device."""
    return torch.autocast("npu", dtype=dtype, enabled=enabled, cache_enabled=cache_enabled)


class GradScaler(torch.amp.GradScaler):
    """PyTorch's scaler; its state has torch_npu's extra key, and loading demands it."""

    def __init__(self, *arguments, dynamic=True, **options):
        super().__init__("npu", *arguments, **options)
        self._dynamic = dynamic

    def state_dict(self):
        return dict(super().state_dict(), dynamic=self._dynamic)

    def load_state_dict(self, state):
        state = dict(state)
        self._dynamic = state.pop("dynamic")
        super().load_state_dict(state)
