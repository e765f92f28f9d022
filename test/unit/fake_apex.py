"""What `from apex import amp` gives, for tests: the parts that a training script sees.

Written from its documented behaviour: the model's forward is patched, masters are made lazily, the
optimizer is patched, gradients are unscaled when the scale_loss context ends, a step is skipped by
a one-shot patch, state_dict hands out float32 copies. Works on any device, unlike the real one.
"""
import contextlib
import types

import torch
from torch.nn.modules.batchnorm import _BatchNorm

MASTERS, SCALES = {"O2"}, {"O0": 1.0, "O1": "dynamic", "O2": "dynamic", "O3": 1.0}
_state = types.SimpleNamespace(scale=1.0, dynamic=False, unskipped=0, floor=None)


def initialize(model, optimizer, opt_level="O1", loss_scale=None, verbosity=1, min_loss_scale=None):
    assert not hasattr(optimizer, "_amp_stash"), "only once"
    loss_scale = SCALES[opt_level] if loss_scale is None else loss_scale
    _state.dynamic = loss_scale == "dynamic"
    _state.scale = 2.0**16 if _state.dynamic else float(loss_scale)
    _state.unskipped, _state.floor = 0, min_loss_scale
    if opt_level in ("O2", "O3"):
        for module in model.modules():
            if opt_level == "O2" and isinstance(module, _BatchNorm) and module.affine:
                continue
            for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
                if tensor.is_floating_point():
                    tensor.data = tensor.data.half()
        forward = model.forward
        model.forward = lambda images: forward(images.half()).float()
        model._register_state_dict_hook(_float_copies)
    _patch(optimizer, opt_level in MASTERS)
    return model, optimizer


def _float_copies(module, state, prefix, metadata):
    for name, value in state.items():
        state[name] = value.float() if value.dtype == torch.half else value


def _patch(optimizer, has_masters):
    stash = optimizer._amp_stash = types.SimpleNamespace(ready=False, all_fp16_params=[],
                                                         all_fp32_from_fp16_params=[], fp32=[])

    def lazy_init(self):
        if stash.ready:
            return
        stash.ready = True
        for group in self.param_groups:
            for index, parameter in enumerate(group["params"]):
                if has_masters and parameter.dtype == torch.half:
                    master = parameter.detach().clone().float().requires_grad_()
                    stash.all_fp16_params.append(parameter)
                    stash.all_fp32_from_fp16_params.append(master)
                    group["params"][index] = master
                else:
                    stash.fp32.append(parameter)

    def zero_grad(self):  # takes no set_to_none
        for parameter in stash.all_fp16_params + stash.fp32:
            if parameter.grad is not None:
                parameter.grad.detach_().zero_()
        for master in stash.all_fp32_from_fp16_params:
            master.grad = None

    step = optimizer.step

    def new_step(self):
        step()
        for parameter, master in zip(stash.all_fp16_params, stash.all_fp32_from_fp16_params):
            parameter.data.copy_(master.data)
            master.grad = None

    optimizer._amp_lazy_init = types.MethodType(lazy_init, optimizer)
    optimizer.zero_grad = types.MethodType(zero_grad, optimizer)
    optimizer.step = types.MethodType(new_step, optimizer)


def master_params(optimizer):
    for group in optimizer.param_groups:
        yield from group["params"]


@contextlib.contextmanager
def scale_loss(loss, optimizer, delay_unscale=False):
    optimizer._amp_lazy_init()
    yield loss.float() * _state.scale
    if delay_unscale:
        return
    stash, overflow = optimizer._amp_stash, False
    for parameter, master in zip(stash.all_fp16_params, stash.all_fp32_from_fp16_params):
        master.grad = parameter.grad.float()
        parameter.grad = None
    for owner in [*stash.all_fp32_from_fp16_params, *stash.fp32]:
        overflow = overflow or not bool(torch.isfinite(owner.grad).all())
        owner.grad.mul_(1.0 / _state.scale)
    if not _state.dynamic:
        return
    if overflow:
        _state.scale, _state.unskipped = max(_state.floor or 0.0, _state.scale / 2), 0
        step = optimizer.step

        def skip():
            for master in stash.all_fp32_from_fp16_params:
                master.grad = None
            optimizer.step = step
        optimizer.step = skip
    else:
        _state.unskipped += 1


def state_dict():
    return {"loss_scaler0": {"loss_scale": _state.scale, "unskipped": _state.unskipped}}


def load_state_dict(state):
    _state.scale = state["loss_scaler0"]["loss_scale"]
    _state.unskipped = state["loss_scaler0"]["unskipped"]
