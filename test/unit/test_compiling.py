"""--compile: the same losses, the same names, and a way back from every failure."""
import copy

import pytest
import torch
from torch import nn

from mobilenetv3 import compiling, device, distill, models, optim
from mobilenetv3.precision import create_precision

CPU = device.select("cpu")
needs_compile = pytest.mark.skipif(
    bool(compiling.check("default")), reason="this PyTorch has no torch.compile for modules"
)


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Hardswish(), nn.Dropout(0.2), nn.Flatten(),
        nn.Linear(4 * 36, 7),
    )


def train(mode, backend="aot_eager", level="O0", steps=3, accumulate=1, model=None, log=print):
    model = small_model() if model is None else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    precision = create_precision(level, CPU)
    precision.prepare(model, optimizer)
    criterion = optim.create_criterion(0.1, False)
    note = compiling.compile_step(model, criterion, mode, accumulate, log, backend)
    losses = []
    model.train()
    torch.manual_seed(1)
    for _ in range(steps):
        for part in range(accumulate):
            output = precision.forward(model, torch.randn(4, 3, 8, 8))
            loss = criterion(output, torch.arange(4))
            precision.backward(loss / accumulate, part + 1 == accumulate)
            losses.append(loss.item())
        precision.step(optimizer)
    return model, losses, note


@needs_compile
@pytest.mark.parametrize("level, accumulate", [("O0", 2), ("O1", 1), ("O2", 1)])
def test_compiled_steps_have_the_losses_of_plain_ones(level, accumulate):
    torch._dynamo.reset()
    _, plain, _ = train("", level=level, accumulate=accumulate)
    model, losses, note = train("default", level=level, accumulate=accumulate)
    assert note == "--compile: torch.compile of forward and loss, mode default"
    assert model._compiled_call_impl._ran == {((4, 3, 8, 8),)}
    # aot_eager runs PyTorch's own kernels; in bfloat16 (8 bits) it may round in other places.
    assert losses == pytest.approx(plain, rel=1e-5 if level == "O0" else 2e-2)


@needs_compile
def test_a_compiled_model_keeps_its_names_and_copies_of_it_are_plain():
    torch._dynamo.reset()
    model, *_ = train("default")
    assert list(model.state_dict()) == list(small_model().state_dict())
    twin = copy.deepcopy(model)
    assert type(twin) is type(model)
    assert twin._compiled_call_impl is None
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(images), twin.eval()(images))


@needs_compile
def test_evaluation_is_not_compiled_so_that_batches_may_have_any_size():
    torch._dynamo.reset()
    calls = []

    def backend(graph, inputs):
        calls.append(len(inputs))
        return graph.forward
    model, *_ = train("default", backend=backend)
    known = len(calls)
    assert known == 2  # the model and the loss, once each
    with torch.no_grad():
        for size in (8, 8, 3, 5, 1):
            model.eval()(torch.randn(size, 3, 8, 8))
    assert len(calls) == known


@needs_compile
def test_a_failure_to_compile_costs_no_step_and_is_told_in_one_line():
    torch._dynamo.reset()

    def broken(graph, inputs):
        raise RuntimeError("no compiler found\nand a long story")
    lines = []
    _, plain, _ = train("")
    _, losses, _ = train("default", backend=broken, log=lines.append)
    assert losses == plain
    assert len(lines) == 1
    assert lines[0].startswith("=> --compile: running eagerly: ")
    assert "no compiler found" in lines[0]
    assert "\n" not in lines[0]


@needs_compile
def test_a_backward_pass_that_does_not_compile_does_not_end_the_run():
    import torch._functorch.config as functorch

    if not hasattr(functorch, "force_non_lazy_backward_lowering"):
        pytest.skip("this PyTorch compiles the backward pass when it is too late to go back")
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func
    torch._dynamo.reset()

    def broken(graph, inputs):
        raise RuntimeError("no kernel for a gradient")
    backend = aot_autograd(fw_compiler=lambda graph, inputs: make_boxed_func(graph.forward),
                           bw_compiler=broken)
    lines = []
    _, plain, _ = train("")
    _, losses, _ = train("default", backend=backend, log=lines.append)
    assert losses == plain
    assert len(lines) == 1 and "no kernel for a gradient" in lines[0]


def any_size():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).train()


@needs_compile
def test_each_size_of_images_is_compiled_once_when_it_comes():
    torch._dynamo.reset()
    shapes = []

    def backend(graph, inputs):
        shapes.append([tuple(value.shape) for value in inputs if value.dim() == 4][-1])
        return graph.forward
    model = any_size()
    compiling.compile_step(model, nn.CrossEntropyLoss(), "default", 1, print, backend)
    for side in (8, 8, 12, 8, 16):
        model(torch.randn(4, 3, side, side))
    assert shapes == [(4, 3, side, side) for side in (8, 12, 16)]  # numbers, not symbols


@needs_compile
def test_a_size_that_does_not_compile_runs_eagerly_and_does_not_end_the_run():
    torch._dynamo.reset()
    lines = []

    def backend(graph, inputs):
        if any(value.shape[-1] == 12 for value in inputs if value.dim() == 4):
            raise RuntimeError("no kernels of 12")
        return graph.forward
    model = any_size()
    plain = copy.deepcopy(model)
    compiling.compile_step(model, nn.CrossEntropyLoss(), "default", 1, lines.append, backend)
    for side in (8, 12, 8):
        images = torch.randn(4, 3, side, side)
        assert torch.equal(model(images), plain(images))
    assert len(lines) == 1 and "running eagerly" in lines[0] and "no kernels of 12" in lines[0]


@needs_compile
def test_a_teacher_answers_beside_a_compiled_step():
    torch._dynamo.reset()
    losses, images = [], torch.randn(4, 3, 8, 8)
    for mode in ("", "default"):
        model, precision = small_model(), create_precision("O0", CPU)
        model[3].p = 0.0
        criterion = optim.create_criterion(0.1, False)
        compiling.compile_step(model, criterion, mode, 1, print, "aot_eager")
        found = distill.Found("T", small_model(), (0.5,) * 3, (0.5,) * 3, None)
        teacher = distill.Teacher(found, precision, (0.4,) * 3, (0.5,) * 3, CPU.torch_device)
        loss = distill.DistillationLoss(criterion, teacher, 0.5, 2.0)
        loss.see(images)
        losses.append(loss(precision.forward(model.train(), images), torch.arange(4)).item())
        assert mode == "" or (model._compiled_call_impl._ran and criterion._compiled_call_impl._ran)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)  # PyTorch's own kernels


@needs_compile
def test_a_fault_of_the_model_itself_is_raised_as_it_is():
    torch._dynamo.reset()
    lines, model = [], small_model()
    compiling.compile_step(model, nn.CrossEntropyLoss(), "default", 1, lines.append, "aot_eager")
    with pytest.raises(RuntimeError, match="channels"):
        model.train()(torch.randn(4, 5, 8, 8))
    assert lines == []


@needs_compile
@pytest.mark.parametrize("mode, chosen", [
    ("reduce-overhead", "default"), ("max-autotune", "max-autotune-no-cudagraphs"),
])
def test_gradients_of_several_steps_are_not_summed_in_the_memory_of_a_cuda_graph(mode, chosen):
    notes = [compiling.compile_step(small_model(), nn.CrossEntropyLoss(), mode, accumulate, print)
             for accumulate in (1, 2)]
    assert notes[0].endswith(f"mode {mode}")
    assert f"mode {chosen}; without CUDA graphs" in notes[1]


@needs_compile
def test_a_mobilenet_is_one_graph():
    torch._dynamo.reset()
    calls = []

    def backend(graph, inputs):
        calls.append(graph)
        return graph.forward
    torch.manual_seed(0)
    model = models.create_model("mobilenetv3_small_050", num_classes=5, drop_path_rate=0.1)
    compiling.compile_step(model, nn.CrossEntropyLoss(), "default", 1, print, backend)
    model.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert len(calls) == 1


def test_without_torch_compile_the_run_goes_on_and_says_why(monkeypatch):
    monkeypatch.delattr(torch, "compile", raising=False)
    model = small_model()
    note = compiling.compile_step(model, nn.CrossEntropyLoss(), "default", 1, print)
    assert "running eagerly" in note
    assert torch.__version__ in note
    assert model.train()(torch.randn(2, 3, 8, 8)).shape == (2, 7)


def test_nothing_happens_unless_it_is_asked_for():
    model = small_model()
    assert compiling.compile_step(model, nn.CrossEntropyLoss(), "", 1, print) == ""
    assert getattr(model, "_compiled_call_impl", None) is None
