"""A run stopped inside an epoch goes on to the bit, with everything that draws at random."""
import copy
import io

import pytest
import torch

from mobilenetv3 import (
    build,
    checkpoint,
    data,
    dist,
    distill,
    engine,
    entry,
    interrupt,
    metrics,
    models,
    optim,
    snapshot,
    training,
)
from mobilenetv3 import device as devices
from mobilenetv3.config import parse
from mobilenetv3.options import train_parser
from mobilenetv3.precision import create_precision

CPU = devices.select("cpu")
CLASSES = ["a", "b", "c", "d"]


class Pictures:
    """Drawn at random, but always the same."""

    def __init__(self, images):
        generator = torch.Generator().manual_seed(0)
        size = (images, 36, 36, 3)
        self.pixels = torch.randint(0, 256, size, generator=generator, dtype=torch.uint8).numpy()

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        from PIL import Image

        return Image.fromarray(self.pixels[index]), index % len(CLASSES)


class Silent:
    """A run folder that keeps what it is told."""

    path = "RUN"

    def __init__(self):
        self.lines, self.records = [], []
        self.log = self.lines.append

    def progress(self, loader, done=0):
        return loader

    def metrics(self, **record):
        record.pop("seconds"), record.pop("fps", None)
        self.records.append(record)


class Kept:
    """Checkpoints as a file would hold them."""

    def __init__(self):
        self.states = []

    def save(self, state, epoch, step, is_best=False):
        written = io.BytesIO()
        torch.save(state, written)
        self.states.append(checkpoint.loads(written.getvalue()))

    def flush(self):
        pass


def options(**changed):
    words = ["--data_path", "x", "--device", "cpu", "--img_size", "32", "--batch_size", "8",
             "--reprob", "0.5", "--mixup", "0.2", "--epochs", "2"]
    return vars(parse(train_parser(), words + [
        word for name, value in changed.items() for word in (f"--{name}", str(value))]))


def job(every=0, accumulate=1, opt="rmsproptf", level="O0", ema=True, extras=False):
    """A whole run in memory: 6 steps an epoch, dropout, drop-path, erasing, Mixup, EMA.

    With `extras` also a warm-up of the average, growing images, repeated ones and a teacher.
    """
    source = data.Source(Pictures(52), CLASSES, "drawn")
    config = options(grad_accum_steps=accumulate, opt=opt)
    data.seed_epoch(CPU, 3, 0, 0)
    train = data.train_loader(
        source, CPU, rank=0, world=1, batch_size=8, workers=0,
        transform=data.ByEpoch([
            data.Stage(0, 32, data.train_transform(32, color_jitter=0.4)),
            data.Stage(1, 40, data.train_transform(40, color_jitter=0.4)),
        ]) if extras else data.train_transform(32, color_jitter=0.4),
        mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD, seed=3, repeats=3 if extras else 1,
        erase=build.RandomErasing(0.5, mode="pixel", device="cpu"),
        mixup=build.Mixup(0.2, num_classes=4, label_smoothing=0.1),
    )
    train.bad_files = data.BadFiles(None, train.images)
    val = data.val_loader(
        source, CPU, rank=0, world=1, batch_size=32, workers=0, transform=data.val_transform(32),
        mean=data.IMAGENET_MEAN, std=data.IMAGENET_STD)
    model = models.create_model("mobilenetv3_small_050", num_classes=4, drop_rate=0.2,
                                drop_path_rate=0.2)
    optimizer = optim.create_optimizer(model, opt, 0.01, 0.9, 1e-4)
    updates = optim.updates_per_epoch(len(train), accumulate)
    schedule = optim.Schedule(optimizer, "cosine", 2, updates, on_updates=True)
    average = optim.create_ema(model, ema, 0.9, warms_up=extras)
    precision = create_precision(level, CPU)
    precision.prepare(model, optimizer)
    criterion = optim.create_criterion(0.1, True)
    if extras:
        taught = models.create_model("mobilenetv3_small_050", num_classes=4)
        found = distill.Found("a teacher", taught, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), None)
        teacher = distill.Teacher(found, precision, data.IMAGENET_MEAN, data.IMAGENET_STD,
                                  CPU.torch_device)
        criterion = distill.DistillationLoss(criterion, teacher, 0.5, 2.0)
        train.observe = criterion.see
    loop = engine.Loop(accumulate, 100, lambda line: None, interrupt.Watch(every))
    return training.Job(
        dist.Ranks(), snapshot.Parts(model, optimizer, precision, average, CPU), model,
        criterion, schedule, train, val, CLASSES, Silent(), Kept(),
        metrics.Clock(0), loop, 2 * len(train), 3, "broadcast", False, config,
    )


def resumed(state, **kind):
    """A new run, put back to a state, and trained to its end."""
    other = job(**kind)
    snapshot.check(state, "FILE", other.parts, other.config, CLASSES, other.train_loader.images)
    place = snapshot.put_back(state, other.parts)
    best = training.train(other, place, state)
    return other, best


def assert_equal(one, other, path=""):
    if torch.is_tensor(one):
        assert torch.equal(one, other), path
    elif isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            assert_equal(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other)):
            assert_equal(a, b, f"{path}/{index}")
    else:
        assert one == other, path


@pytest.fixture(scope="module")
def trained():
    """A run that is done, with a checkpoint every other step."""
    run = job(every=2)
    training.train(run, snapshot.Place(0), {})
    return run


@pytest.mark.parametrize("kind", [
    {}, {"accumulate": 2, "opt": "adamw"}, {"extras": True},
    pytest.param({"level": "O2", "ema": False}, marks=pytest.mark.skipif(
        devices.TORCH_VERSION < (2, 1), reason="no half precision on the CPU before PyTorch 2.1")),
], ids=["O0 with EMA", "accumulated", "with all extras", "O2"])
def test_a_run_resumed_from_any_of_its_checkpoints_ends_the_same_to_the_bit(kind):
    whole = job(every=2, **kind)
    best = training.train(whole, snapshot.Place(0), {})
    final = whole.keeper.states[-1]
    moments = [(state["epoch"], state["step"]) for state in whole.keeper.states]
    assert moments == [(0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (2, 0)]
    for state in whole.keeper.states[1:5:3]:
        other, its_best = resumed(state, **kind)
        assert_equal(other.keeper.states[-1], final)
        assert its_best == best
        assert other.run.records == whole.run.records[state["epoch"]:]


def test_the_number_of_updates_of_an_average_goes_on_where_it_stood():
    run = job(extras=True)
    training.train(run, snapshot.Place(0), {})
    state = run.keeper.states[0]
    assert (state["epoch"], state["ema_updates"]) == (1, 6)
    other = job(extras=True)
    snapshot.put_back(state, other.parts)
    assert other.parts.ema.updates == 6
    del state["ema_updates"]  # of a version without a warm-up: its average is not to be thrown away
    snapshot.put_back(state, other.parts)
    weight, average = other.parts.model.conv_stem.weight, other.parts.ema.module.conv_stem.weight
    weight.data.copy_(average + 1.0)
    expected = average + 0.1  # the whole decay of 0.9, no warm-up
    other.parts.ema.update(other.parts.model)
    assert torch.allclose(average, expected, atol=1e-5)


def test_checkpoints_change_nothing_of_what_is_learnt(trained):
    run = job()
    training.train(run, snapshot.Place(0), {})
    assert_equal(run.keeper.states[-1], trained.keeper.states[-1])


def test_a_signal_in_the_epoch_saves_and_ends_and_the_rest_follows_exactly(trained):
    stopped = job()
    stopped.loop.watch.received = 15  # before the first step: that one is finished
    with pytest.raises(entry.Interrupted, match=r"saved in RUN \(epoch 0, step 1\).*--resume auto"):
        training.train(stopped, snapshot.Place(0), {})
    other, _ = resumed(stopped.keeper.states[-1])
    assert_equal(other.keeper.states[-1], trained.keeper.states[-1])


def test_a_signal_in_the_validation_keeps_the_epoch_that_was_trained(monkeypatch, trained):
    stopped = job()
    evaluate = engine.evaluate

    def interrupted(*arguments, **keywords):
        stopped.loop.watch.received = 15
        return evaluate(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(engine, "evaluate", interrupted)
        with pytest.raises(entry.Interrupted, match=r"epoch 0, step 6"):
            training.train(stopped, snapshot.Place(0), {})
    state = stopped.keeper.states[-1]
    other, _ = resumed(state)
    assert other.run.records == trained.run.records  # validated, but not trained again
    assert_equal(other.keeper.states[-1], trained.keeper.states[-1])


def test_another_number_of_ranks_goes_on_with_the_same_batches_and_says_what_changes(trained):
    run = trained
    state = run.keeper.states[0]
    assert not snapshot.put_back_rank(state, run.parts, 0, 2)
    (line,) = snapshot.notes(state, run.config, 2)
    assert "saved inside an epoch by 1 ranks, resumed by 2: the global batches stay" in line
    assert snapshot.notes(run.keeper.states[2], run.config, 2) == []  # between epochs: no matter


@pytest.mark.parametrize("name, value, told", [
    ("batch_size", 16, "--batch_size 8, at step 2 of an epoch, and this run has 16"),
    ("seed", 4, "--seed 42, at step 2 of an epoch, and this run has 4"),
    ("aug_repeats", 3, "--aug_repeats 0, at step 2 of an epoch, and this run has 3"),
    ("opt", "sgd", "--opt rmsproptf, at step 2 of an epoch, and this run has sgd"),
])
def test_inside_an_epoch_an_option_that_moves_its_steps_is_refused_with_both_values(
        name, value, told, trained):
    run = trained
    config = dict(run.config, **{name: value})
    with pytest.raises(ValueError, match=f"FILE cannot be resumed: it was saved with {told}"):
        snapshot.check(run.keeper.states[0], "FILE", run.parts, config, CLASSES, 52)
    if name != "opt":  # between epochs it is a change like others
        snapshot.check(run.keeper.states[2], "FILE", run.parts, config, CLASSES, 52)
        assert f"{name} {run.config[name]} -> {value}" in snapshot.notes(
            run.keeper.states[2], config, 1)[0]


def test_other_classes_and_other_images_are_refused(trained):
    run = trained
    state = run.keeper.states[0]
    with pytest.raises(ValueError, match="saved with classes d.* this run has e"):
        snapshot.check(state, "FILE", run.parts, run.config, ["a", "b", "c", "e"], 52)
    with pytest.raises(ValueError, match="training images 52.* this run has 51"):
        snapshot.check(state, "FILE", run.parts, run.config, CLASSES, 51)


def test_a_checkpoint_of_the_older_format_goes_on_between_its_epochs(trained):
    run = trained
    state = copy.deepcopy(run.keeper.states[2])
    assert (state["epoch"], state["step"]) == (1, 0)
    for name in ("step", "steps", "score", "images", "ranks"):
        del state[name]
    state["format"] = 1
    other, _ = resumed(state)
    assert_equal(other.keeper.states[-1], run.keeper.states[-1])


def test_options_of_the_optimizer_that_are_given_anew_hold_when_a_run_goes_on():
    """The log told "weight_decay 0.0001 -> 5e-05", and the run went on with 1e-4."""
    model = models.create_model("mobilenetv3_small_050", num_classes=4)
    scales = {name: 0.1 for name, _ in model.named_parameters() if "classifier" not in name}

    def parts_with(opt, *settings):
        optimizer = optim.create_optimizer(model, opt, *settings, filter_bias_and_bn=True,
                                           lr_scales=scales)
        optim.Schedule(optimizer, "step", 2, 6)  # sets initial_lr
        return snapshot.Parts(model, optimizer, create_precision("O0", CPU), optim.NoEma(), CPU)

    def groups(parts, *names):
        return [tuple(group[name] for name in names) for group in parts.optimizer.param_groups]

    for opt, settings, others, names, expected in [
            ("sgd", (0.9, 1e-4), (0.8, 5e-5), ("momentum", "nesterov"), (0.8, True)),
            ("rmsproptf", (0.9, 1e-4, 1e-3), (0.8, 5e-5, 1e-2), ("momentum", "eps", "alpha"),
             (0.8, 1e-2, 0.9)),
            ("adamw", (0.9, 1e-4, 1e-8, (0.9, 0.999)), (0.9, 5e-5, 1e-6, (0.8, 0.99)),
             ("betas", "eps"), ((0.8, 0.99), 1e-6))]:
        before = parts_with(opt, 0.4, *settings)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        before.optimizer.step()
        written = io.BytesIO()
        checkpoint.write(written, snapshot.take(
            before, engine.Progress(1, 6), None, CLASSES, 52, options(opt=opt)))
        state = checkpoint.loads(written.getvalue())
        after = parts_with(opt, 0.2, *others)
        snapshot.put_back(state, after)
        assert groups(after, *names) == [expected] * 4
        # Biases and norms still have none; the rate is the saved one, until the schedule sets it.
        assert groups(after, "weight_decay", "lr_scale") == [(0.0, 1.0), (5e-5, 1.0), (0.0, 0.1),
                                                             (5e-5, 0.1)]
        assert groups(after, "lr") == groups(before, "lr")
        assert len(after.optimizer.state_dict()["state"]) == len(list(model.parameters()))


@pytest.mark.parametrize("before, now, told", [
    ((0.0, 1e-4), (0.9, 1e-4), "saved with --momentum 0.0, and this run has 0.9"),
    ((0.9, 1e-4), (0.9, 0.0), r"saved with groups of parameters \(--weight_decay\) 2, and this run "
                              "has 1"),
])
def test_an_optimizer_that_what_was_gathered_does_not_suit_is_refused(before, now, told):
    """RMSprop without its buffers of momentum fails in the first step, with a bare KeyError."""
    model = models.create_model("mobilenetv3_small_050", num_classes=4)
    parts = [snapshot.Parts(
        model, optim.create_optimizer(model, "rmsprop", 0.1, *settings, filter_bias_and_bn=True),
        create_precision("O0", CPU), optim.NoEma(), CPU) for settings in (before, now)]
    config = dict(options(opt="rmsprop"), filter_bias_and_bn=True)
    state = snapshot.take(parts[0], engine.Progress(1, 6), None, CLASSES, 52, config)
    snapshot.check(state, "FILE", parts[0], config, CLASSES, 52)
    with pytest.raises(ValueError, match=f"FILE cannot be resumed: it was {told}"):
        snapshot.check(state, "FILE", parts[1], config, CLASSES, 52)


def poison(run, step, times=1):
    """Make the loss NaN at a step of the second epoch, so many times."""
    criterion, count = run.criterion, [0]

    def wrapped(output, targets):
        loss = criterion(output, targets)
        count[0] += 1
        if 6 + step < count[0] <= 6 + step + times:
            loss = loss * float("nan")
        return loss
    return run._replace(criterion=wrapped)


def test_a_loss_that_is_not_finite_stops_and_names_the_parameter():
    run = poison(job(every=2), step=3)
    with pytest.raises(engine.NonFiniteLoss, match=(
            r"loss is nan at epoch 1, step 3 \(learning rate .*, loss scale 1, first parameter "
            r"that is not finite: conv_stem.weight\); stopped, and nothing was saved")):
        training.train(run, snapshot.Place(0), {})
    assert (run.keeper.states[-1]["epoch"], run.keeper.states[-1]["step"]) == (1, 2)


def test_on_nan_restore_goes_on_behind_the_step_that_failed(monkeypatch):
    run = poison(job(every=2)._replace(goes_back=True), step=3)

    def newest(resume, folder, who):
        return training.resuming.Found("FILE", run.keeper.states[-1], [])

    monkeypatch.setattr(training.resuming, "find", newest)
    best = training.train(run, snapshot.Place(0), {})
    (line,) = [line for line in run.run.lines if "back to" in line]
    assert "back to FILE (epoch 1, step 2), and on from epoch 1, step 4" in line
    assert engine.first_non_finite(run.parts.model) == ""
    assert best is not None and run.keeper.states[-1]["epoch"] == 2
    assert [record["epoch"] for record in run.run.records] == [0, 1]


def test_on_nan_restore_gives_up_after_three_times(monkeypatch):
    run = poison(job(every=2)._replace(goes_back=True), step=1, times=100)
    monkeypatch.setattr(training.resuming, "find", lambda *_: training.resuming.Found(
        "FILE", run.keeper.states[-1], []))
    with pytest.raises(engine.NonFiniteLoss):
        training.train(run, snapshot.Place(0), {})
    assert len([line for line in run.run.lines if "back to" in line]) == training.RESTORES == 3
