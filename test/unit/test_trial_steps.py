"""The steps of --dry_run and --lr_find, on a network of one layer."""
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mobilenetv3 import device, dryrun, engine, entry, interrupt, lrfind, optim, snapshot, training
from mobilenetv3.metrics import Clock
from mobilenetv3.precision import create_precision

CPU = device.select("cpu")


class Images:
    """Batches of 4 images; `sides` says from which epoch on they have which size."""

    def __init__(self, steps, sides=((8, 0),)):
        self.steps, self.sides, self.made = steps, sides, []

    def __len__(self):
        return self.steps

    def set_epoch(self, epoch, first=0):
        self.epoch, self.first = epoch, first

    def size_note(self):
        return ""

    def __iter__(self):
        side = [side for side, epoch in self.sides if epoch <= self.epoch][-1]
        for _ in range(self.first, self.steps):
            self.made.append(side)
            yield torch.rand(4, 3, side, side), torch.tensor([0, 1, 2, 0])


def job_of(loader, epochs=5, watch=None, max_steps=0, res_schedule=None):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    precision = create_precision("O0", CPU)
    precision.prepare(model, optimizer)
    schedule = optim.Schedule(optimizer, "cosine", epochs, len(loader))
    told = []
    return training.Job(
        who=SimpleNamespace(rank=0, world=1, is_main=True),
        parts=snapshot.Parts(model, optimizer, precision, optim.NoEma(), CPU), parallel=model,
        criterion=nn.CrossEntropyLoss(), schedule=schedule, train_loader=loader, val_loader=None,
        classes=["a", "b", "c"], keeper=None, clock=Clock(0), seed=0, dist_bn="", goes_back=False,
        run=SimpleNamespace(log=told.append, told=told, progress=lambda batches, done=0: batches),
        loop=engine.Loop(log=told.append, watch=watch or interrupt.Watch()),
        total_steps=max_steps or epochs * len(loader),
        config={"res_schedule": res_schedule, "epochs": epochs},
    )


# ---------------------------------------------------------------------------------- range test


def losses_of(watch, loader, updates):
    """The losses of a range test, and why it ended."""
    job = job_of(loader)
    losses = lrfind.Losses(watch, 1, lambda line: None)
    grows = lrfind.Range(job.parts.optimizer, 1e-5, 1e-3, updates, len(loader))
    job = job._replace(schedule=grows, loop=job.loop._replace(
        print_freq=1, log=losses.log, watch=losses))
    return losses, lrfind._grow(job, grows, losses)


@pytest.mark.parametrize("options", [{"every_steps": 4}, {"every_minutes": 1e-9}])
def test_a_range_test_was_cut_short_where_the_run_would_have_saved(options):
    losses, why = losses_of(interrupt.Watch(**options), Images(20), updates=30)
    # All the updates that were asked for: 20 of the first epoch and 10 of the second.
    assert (len(losses.values), why) == (30, "")


def test_a_signal_still_ends_a_range_test():
    watch = interrupt.Watch(every_steps=4)
    watch.received = signal.SIGTERM
    with pytest.raises(entry.Interrupted, match="SIGTERM; nothing of a range test stays"):
        losses_of(watch, Images(20), updates=30)


# ------------------------------------------------------------------------------------- dry run


GROWS = [[8, 0], [16, 2], [32, 4]]


@pytest.mark.parametrize("place, max_steps, epoch, sides", [
    (snapshot.Place(0), 0, 4, [32, 32]),
    (snapshot.Place(1, 2), 0, 4, [32, 32]),
    (snapshot.Place(3, 3), 0, 4, [32, 32]),  # stopped in a validation
    (snapshot.Place(0), 7, 2, [16, 16]),  # 2 epochs of 3 steps and a step: 32 never comes
    (snapshot.Place(4, 1), 0, 4, [32, 32]),
    (snapshot.Place(0), 6, 0, [8, 8]),
])
def test_a_dry_run_measured_the_smallest_images_of_a_run_whose_images_grow(
        place, max_steps, epoch, sides):
    loader = Images(3, GROWS)
    job = job_of(loader, max_steps=max_steps, res_schedule=GROWS)
    progress = dryrun._train(job, place, {})
    assert (progress.epoch, loader.made) == (epoch, sides)


def test_a_dry_run_says_which_images_it_measured():
    took = dryrun.Took(2.0, 0.5, 0.0, 0.0, 0.0)
    for schedule, size, most in ((GROWS, ", with the largest images to come, 32x32", "at most "),
                                 (None, "", "")):
        job = job_of(Images(3), res_schedule=schedule)
        told = []
        dryrun._tell_time(job, took, 3, dryrun._grown(job, 1), told.append)
        step, estimate = told
        assert step.startswith(f"=> one step{size}: 2.000 s, of it 0.500 s waiting for data")
        # 4 of 5 epochs are left, of 3 steps of 2 s.
        assert f"=> estimate: 12 steps in 4 epochs take {most}24.0 s; begun now" in estimate
