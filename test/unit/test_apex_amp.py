"""A real Apex behind --amp_backend, shown with an emulation of what a script sees of it."""
import math
import sys
import types
from argparse import Namespace

import fake_apex
import pytest
import torch
from torch import nn

from mobilenetv3 import apex_amp, build, device, models, optim
from mobilenetv3.device import TORCH_VERSION
from mobilenetv3.precision import create_precision

CPU = device.select("cpu")
needs_half_on_cpu = pytest.mark.skipif(
    TORCH_VERSION < (2, 1), reason="PyTorch before 2.1 has no half precision on the CPU"
)


def setup(backend, seed=0, level="O2", clip_grad=None, loss_scale=None):
    torch.manual_seed(seed)
    model = models.create_model("mobilenetv3_small_050", num_classes=10)
    optimizer = optim.create_optimizer(model, "momentum", 0.05, 0.9, 1e-4)
    if backend == "apex":
        precision = apex_amp.ApexPrecision(fake_apex, level, CPU, loss_scale, clip_grad)
    else:
        precision = create_precision(level, CPU, "float16", loss_scale, clip_grad)
    precision.prepare(model, optimizer)
    return model, optimizer, precision


def step(run, seed, parts=1, spoil=False):
    model, optimizer, precision = run
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(8, 3, 32, 32, generator=generator)
    targets = torch.randint(10, (8,), generator=generator)
    for part in range(parts):
        loss = nn.functional.cross_entropy(precision.forward(model.train(), images), targets)
        loss = loss * math.inf if spoil else loss
        precision.backward(loss / parts, part == parts - 1)
    precision.step(optimizer)
    return loss.item()


def assert_equal_weights(ours, theirs):
    ours, theirs = (run[2].model_state(run[0]) for run in (ours, theirs))
    assert all(value.dtype != torch.half for value in ours.values())
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


@needs_half_on_cpu
@pytest.mark.parametrize("backend", ["native", "apex"])
@pytest.mark.parametrize("level", ["O0", "O2"])
def test_adaptive_clipping_leaves_the_classifier_alone(backend, level):
    moved = []
    for clip_grad in (None, 1e-4):
        run = setup(backend, level=level, clip_grad=clip_grad, loss_scale=128.0)
        run[2].clip_mode = "agc"
        before = {name: value.clone() for name, value in run[2].model_state(run[0]).items()}
        step(run, 0)
        after = run[2].model_state(run[0])
        moved.append({name: (after[name] - before[name]).abs().max() for name in (
            "classifier.weight", "classifier.bias", "conv_head.weight")})
    free, clipped = moved
    for name in ("classifier.weight", "classifier.bias"):
        assert torch.equal(free[name], clipped[name]) and clipped[name] > 0
    assert clipped["conv_head.weight"] < 0.1 * free["conv_head.weight"]


@needs_half_on_cpu
@pytest.mark.parametrize("backend", ["native", "apex"])
def test_what_is_frozen_is_saved_as_it_was_and_not_rounded(backend):
    torch.manual_seed(0)
    model = models.create_model("mobilenetv3_small_050", num_classes=10)
    model.blocks.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()
              if name.startswith("blocks.")}
    optimizer = optim.create_optimizer(model, "momentum", 0.05, 0.9, 1e-4)
    precision = (apex_amp.ApexPrecision(fake_apex, "O2", CPU) if backend == "apex"
                 else create_precision("O2", CPU, "float16"))
    precision.prepare(model, optimizer)
    saved = precision.model_state(model)
    assert all(torch.equal(saved[name], value) for name, value in before.items())
    precision.load_model_state(model, saved)
    weight = "blocks.0.0.conv_dw.weight"
    assert torch.equal(model.state_dict()[weight], before[weight].half())


@needs_half_on_cpu
@pytest.mark.parametrize("level, clip_grad, loss_scale, parts", [
    ("O2", None, None, 1), ("O2", 0.5, 128.0, 1), ("O2", None, 128.0, 2), ("O0", None, None, 1),
])
def test_both_backends_compute_the_same_bits(level, clip_grad, loss_scale, parts):
    options = {"level": level, "clip_grad": clip_grad, "loss_scale": loss_scale}
    ours, theirs = setup("native", **options), setup("apex", **options)
    assert ours[2].amp_type == theirs[2].amp_type
    for seed in range(4):
        spoil = seed == 2 and level == "O2" and loss_scale is None
        assert step(ours, seed, parts, spoil) == step(theirs, seed, parts, spoil) or spoil
        assert ours[2].state_dict() == theirs[2].state_dict()
    assert_equal_weights(ours, theirs)


@needs_half_on_cpu
@pytest.mark.parametrize("first, then", [("apex", "apex"), ("apex", "native"), ("native", "apex")])
def test_a_run_goes_on_bit_for_bit_under_either_backend(first, then):
    """Apex's own recipe saves the half weights, and jumps."""
    whole = setup(first)
    for seed in range(3):
        step(whole, seed)
    saved = [whole[2].model_state(whole[0]), whole[1].state_dict(), whole[2].state_dict()]
    masters = {name: value.clone() for name, value in saved[0].items()}
    resumed = setup(then, seed=1)
    resumed[2].load_model_state(resumed[0], masters)
    resumed[1].load_state_dict(saved[1])
    resumed[2].load_state_dict(saved[2])
    assert any(not torch.equal(value, value.half().float()) for value in masters.values())
    loaded = resumed[2].model_state(resumed[0])
    assert all(torch.equal(loaded[name], value) for name, value in masters.items())
    if first == "apex" == then:  # one process has one Apex, with one loss scale
        return
    assert step(whole, 3) == step(resumed, 3)
    assert_equal_weights(whole, resumed)


@needs_half_on_cpu
def test_the_average_is_kept_of_the_masters_and_not_of_a_patched_model():
    torch.manual_seed(0)
    model = models.create_model("mobilenetv3_small_050", num_classes=10)
    optimizer = optim.create_optimizer(model, "momentum", 0.05, 0.9, 1e-4)
    ema = optim.create_ema(model, True, 0.5)
    start = {name: value.clone() for name, value in ema.state_dict().items()}
    precision = apex_amp.ApexPrecision(fake_apex, "O2", CPU)
    precision.prepare(model, optimizer)
    for seed in range(3):
        step((model, optimizer, precision), seed)
    ema.update(precision.weights(model))
    masters = precision.model_state(model)
    name = "conv_stem.weight"
    expected = 0.5 * start[name] + 0.5 * masters[name]
    assert torch.allclose(ema.state_dict()[name], expected, atol=1e-7)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        live = precision.forward(model.eval(), images)
        averaged = precision.forward(precision.for_inference(ema.module).eval(), images)
    assert not torch.equal(live, averaged)


def cfg(backend, **given):
    return Namespace(**dict({
        "apex": True, "apex_opt_level": "O2", "amp_dtype": None, "amp_backend": backend,
        "loss_scale_value": None, "clip_grad": None, "clip_mode": "norm"}, **given))


CARD = device.Device("cuda", 0, object(), "nccl")  # never asked for anything here


def install(monkeypatch, amp):
    package = types.ModuleType("apex")
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.amp", amp)


def test_apex_is_used_where_it_imports_and_the_option_allows_it(monkeypatch):
    install(monkeypatch, fake_apex)
    assert isinstance(build.precision(cfg("apex"), CARD), apex_amp.ApexPrecision)
    assert isinstance(build.precision(cfg("auto"), CARD), apex_amp.ApexPrecision)
    assert not isinstance(build.precision(cfg("native"), CARD), apex_amp.ApexPrecision)
    assert not isinstance(build.precision(cfg("auto", apex=False), CARD), apex_amp.ApexPrecision)


@pytest.mark.parametrize("amp, reason", [
    (None, "apex.amp does not import"),
    (types.ModuleType("apex.amp"), "the installed apex.amp has no initialize"),
])
def test_without_a_real_apex_auto_says_so_and_apex_is_refused(monkeypatch, amp, reason):
    install(monkeypatch, amp)
    assert reason in build.precision(cfg("auto"), CARD).note
    with pytest.raises(ValueError, match=reason):
        build.precision(cfg("apex"), CARD)


def test_apex_is_for_cards_and_float16(monkeypatch):
    install(monkeypatch, fake_apex)
    with pytest.raises(ValueError, match="Apex knows no CPU"):
        build.precision(cfg("apex"), CPU)
    with pytest.raises(ValueError, match="float16 only"):
        build.precision(cfg("apex", amp_dtype="bfloat16"), CARD)
