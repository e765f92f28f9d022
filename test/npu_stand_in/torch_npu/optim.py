"""Stand-ins for torch_npu's fused optimizers: their formulas, and their demands on gradients.

The real ones move all parameters, gradients and states into buffers of their own at the first step
and never look at `.grad` again. A gradient that is replaced afterwards is therefore lost without a
word; here it is an error.
"""
import torch
from torch.optim import Optimizer


def _combine(tensors):
    """Move tensors into one buffer, in place; returns the buffer."""
    assert all(tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
               for tensor in tensors), "a tensor shares its storage with others"
    buffer = torch.empty(sum(tensor.numel() for tensor in tensors), dtype=tensors[0].dtype,
                         device=tensors[0].device)
    offset = 0
    for tensor in tensors:
        part = buffer.as_strided(tensor.shape, tensor.stride(), offset)
        part.copy_(tensor)
        tensor.data = part
        offset += tensor.numel()
    return buffer


class _Fused(Optimizer):
    is_fused_optimizer = True

    def __init__(self, params, defaults):
        super().__init__(params, defaults)
        self._buffers = None

    @torch.no_grad()
    def step(self, closure=None):
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        if self._buffers is None:
            self._buffers = []
            for group in self.param_groups:
                members = [p for p in group["params"] if p.grad is not None]
                states = self._states(members, group)
                self._buffers.append((_combine(members), _combine([p.grad for p in members]),
                                      *[_combine(state) for state in states]))
            self._places = [p.grad.data_ptr() for p in params]
        assert [p.grad.data_ptr() for p in params] == self._places, "a gradient left its buffer"
        for group, buffers in zip(self.param_groups, self._buffers):
            self._group_step(group, *buffers)

    def zero_grad(self, set_to_none=False):
        if set_to_none:
            raise ValueError("set_to_none is not supported in fused optimizers")
        for buffers in self._buffers or ():
            buffers[1].zero_()

    def _state(self, members, name, make):
        for p in members:
            # A loaded state is copied, because it is to be moved into the buffer.
            self.state[p][name] = self.state[p][name].clone() if name in self.state[p] else make(p)
        return [self.state[p][name] for p in members]


class NpuFusedSGD(_Fused):
    def __init__(self, params, lr, momentum=0.0, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    def _states(self, members, group):
        return [self._state(members, "momentum_buffer", torch.zeros_like)]

    def _group_step(self, group, params, grads, buffer):
        buffer.mul_(group["momentum"]).add_(grads.add(params, alpha=group["weight_decay"]))
        params.add_(buffer, alpha=-group["lr"])


class NpuFusedRMSprop(_Fused):
    def __init__(self, params, lr, alpha=0.99, eps=1e-8, weight_decay=0.0, momentum=0.0):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum,
                                  "weight_decay": weight_decay})

    def _states(self, members, group):
        for p in members:
            self.state[p].setdefault("step", 0)
        return [self._state(members, "square_avg", torch.zeros_like),
                self._state(members, "momentum_buffer", torch.zeros_like)]

    def _group_step(self, group, params, grads, square_avg, buffer):
        grads = grads.add(params, alpha=group["weight_decay"])
        square_avg.mul_(group["alpha"]).addcmul_(grads, grads, value=1 - group["alpha"])
        average = square_avg.sqrt().add_(group["eps"])
        buffer.mul_(group["momentum"]).addcdiv_(grads, average)
        params.add_(buffer, alpha=-group["lr"])


class NpuFusedRMSpropTF(_Fused):
    def __init__(self, params, lr, alpha=0.9, eps=1e-10, weight_decay=0.0, momentum=0.0):
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum,
                                  "weight_decay": weight_decay})

    def _states(self, members, group):
        for p in members:
            self.state[p].setdefault("step", 0)
        return [self._state(members, "square_avg", torch.ones_like),
                self._state(members, "momentum_buffer", torch.zeros_like)]

    def _group_step(self, group, params, grads, square_avg, buffer):
        grads = grads.add(params, alpha=group["weight_decay"])
        square_avg.add_(grads.pow(2) - square_avg, alpha=1.0 - group["alpha"])
        average = square_avg.add(group["eps"]).sqrt_()
        buffer.mul_(group["momentum"]).addcdiv_(grads, average, value=group["lr"])
        params.add_(buffer, alpha=-1)
