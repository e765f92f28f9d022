"""The steps of --lr_find, on a network of one layer."""
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from mobilenetv3 import device, engine, entry, interrupt, lrfind, optim, snapshot, training
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
        total_steps=max_steps or epochs * len(loader), config={"res_schedule": res_schedule},
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
