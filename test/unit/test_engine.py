import math

import pytest
import torch

from mobilenetv3 import device, engine, logfmt, optim
from mobilenetv3.metrics import Clock
from mobilenetv3.precision import create_precision

CLASSES = 7
CPU = device.select("cpu")


def fp32(model=None, optimizer=None, **options):
    precision = create_precision("O0", CPU, **options)
    if model is not None:
        precision.prepare(model, optimizer)
    return precision


class Batches:
    """A loader of fixed batches of random images (N, 3, 8, 8)."""

    def __init__(self, sizes, seed=0):
        generator = torch.Generator().manual_seed(seed)
        self.batches = [
            (torch.randn(n, 3, 8, 8, generator=generator),
             torch.randint(CLASSES, (n,), generator=generator)) for n in sizes
        ]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def small_model(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.ReLU(),
        torch.nn.Flatten(), torch.nn.Linear(4 * 36, CLASSES),
    )


def train(loader, model=None, epochs=1, clip_grad=None, warmup=0, max_steps=None, **loop):
    """Train and return (model, optimizer, printed records, clock)."""
    model = model or small_model()
    lines = []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    precision = fp32(model, optimizer, clip_grad=clip_grad)
    loop = engine.Loop(log=lines.append, **loop)
    schedule = optim.Schedule(optimizer, "step", 5, len(loader))
    clock = Clock(warmup)
    steps = len(loader)
    for epoch in range(epochs):
        progress = engine.Progress(epoch, steps, max_steps and max_steps - epoch * steps)
        batches = iter(loader)
        while not progress.is_over:
            engine.train_one_epoch(
                model, batches, torch.nn.CrossEntropyLoss(), optimizer, precision, schedule,
                optim.NoEma(), clock, progress, loop,
            )
    return model, optimizer, [logfmt.parse(line) for line in lines], clock


def plain(loader, accumulate=1, clip=None):
    """The same steps without the engine."""
    model = small_model().train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    losses, batches = [], list(loader)
    for start in range(0, len(batches), accumulate):
        group = batches[start : start + accumulate]
        for images, targets in group:
            loss = torch.nn.functional.cross_entropy(model(images), targets)
            (loss / len(group)).backward()
            losses.append(loss.item())
        if clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        optimizer.zero_grad()
    return model, losses


def assert_same(model, other):
    for (name, ours), theirs in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(ours, theirs), name


@pytest.mark.parametrize("accumulate", [1, 3])
def test_steps_equal_those_of_a_plain_loop(accumulate):
    loader = Batches([4] * 8)  # 8 steps in groups of 3: the last group has 2
    model, _, records, _ = train(loader, accumulate=accumulate, print_freq=1)
    expected, losses = plain(loader, accumulate)
    assert_same(model, expected)
    assert [r.loss for r in records] == pytest.approx(losses, abs=5e-5)  # printed with 4 digits


def test_gradients_are_clipped_before_the_update():
    loader = Batches([4] * 3)
    model, *_ = train(loader, clip_grad=0.01)
    assert_same(model, plain(loader, clip=0.01)[0])


def test_lines_are_printed_at_the_first_two_steps_then_at_the_frequency_and_at_the_end():
    _, _, records, _ = train(Batches([2] * 13), epochs=2, print_freq=5)
    first = [r.step for r in records if r.epoch == 0]
    second = [r.step for r in records if r.epoch == 1]
    assert first == [0, 1, 5, 10, 12]
    assert second == [0, 5, 10, 12]
    assert records[0].steps == 13


def test_printed_means_are_over_all_images_of_the_epoch_so_far():
    loader = Batches([4] * 6)
    _, _, records, _ = train(loader, print_freq=3)
    losses = plain(loader)[1]
    assert records[-1].loss == pytest.approx(losses[-1], abs=5e-5)
    assert records[-1].loss_avg == pytest.approx(sum(losses) / 6, abs=5e-5)


def test_training_stops_at_max_steps_of_the_whole_run():
    loader = Batches([2] * 4)
    _, _, records, clock = train(loader, epochs=2, max_steps=6, print_freq=1)
    assert [(r.epoch, r.step) for r in records] == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1)]
    assert clock.steps == 6


def test_fps_counts_from_the_end_of_the_warm_up():
    ticks = iter(range(1000))
    loader = Batches([2] * 10)
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    clock = Clock(warmup=3, now=lambda: float(next(ticks)))  # a second passes at every look
    engine.train_one_epoch(
        model, iter(loader), torch.nn.CrossEntropyLoss(), optimizer, fp32(model, optimizer),
        optim.Schedule(optimizer, "step", 5, 10), optim.NoEma(), clock, engine.Progress(0, 10),
        engine.Loop(print_freq=100, log=lambda line: None),
    )
    # Laps end at steps 1, 2, 3 (warm-up) and 10: the counted lap has 7 steps of 2 images in 1 s.
    assert clock.fps == pytest.approx(14.0)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(value):
    loader = Batches([4] * 9)
    loader.batches[5][0][1, 0, 0, 0] = value
    with pytest.raises(engine.NonFiniteLoss, match=r"epoch 0, step 5 .learning rate 0.1"):
        train(loader, print_freq=4)


def test_a_loss_that_is_not_finite_is_found_before_the_epoch_ends():
    loader = Batches([4] * 4)
    loader.batches[3][0][0] = math.nan
    with pytest.raises(engine.NonFiniteLoss, match="step 3"):
        train(loader, print_freq=1000)


def test_evaluation_scores_every_image_once_with_a_short_last_batch():
    model, loader = small_model(), Batches([4, 4, 3])
    lines = []
    score = engine.evaluate(model, loader, fp32(), log=lines.append)
    images = torch.cat([images for images, _ in loader])
    targets = torch.cat([targets for _, targets in loader])
    with torch.no_grad():
        output = model.eval()(images)
    assert score.images == 11
    assert score.correct1 == int((output.argmax(1) == targets).sum())
    assert score.loss == pytest.approx(
        torch.nn.functional.cross_entropy(output, targets).item(), rel=1e-5
    )
    assert logfmt.parse(lines[-1]).step == 2


def test_evaluation_leaves_the_model_unchanged():
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    engine.evaluate(model, Batches([4]), fp32(), log=lambda line: None)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_evaluation_of_no_images_is_zero():
    score = engine.evaluate(small_model(), Batches([]), fp32(), log=lambda line: None)
    assert (score.images, score.acc1) == (0, 0.0)


def test_no_step_between_printed_lines_reads_from_the_device(monkeypatch):
    """Counts what makes the host wait: reading a tensor's value into Python."""
    reads = []
    for name in ("item", "tolist", "__bool__", "__float__", "__int__", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name,
            lambda self, *args, _original=original, _name=name: (
                reads.append(_name), _original(self, *args))[1],
        )
    train(Batches([2] * 20), print_freq=100)
    # Steps 0, 1 and 19 print, and each line takes one read of all its numbers; at the end of the
    # epoch, before it is saved, one more tells whether the weights are finite.
    assert reads == ["tolist"] * 4
