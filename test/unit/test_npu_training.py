"""The package's own modules on the stand-in NPU: the same steps, the same weights, no waiting."""
import pytest
from npu_process import on_npu

STEPS = 4


def batches(device, steps=STEPS, size=8, channels_last=False, workers=0, **options):
    """A loader as train.py has it, over images that depend on their number only."""
    import numpy as np

    from mobilenetv3.data import loader, samplers

    images = [(np.random.RandomState(i).randint(0, 255, (3, 32, 32)).astype(np.uint8), i % 10)
              for i in range(steps * size)]
    sampler = samplers.TrainSampler(len(images), size, 0, 1, seed=0)

    class Images:
        side = 32

        def __len__(self):
            return len(images)

        def __getitem__(self, epoch_and_index):
            return images[epoch_and_index[1]]

    return loader.DeviceLoader(
        loader.build_loader(Images(), sampler, device, workers, seed=0), device,
        (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), channels_last, **options,
    )


class SyncsPerStep:
    """Notes how often the host waited between one batch and the next."""

    def __init__(self, loader):
        self.loader, self.counts = loader, []

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        import torch

        for batch in self.loader:
            yield batch
            self.counts.append(torch.npu.host_syncs())
            torch.npu.reset_host_syncs()


@on_npu
def test_batches_in_slots_are_pinned_and_copied_without_waiting():
    import torch

    from mobilenetv3 import device as devices
    from mobilenetv3.data import slots

    npu, cpu = devices.select("npu"), devices.select("cpu")
    torch.npu.manual_seed_all(0)
    found = batches(npu, steps=16, workers=2)
    assert isinstance(found.loader.collate_fn, slots.Slots)
    for epoch in (0, 1):
        torch.npu.reset_host_syncs()
        seen = list(found)  # more than there are slots: each is copied before it is written again
        assert torch.npu.host_syncs() == {}
        for (images, targets), (expected, labels) in zip(seen, batches(cpu, steps=16)):
            assert torch.equal(images.cpu(), expected) and torch.equal(targets.cpu(), labels)
        assert len(seen) == 16, epoch


def train(kind, opt="sgd", level="O0", dtype="float16", channels_last=False, steps=STEPS, ema=False,
          loss_scale=None, has_teacher=False, **options):
    """Train as train.py does; returns (model's state, optimizer's, syncs of each step)."""
    import torch

    from mobilenetv3 import device as devices
    from mobilenetv3 import distill, engine, metrics, models, optim
    from mobilenetv3 import precision as precisions
    from mobilenetv3.data import seed_epoch

    device = devices.select(kind)
    seed_epoch(device, 3, 0, 0)  # the first weights are drawn on the CPU
    models.set_fused_activations(False)
    models.set_fast_backward(False)  # on the CPU it sums in another order
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = models.create_model(
        "mobilenetv3_small_050", num_classes=10, drop_path_rate=0.2)
    model = model.to(device.torch_device, memory_format=layout)
    optimizer = optim.create_optimizer(
        model, opt, 0.01, 0.9, 1e-4, fused=device.fused_optimizers)
    average = optim.create_ema(model, ema, 0.9)
    precision = precisions.create_precision(level, device, dtype, loss_scale, clip_grad=5.0)
    precision.prepare(model, optimizer)
    loader = batches(device, steps, channels_last=channels_last, **options)
    criterion = optim.create_criterion(0.1, soft_targets="mixup" in options)
    if has_teacher:
        taught = models.create_model("mobilenetv3_small_050", num_classes=10)
        found = distill.Found("T", taught, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
        teacher = distill.Teacher(found, precision, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225),
                                  device.torch_device, layout)
        teacher.check([32], 10, device.torch_device)
        criterion = distill.DistillationLoss(criterion, teacher, 0.5, 2.0)
        loader.observe = criterion.see
    if kind == "npu":
        loader = SyncsPerStep(loader)
    # Which paths are dropped is drawn on the device. (Dropout draws another way on accelerators.)
    seed_epoch(device, 3, 1, 0)
    engine.train_one_epoch(
        model, iter(loader), criterion, optimizer, precision,
        optim.Schedule(optimizer, "step", 5, steps), average, metrics.Clock(0),
        engine.Progress(0, steps), engine.Loop(print_freq=1000, log=lambda line: None),
    )
    return precision.model_state(model), optimizer.state_dict(), getattr(loader, "counts", [])


def tensors(state):
    """All tensors in nested containers, in order; not RMSprop's count of updates, which it ignores
    and which counts those that the device took back."""
    import torch

    if torch.is_tensor(state):
        return [state]
    if isinstance(state, dict):
        state = [value for name, value in state.items() if name != "step"]
    return [t for item in state for t in tensors(item)] if isinstance(state, list) else []


@pytest.mark.parametrize("opt, channels_last, level, loss_scale", [
    ("sgd", False, "O0", 128.0), ("sgd", True, "O0", 128.0), ("rmsprop", False, "O0", 128.0),
    ("rmsproptf", True, "O0", 128.0), ("sgd", False, "O2", 128.0), ("rmsproptf", True, "O2", 128.0),
    ("rmsproptf", False, "O2", "dynamic"), ("sgd", True, "O2", "dynamic"),
])
@on_npu
def test_steps_on_the_npu_equal_those_on_the_cpu_to_the_bit(opt, channels_last, level, loss_scale):
    """The kernels are the CPU's, so what gets lost on the way to the device shows: a buffer that is
    not moved, a statistic that is not written, a seed that does not arrive."""
    import torch

    options = {"opt": opt, "level": level, "channels_last": channels_last, "loss_scale": loss_scale}
    # The scale 2**16 overflows four times, then the host makes an update; of the next, which
    # overflows again, and of those after it the device decides alone.
    steps = STEPS + 4 if loss_scale == "dynamic" else STEPS
    ours, theirs, other = (
        train(kind, steps=steps, **options)[:2]
        for kind, steps in (("npu", steps), ("cpu", steps), ("cpu", steps - 1))
    )
    assert all(t.is_npu for t in tensors(ours[0]))
    ours, theirs, other = (tensors(list(states)) for states in (ours, theirs, other))
    assert len(ours) == len(theirs) > 300  # weights, statistics, momenta
    assert all(t.isfinite().all() for t in theirs)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(ours, theirs))
    assert not all(torch.equal(a, b) for a, b in zip(theirs, other))


@pytest.mark.parametrize("name, level, loss_scale", [
    ("npufusedsgd", "O0", None), ("npufusedsgd", "O2", "dynamic"), ("npufusedrmsprop", "O2", 128.0),
    ("npufusedrmsproptf", "O1", "dynamic"), ("npufusedrmsproptf", "O2", "dynamic"),
])
@on_npu
def test_torch_npus_fused_optimizers_train_as_their_plain_twins(name, level, loss_scale):
    import torch
    import torch_npu.optim

    from mobilenetv3 import device, optim

    npu = device.select("npu")
    layer = torch.nn.Linear(2, 2).to(npu.torch_device)
    made = optim.create_optimizer(layer, name, 0.1, 0.9, 0.0, fused=npu.fused_optimizers)
    assert isinstance(made, getattr(torch_npu.optim, optim.FUSED[name][1]))
    options = {"opt": name, "level": level, "loss_scale": loss_scale, "steps": 8}
    ours, twins, start = (train(kind, **dict(options, steps=steps))[0]
                          for kind, steps in (("npu", 8), ("cpu", 8), ("cpu", 1)))
    moved = max((twins[k] - start[k]).abs().max().item() for k in twins if "bn" not in k)
    error = max((ours[k].cpu() - twins[k]).abs().max().item() for k in twins if "bn" not in k)
    assert moved > 1e-3
    assert error <= 1e-6 * moved  # the same formulas, in one buffer


@on_npu
def test_autocast_casts_on_the_npu_and_trains():
    state, _, _ = train("npu", level="O1", loss_scale=128)
    assert all(t.isfinite().all() for t in tensors(state))


@pytest.mark.parametrize("level, loss_scale, ema, waits", [
    ("O0", None, False, {}),
    ("O0", None, True, {}),
    ("O1", 128.0, False, {}),
    ("O2", 128.0, True, {}),
    ("O3", None, False, {}),
    ("O1", "dynamic", False, {}),
    ("O2", "dynamic", True, {}),
])
@on_npu
def test_a_step_between_printed_lines_does_not_wait_for_the_npu(level, loss_scale, ema, waits):
    _, _, counts = train("npu", level=level, loss_scale=loss_scale, ema=ema, steps=12)
    # Steps 0, 1 and 11 print; what lies between is what a long run consists of.
    if loss_scale == "dynamic":
        # Until the first update has made the optimizer's state (at the scale 2**16 some overflow)
        # the host decides whether there is one: it reads one number, whatever the model.
        counts, read = counts[2:], {"aten::_local_scalar_dense": 1}
        asked = counts.index(waits)
        assert counts == [read] * asked + [waits] * (9 - asked)
        assert asked < 5
        return
    assert counts[2:] == [waits] * 9
    assert counts[1].pop("copy device to host") == 1
    assert counts[1] == waits


@pytest.mark.parametrize("level", ["O0", "O2"])
@on_npu
def test_a_teacher_computes_on_the_npu_as_on_the_cpu_and_does_not_wait(level):
    import torch

    options = {"level": level, "loss_scale": 128.0, "has_teacher": True, "steps": 6}
    (ours, _, counts), (theirs, _, _) = (train(kind, **options) for kind in ("npu", "cpu"))
    assert all(torch.equal(a.cpu(), b) for a, b in zip(tensors(ours), tensors(theirs)))
    assert counts[2:] == [{}] * 3  # the first two steps print, and the last


@on_npu
def test_erasing_and_mixing_images_does_not_wait_for_the_npu():
    import torch
    from timm.data import Mixup
    from timm.data.random_erasing import RandomErasing

    _, _, counts = train(
        "npu", steps=8, mixup=Mixup(0.2, 1.0, label_smoothing=0.1, num_classes=10),
        erase=RandomErasing(1.0, mode="pixel", device=torch.device("npu")),
    )
    assert counts[2:] == [{}] * 5


@on_npu(NPU_STAND_IN_SATURATES="1")
def test_on_a_chip_that_saturates_the_overflow_flag_makes_o2_skip_the_update():
    import torch

    from mobilenetv3 import device as devices
    from mobilenetv3 import dist, precision

    device = devices.select("npu")
    layer = torch.nn.Linear(4, 4).to(device.torch_device)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    o2 = precision.create_precision(
        "O2", device, overflow_flag=devices.overflow_flag(device, dist.all_reduce_sum))
    o2.prepare(layer, optimizer)
    images = torch.ones(2, 4, device=device.torch_device)
    for factor, scale, moves in ((100.0, 2.0**15, False), (0.01, 2.0**15, True)):
        before = layer.weight.detach().clone()
        # The gradient is 2 x factor x scale, to be held in float16: 65504 at most.
        o2.backward(o2.forward(layer, images).sum() * factor)
        assert layer.weight.grad.isfinite().all()  # nothing to be seen in it
        o2.step(optimizer)
        assert o2.scaler.scale == scale
        assert torch.equal(layer.weight, before) != moves


@on_npu
def test_the_fused_hard_sigmoid_would_be_noticed():
    import torch

    from mobilenetv3 import device, models

    npu = device.select("npu")
    model = models.create_model("mobilenetv3_small_050", num_classes=10).to(npu.torch_device)
    images = torch.ones(2, 3, 32, 32, device=npu.torch_device)
    models.set_fused_activations(npu.has_fused_activations)
    model(images)
    models.set_fused_activations(True)
    with pytest.raises(RuntimeError, match="hardsigmoid.* may fall back"):
        model(images)


@on_npu
def test_weights_saved_from_the_npu_come_back_bit_by_bit_by_way_of_the_cpu():
    import tempfile

    import torch

    from mobilenetv3 import checkpoint, device, models

    model = models.create_model("mobilenetv3_small_050", num_classes=10)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("npu", "cpu", "npu"):
            model = model.to(device.select(kind, 0).torch_device)
            checkpoint.save(f"{folder}/c.pth", {"state_dict": model.state_dict()})
            model = models.create_model("mobilenetv3_small_050", num_classes=10)
            checkpoint.load_weights(model, checkpoint.load(f"{folder}/c.pth"), "c.pth")
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
