"""O0 to O3 against Apex's definition of them."""
import copy
import math

import pytest
import torch
from torch import nn

from mobilenetv3 import device, models, optim, scaling
from mobilenetv3.device import TORCH_VERSION
from mobilenetv3.precision import cast_model, create_precision

CPU = device.select("cpu")
F32, F16, BF16 = torch.float32, torch.float16, torch.bfloat16

needs_half_on_cpu = pytest.mark.skipif(
    TORCH_VERSION < (2, 1), reason="PyTorch before 2.1 has no half precision on the CPU"
)


def small(seed=0):
    torch.manual_seed(seed)
    return models.create_model("mobilenetv3_small_050", num_classes=10)


def setup(level, dtype="float16", lr=0.05, model=None, **options):
    """A prepared model, its optimizer and precision."""
    model = model or small()
    optimizer = optim.create_optimizer(model, "momentum", lr, 0.9, 1e-4)
    precision = create_precision(level, CPU, dtype, **options)
    precision.prepare(model, optimizer)
    return model, optimizer, precision


def batch(seed=0, n=8):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, 3, 32, 32, generator=generator),
            torch.randint(10, (n,), generator=generator))


def step(model, optimizer, precision, seed=0):
    images, targets = batch(seed)
    loss = nn.functional.cross_entropy(precision.forward(model.train(), images), targets)
    precision.backward(loss)
    precision.step(optimizer)
    return loss.item()


def is_batchnorm(model, name):
    return isinstance(dict(model.named_modules())[name.rsplit(".", 1)[0]], nn.BatchNorm2d)


@needs_half_on_cpu
@pytest.mark.parametrize("level, weights, batchnorm, masters, scale", [
    ("O0", F32, F32, False, 1.0),
    ("O1", F32, F32, False, 65536.0),
    ("O2", F16, F32, True, 65536.0),
    ("O3", F16, F16, False, 1.0),
])
def test_every_tensor_has_the_type_that_apex_gives_it(level, weights, batchnorm, masters, scale):
    model = models.create_model("mobilenetv3_small_100", num_classes=10)
    optimizer = optim.create_optimizer(model, "momentum", 0.05, 0.9, 1e-4)
    precision = create_precision(level, CPU, "float16")
    precision.prepare(model, optimizer)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name.endswith("num_batches_tracked"):
            assert tensor.dtype == torch.int64
        else:
            expected = batchnorm if is_batchnorm(model, name) else weights
            assert tensor.dtype == expected, name
    updated = [p for group in optimizer.param_groups for p in group["params"]]
    own = {id(p) for p in model.parameters()}
    for parameter, owner in zip(model.parameters(), updated):
        assert owner.dtype == (F32 if masters else parameter.dtype)
        assert (id(owner) not in own) == (masters and parameter.dtype == F16)
    assert precision.scaler.scale == scale

    images, targets = batch()
    output = precision.forward(model.train(), images)
    assert output.dtype == F32
    precision.backward(nn.functional.cross_entropy(output, targets))
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == parameter.dtype, name
    precision.step(optimizer)
    assert all(p.grad is None for p in [*model.parameters(), *updated])


def test_a_batchnorm_without_weights_is_cast_and_parameters_keep_their_identity():
    model = nn.Sequential(nn.BatchNorm2d(2), nn.BatchNorm2d(2, affine=False), nn.LayerNorm(2))
    before = [id(p) for p in model.parameters()]
    cast_model(model, F16, keep_batchnorm=True)
    assert (model[0].weight.dtype, model[0].running_mean.dtype) == (F32, F32)
    assert model[1].running_mean.dtype == F16  # Apex keeps affine BatchNorm alone
    assert model[1].num_batches_tracked.dtype == torch.int64
    assert model[2].weight.dtype == F16
    assert [id(p) for p in model.parameters()] == before


def test_o0_is_plain_training():
    model, optimizer, precision = setup("O0")
    other = small().train()
    plain = optim.create_optimizer(other, "momentum", 0.05, 0.9, 1e-4)
    for seed in range(3):
        step(model, optimizer, precision, seed)
        images, targets = batch(seed)
        nn.functional.cross_entropy(other(images), targets).backward()
        plain.step()
        plain.zero_grad()
    for name, value in other.state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name


@needs_half_on_cpu
def test_masters_keep_updates_too_small_for_half_weights():
    # 1 + 2**-12 rounds to 1 in float16: sixteen steps move a master by 2**-8.
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision = create_precision("O2", CPU, "float16")
    precision.prepare(model, optimizer)
    for _ in range(16):
        precision.backward(-(2.0**-12) * model(torch.ones(1, 1, dtype=F16)).float().sum())
        precision.step(optimizer)
    assert model.weight.item() == 1.0 + 2.0**-8
    assert model.weight.dtype == F16


def test_gradients_between_1e_minus_10_and_1e_minus_5_survive_at_scale_65536():
    """Unscaled in float16, about half of these would become zero; the smallest is 6e-8 there."""
    true = torch.logspace(-10, -5, 2001)
    model = nn.Linear(2001, 1, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    precision = create_precision("O2", CPU, "float16") if TORCH_VERSION >= (2, 1) else None
    if precision is None:
        pytest.skip("PyTorch before 2.1 has no half precision on the CPU")
    precision.prepare(model, optimizer)
    model.weight.grad = (true * 65536.0).half()[None]
    seen = []
    optimizer.step = lambda: seen.append(optimizer.param_groups[0]["params"][0].grad.clone())
    precision.step(optimizer)
    assert int((seen[0] == 0).sum()) == 0
    # Scaled, the smallest is 6.6e-6: a subnormal float16. Half a step of 6e-8 is 0.5 % of it.
    assert ((seen[0][0] - true).abs() / true).max().item() < 0.006


@needs_half_on_cpu
def test_overflow_skips_the_update_and_halves_the_scale():
    model, optimizer, precision = setup("O2")
    before = {name: value.clone() for name, value in precision.model_state(model).items()}
    images, targets = batch()
    output = precision.forward(model.eval(), images)
    precision.backward(nn.functional.cross_entropy(output, targets))
    next(model.parameters()).grad.view(-1)[0] = math.inf
    precision.step(optimizer)
    assert precision.scaler.scale == 32768.0
    assert not optimizer.state_dict()["state"]  # momentum was not touched, either
    for name, value in precision.model_state(model).items():
        assert torch.equal(value, before[name]), name


@needs_half_on_cpu
def test_clipping_acts_on_unscaled_master_gradients():
    norms = []
    for scale in (1.0, 1024.0):
        model, optimizer, precision = setup("O2", loss_scale=scale, clip_grad=0.1)
        images, targets = batch()
        precision.backward(
            nn.functional.cross_entropy(precision.forward(model, images), targets))
        optimizer.step = lambda opt=optimizer: norms.append(torch.norm(torch.stack(
            [p.grad.norm() for g in opt.param_groups for p in g["params"]])).item())
        precision.step(optimizer)
    assert norms == pytest.approx([0.1, 0.1], rel=1e-3)


@needs_half_on_cpu
def test_accumulated_gradients_are_unscaled_once():
    # Powers of two are exact in float16: two micro-steps of half the loss make the whole gradient.
    def gradient(parts):
        model = nn.Linear(1, 1, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        precision = create_precision("O2", CPU, "float16", loss_scale=256.0)
        precision.prepare(model, optimizer)
        for _ in range(parts):
            precision.backward(model(torch.full((1, 1), 0.5, dtype=F16)).float().sum() / parts)
        seen = []
        optimizer.step = lambda: seen.append(optimizer.param_groups[0]["params"][0].grad.item())
        precision.step(optimizer)
        return seen[0]

    assert gradient(1) == gradient(2) == 0.5


@needs_half_on_cpu
@pytest.mark.parametrize("level, dtype", [("O1", "bfloat16"), ("O2", "float16"), ("O2", "bfloat16"),
                                          ("O3", "float16")])
def test_a_resumed_run_goes_on_bit_for_bit(level, dtype):
    whole = setup(level, dtype)
    for seed in range(4):
        step(*whole, seed)
    saved = copy.deepcopy((whole[2].model_state(whole[0]), whole[1].state_dict(),
                           whole[2].state_dict()))
    resumed = setup(level, dtype, model=small(seed=1))
    resumed[2].load_model_state(resumed[0], saved[0])
    resumed[1].load_state_dict(saved[1])
    resumed[2].load_state_dict(saved[2])
    for seed in range(4, 8):
        assert step(*whole, seed) == step(*resumed, seed)
    ours, theirs = (run[2].model_state(run[0]) for run in (resumed, whole))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@needs_half_on_cpu
def test_weights_alone_would_not_resume_bit_for_bit():
    """Apex's own recipe saves the half weights; this is what it loses."""
    model, optimizer, precision = setup("O2", loss_scale=128.0)
    step(model, optimizer, precision)
    state = precision.model_state(model)
    rounded = [name for name, value in model.state_dict().items()
               if value.is_floating_point() and not torch.equal(value.float(), state[name])]
    assert len(rounded) > 20


@needs_half_on_cpu
def test_the_average_is_taken_of_the_masters_and_evaluates_the_averaged_weights():
    model = small()
    optimizer = optim.create_optimizer(model, "momentum", 0.05, 0.9, 1e-4)
    ema = optim.create_ema(model, True, decay=0.5)
    precision = create_precision("O2", CPU, "float16")
    precision.prepare(model, optimizer)
    start = copy.deepcopy(ema.module.state_dict())
    step(model, optimizer, precision)
    ema.update(precision.weights(model))
    masters = precision.model_state(model)
    for name, value in ema.module.state_dict().items():
        if value.is_floating_point():
            assert value.dtype == F32
            assert torch.allclose(value, 0.5 * start[name] + 0.5 * masters[name], atol=1e-7), name
    images, _ = batch()
    average = precision.for_inference(ema.module).eval()
    with torch.no_grad():
        live = precision.forward(model.eval(), images)
        averaged = precision.forward(average, images)
        exact = ema.module(images)
    assert not torch.equal(averaged, live)
    assert torch.allclose(averaged, exact, atol=0.02)  # half of the same weights
    assert next(ema.module.parameters()).dtype == F32  # the average itself was not cast


def test_a_scaler_state_moves_between_levels_and_kinds_of_scaling():
    dynamic, static = scaling.create_scaler("dynamic"), scaling.create_scaler(64.0)
    static.load_state_dict(dynamic.state_dict())
    assert static.scale == 64.0  # a constant stays what the options say
    dynamic.load_state_dict(static.state_dict())
    assert dynamic.scale == 64.0


def test_bfloat16_is_the_cpus_half_and_needs_no_scaling():
    if TORCH_VERSION < (2, 1):
        with pytest.raises(ValueError, match="needs PyTorch 2.1"):
            create_precision("O2", CPU)
        return
    precision = create_precision("O2", CPU)
    assert (precision.dtype, precision.scaler.scale) == (BF16, 1.0)
    assert precision.amp_type == "O2 bfloat16"
    assert create_precision("O0", CPU).amp_type == "O0 float32"
