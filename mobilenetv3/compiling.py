"""torch.compile for the training step, with a way back: what does not compile runs as it is.

A module is compiled where it stands: it keeps its class, its names and its state_dict, so that
checkpoints, averages, precision and DistributedDataParallel know nothing of it.
"""
from typing import Callable, Optional

import torch
from torch import nn

_SINCE = "_compiled_call_impl"  # what a module calls in its stead; came with 2.2


def check(mode: str) -> str:
    """What is in the way of compiling here; "" for nothing that is known beforehand."""
    if not mode:
        return ""
    if not hasattr(torch, "compile") or not hasattr(nn.Module, "compile"):
        return f"PyTorch {torch.__version__} has no torch.compile for modules; 2.2 and newer do"
    return ""


def compile_step(model: nn.Module, criterion: nn.Module, mode: str, accumulate: int,
                 log: Callable[[str], None], backend: str = "inductor") -> str:
    """Compile forward and loss in training; evaluation stays as it is.

    The work is done in the first step, and again in the first of each further size of images. If it
    fails, the step and all later ones run eagerly, and the log says why in one line.

    Args:
        model: before it is wrapped for parallel training, and after it has been cast.
        mode: PyTorch's "default", or "reduce-overhead" or "max-autotune", which record CUDA graphs
            on cards that have them; "" for no compilation.
        accumulate: steps whose gradients make one update.
        backend: torch.compile's.

    Returns:
        A line for the log; "" where nothing was asked for.
    """
    if not mode:
        return ""
    fault = check(mode)
    if fault:
        return f"--compile: running eagerly: {fault}"
    note, chosen = "", mode
    if accumulate > 1 and mode != "default":
        # A graph writes its gradients to the same memory every time, also over those of the
        # micro-step before that are still being summed.
        chosen = "default" if mode == "reduce-overhead" else "max-autotune-no-cudagraphs"
        note = f"; without CUDA graphs, which --grad_accum_steps {accumulate} does not allow"
    begins = getattr(getattr(torch, "compiler", None), "cudagraph_mark_step_begin", None)
    state = _State(log)
    _compile_backward_at_once()
    for module, begin in ((model, begins), (criterion, None)):
        # Kernels of one size each: those for any size, which PyTorch would make for the second, are
        # slower.
        options = {"dynamic": False, **({"mode": chosen} if backend == "inductor" else {})}
        compiled = torch.compile(module._call_impl, backend=backend, **options)
        setattr(module, _SINCE, _Guarded(module, compiled, state, begin))
    return f"--compile: torch.compile of forward and loss, mode {chosen}{note}"


def _compile_backward_at_once() -> None:
    """Let a backward pass be compiled with its forward pass, not when the gradients are asked for:
    by then there is no way back. Old versions have no such setting."""
    import torch._functorch.config as functorch

    if hasattr(functorch, "force_non_lazy_backward_lowering"):
        functorch.force_non_lazy_backward_lowering = True


class _State:
    """What model and loss share: once one of them fails, both run eagerly."""

    def __init__(self, log: Callable[[str], None]):
        self.log, self.failed = log, False

    def fail(self, error: Exception) -> None:
        self.failed = True
        # "backend='inductor' raised:", and on the next line what it was.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        told = lines[1:2] if lines and lines[0].endswith("raised:") else lines[:1]
        reason = ": ".join([type(error).__name__, *told])
        self.log(f"=> --compile: running eagerly: {reason[:200]}")


class _Guarded:
    """Calls the compiled form in training; for good the module itself once that has failed.

    Args:
        begin: tells CUDA graphs that a new step begins, and that memory of the last is free.
    """

    def __init__(self, module: nn.Module, compiled: Callable, state: _State,
                 begin: Optional[Callable[[], None]]):
        self.module, self.compiled, self.state, self.begin = module, compiled, state, begin
        self._ran = set()  # shapes that it has been compiled for

    def __call__(self, *inputs, **named):
        if self.state.failed or not self.module.training:
            return self.module._call_impl(*inputs, **named)
        if self.begin is not None:
            self.begin()
        shapes = tuple(value.shape for value in inputs if torch.is_tensor(value))
        try:
            output = self.compiled(*inputs, **named)
        except Exception as error:  # noqa: BLE001  (compilers fail in many ways)
            if shapes in self._ran:
                raise
            output = self.module._call_impl(*inputs, **named)  # what fails here, too, is the cause
            self.state.fail(error)
            return output
        self._ran.add(shapes)
        return output
