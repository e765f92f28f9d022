"""The loop: one epoch of training, one evaluation. One forward, one backward, one step.

It receives finished objects and never sees the configuration. Null objects stand where a feature is
off (precision O0, no EMA), so the same lines serve fp32, mixed precision and every device.
"""
import contextlib
import math
import time
from typing import Callable, List, NamedTuple, Optional

import torch
from torch.nn import functional as F

from mobilenetv3 import dist, logfmt, metrics


class Unwatched:
    """Stands where nothing may break into an epoch: see `interrupt.Watch`."""

    def at(self, what: str, epoch: int, step: int) -> None:
        """Nobody asks where this rank is."""

    def wants_break(self, step: int) -> bool:
        """Never."""
        return False


class Unprofiled:
    """Stands where no steps are watched: see `profiling.Profile`."""

    _nothing = contextlib.nullcontext()

    def phase(self, name: str):
        """Nobody asks how long it takes."""
        return self._nothing

    def step(self) -> None:
        """Nobody counts."""

    def close(self) -> None:
        """There is nothing to write."""


class Loop(NamedTuple):
    """What stays the same from epoch to epoch."""

    accumulate: int = 1
    """Steps whose gradients make one optimizer update."""
    print_freq: int = 10
    """Steps from one printed line to the next; the device is waited for only there."""
    log: Callable[[str], None] = print
    watch: Unwatched = Unwatched()
    """Asked after each update whether to leave the epoch for a moment, on all ranks alike."""
    profile: Unprofiled = Unprofiled()
    """Told what begins and what ends."""


class Progress:
    """Where an epoch stands; `train_one_epoch` moves it on.

    Args:
        epoch: from 0.
        steps: steps in a whole epoch.
        end: steps after which it is over, where a run ends inside of it.
        step: steps done, in a run before this one.
        score: of those steps.
    """

    def __init__(self, epoch: int, steps: int, end: Optional[int] = None, step: int = 0,
                 score: metrics.Score = metrics.Score()):  # noqa: B008  (it is immutable)
        self.epoch, self.steps, self.step, self.score = epoch, steps, step, score
        self.end = steps if end is None else min(end, steps)
        self.times = _Times()

    @property
    def is_over(self) -> bool:
        return self.step >= self.end


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; training cannot go on from these weights.

    Args:
        what: the loss, where, and what the weights are.
        epoch, step: of the first such loss, both from 0.
    """

    is_theirs = True  # told in one sentence: the cause is the recipe, not the code

    def __init__(self, what: str, epoch: int, step: int):
        super().__init__(
            f"{what}; stopped, and nothing was saved from these weights. A lower --lr, a longer "
            "--warmup-epochs or --clip-grad may help, --on-nan restore goes on without these steps"
        )
        self.what, self.epoch, self.step = what, epoch, step


def train_one_epoch(model, batches, criterion, optimizer, precision, schedule, ema, clock,
                    progress: Progress, loop: Loop) -> None:
    """Train until the epoch is over, or until the watch wants a break; then call it again.

    No step waits for the device but those that print a line. Loss and accuracy are counted on the
    batches as the model saw them, augmented, over all ranks.

    Args:
        batches: iterator over the batches of the epoch that are still to come.
        progress: where the epoch stands; a break is always just after an update.

    Raises:
        NonFiniteLoss: names the first step whose loss was NaN or infinite. It is looked for at
            each printed step, at each break, and always before the epoch ends.
    """
    model.train()
    epoch, steps, last = progress.epoch, progress.steps, progress.end - 1
    pending = []  # rows that are still on the device
    clock.start()
    for step in range(progress.step, progress.end):
        loop.watch.at("waiting for its data, or computing", epoch, step)
        waited = time.perf_counter()
        with loop.profile.phase("data wait"):
            images, targets = next(batches)
        progress.times.data += time.perf_counter() - waited

        first = step - step % loop.accumulate  # of the steps that make this update
        group = min(loop.accumulate, progress.end - first)
        is_update = step + 1 == first + group or step == last
        with _no_sync(model, is_update):
            with loop.profile.phase("forward"):
                output = precision.forward(model, images)
                loss = criterion(output, targets)
            loop.watch.at("exchanging gradients", epoch, step)
            with loop.profile.phase("backward"):
                precision.backward(loss / group, is_update)
        lr = schedule.lr
        if is_update:
            with loop.profile.phase("optimizer"):
                precision.step(optimizer)
                ema.update(precision.weights(dist.unwrap(model)))
            schedule.at(epoch, step // loop.accumulate + 1)

        pending.append(metrics.batch_row(loss, output, targets))
        progress.step = step + 1
        loop.profile.step()
        is_break = is_update and loop.watch.wants_break(progress.step)
        if not (is_break or _prints(step, last, clock, len(pending), loop)):
            continue
        # All ranks' sums, one row a step: the one place where the host waits for the device.
        rows = _sums(torch.stack(pending))
        is_saved_next = is_break or step == last
        _check_finite(rows, progress, lr, precision, dist.unwrap(model), is_saved_next)
        scale = precision.check()
        images_seen = int(sum(row[3] for row in rows))
        times, score = progress.times, progress.score.add(rows)
        times.lap(clock.lap(len(rows), images_seen), len(rows))
        loop.log(logfmt.TrainLine(
            epoch, step, steps, times.last, times.mean, images_seen / times.seconds, clock.fps,
            times.last_data, times.mean_data, *_latest_and_mean(rows[-1], score), lr, scale,
        ).line())
        pending, progress.score = [], score
        if is_break:
            return


def _sums(rows: torch.Tensor) -> List[List[float]]:
    """(steps, 4) of each rank -> sums over the ranks, in double and in the order of the ranks.

    So a sum does not depend on how many steps were summed at once, as it does where the ranks add.
    """
    parts = torch.stack(dist.all_gather(rows)).tolist()
    return [[sum(column) for column in zip(*step)] for step in zip(*parts)]


class _Times:
    """Seconds per step, of the latest lap and of the epoch: whole, and waiting for data."""

    def __init__(self):
        self.data = 0.0  # waited in the lap that is under way
        self.seconds = self.last = self.last_data = 0.0
        self._totals = [0, 0.0, 0.0]  # steps, seconds, seconds waited

    def lap(self, seconds: float, steps: int) -> None:
        self.seconds = max(seconds, 1e-9)
        self.last, self.last_data = seconds / steps, self.data / steps
        for index, amount in enumerate((steps, seconds, self.data)):
            self._totals[index] += amount
        self.data = 0.0

    @property
    def mean(self) -> float:
        return self._totals[1] / self._totals[0]

    @property
    def mean_data(self) -> float:
        return self._totals[2] / self._totals[0]


def _no_sync(model, is_update: bool):
    """Between updates the ranks need not exchange gradients."""
    if is_update or not hasattr(model, "no_sync"):
        return contextlib.nullcontext()
    return model.no_sync()


def _prints(step: int, last: int, clock, pending: int, loop: Loop) -> bool:
    """Whether a step prints: every `print_freq`, the run's first two, the epoch's last.

    The warm-up's last step prints, too, because the clock starts to count where the device has been
    waited for.
    """
    done = clock.steps + pending
    return step % loop.print_freq == 0 or step == last or done <= 2 or done == clock.warmup


def _check_finite(rows, progress: Progress, lr: float, precision, model,
                  checks_weights: bool) -> None:
    """Raise NonFiniteLoss for one of the latest losses, or for the weights they led to."""
    bad = [step for step, row in enumerate(rows, progress.step - len(rows))
           if not math.isfinite(row[0])]
    if not (bad or checks_weights):
        return
    name = first_non_finite(model)
    if not (bad or name):
        return
    step = bad[0] if bad else progress.step - 1
    loss = rows[step - progress.step][0] / max(1.0, rows[step - progress.step][3])
    where = f"first parameter that is not finite: {name}" if name else "all parameters are finite"
    raise NonFiniteLoss(
        f"the loss is {loss:g} at epoch {progress.epoch}, step {step} (learning rate {lr:.3g}, "
        f"loss scale {precision.state_dict()['loss_scale']:g}, {where})", progress.epoch, step,
    )


@torch.no_grad()
def first_non_finite(model) -> str:
    """Name of the first parameter with NaN or infinity in it, "" where there is none."""
    names, parameters = zip(*model.named_parameters())
    fine = torch.stack([torch.isfinite(parameter).all() for parameter in parameters]).tolist()
    return next((name for name, is_fine in zip(names, fine) if not is_fine), "")


def _latest_and_mean(row, score):
    """Loss, Acc@1 and Acc@5 in log order: each of the latest step, then of the epoch so far."""
    latest = metrics.Score().add([row])
    return latest.loss, score.loss, latest.acc1, score.acc1, latest.acc5, score.acc5


@torch.no_grad()
def evaluate(model, loader, precision, print_freq: int = 10,
             log: Callable[[str], None] = print,
             observe: Optional[Callable[[torch.Tensor, torch.Tensor], None]] = None,
             ) -> metrics.Score:
    """Score every image of a validation set exactly once, whatever the number of ranks.

    Args:
        model: not wrapped for parallel training: ranks may have different numbers of batches.
        loader: yields this rank's share.
        observe: given each batch's logits (N, C) and class indices (N,), on the device; counts
            more than is counted here, such as `confusion.Confusion`. It should not wait for them.

    Returns:
        Sums over the images of all ranks. The loss is cross entropy in nats.
    """
    model.eval()
    score, pending, steps = metrics.Score(), [], len(loader)
    start = mark = time.perf_counter()
    for step, (images, targets) in enumerate(loader):
        output = precision.forward(model, images)
        pending.append(metrics.batch_row(F.cross_entropy(output, targets), output, targets))
        if observe is not None:
            observe(output, targets)
        if step % print_freq and step + 1 < steps:
            continue
        rows = torch.stack(pending).tolist()
        now = time.perf_counter()
        score = score.add(rows)
        log(logfmt.TestLine(
            step, steps, (now - mark) / len(rows), (now - start) / (step + 1),
            *_latest_and_mean(rows[-1], score),
        ).line())
        pending, mark = [], now
    return _total(score, next(model.parameters()).device)


def _total(score: metrics.Score, device: torch.device) -> metrics.Score:
    """Sum over the ranks. Counts travel as integers; the loss in double where there is double."""
    if not dist.is_parallel():
        return score
    counts = torch.tensor(score[1:], dtype=torch.int64, device=device)
    # float32 keeps 7 digits, and NPUs have no double: send the sum as two parts of 7 digits each.
    high = torch.tensor(score.loss_sum, dtype=torch.float32)
    low = torch.tensor(score.loss_sum - high.item(), dtype=torch.float32)
    parts = dist.all_gather(torch.stack([high, low]).to(device))
    dist.all_reduce_sum(counts)
    loss_sum = math.fsum(value for part in parts for value in part.tolist())
    return metrics.Score(loss_sum, *counts.tolist())
