"""The loop: one epoch of training, one evaluation. One forward, one backward, one step.

It receives finished objects and never sees the configuration. Null objects stand where a feature is
off (precision O0, no EMA), so the same lines serve fp32, mixed precision and every device.
"""
import contextlib
import math
import time
from typing import Callable, NamedTuple, Optional

import torch
from torch.nn import functional as F

from mobilenetv3 import dist, logfmt, metrics


class Loop(NamedTuple):
    """What stays the same from epoch to epoch."""

    accumulate: int = 1
    """Steps whose gradients make one optimizer update."""
    print_freq: int = 10
    """Steps from one printed line to the next; the device is waited for only there."""
    max_steps: int = 0
    """Training steps of the whole run, 0 for no limit."""
    log: Callable[[str], None] = print


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite; training cannot go on from these weights."""

    is_theirs = True  # told in one sentence: the cause is the recipe, not the code


def train_one_epoch(model, loader, criterion, optimizer, precision, schedule, ema, clock,
                    epoch: int, loop: Loop) -> metrics.Score:
    """Train for one epoch (or until `loop.max_steps`) and return its score.

    No step waits for the device but those that print a line. Loss and accuracy are counted on the
    batches as the model saw them, augmented, over all ranks.

    Raises:
        NonFiniteLoss: names the first step whose loss was NaN or infinite. It is looked for at
            each printed step, and always before the epoch ends.
    """
    model.train()
    steps = len(loader)
    last = min(steps, loop.max_steps - epoch * steps if loop.max_steps else steps) - 1
    score = metrics.Score()
    pending, times = [], _Times()  # rows that are still on the device
    clock.start()
    batches = iter(loader)
    for step in range(last + 1):
        waited = time.perf_counter()
        images, targets = next(batches)
        times.data += time.perf_counter() - waited

        first = step - step % loop.accumulate  # of the steps that make this update
        group = min(loop.accumulate, steps - first)
        is_update = step + 1 == first + group or step == last
        with _no_sync(model, is_update):
            output = precision.forward(model, images)
            loss = criterion(output, targets)
            precision.backward(loss / group, is_update)
        lr = schedule.lr
        if is_update:
            precision.step(optimizer)
            ema.update(precision.weights(dist.unwrap(model)))
            schedule.at(epoch, step // loop.accumulate + 1)

        pending.append(metrics.batch_row(loss, output, targets))
        if not _prints(step, last, clock, len(pending), loop):
            continue
        # All ranks' sums, one row a step: the one place where the host waits for the device.
        rows = dist.all_reduce_sum(torch.stack(pending)).tolist()
        _check_finite(rows, epoch, step + 1 - len(rows), lr)
        precision.check()
        images_seen = int(sum(row[3] for row in rows))
        times.lap(clock.lap(len(rows), images_seen), len(rows))
        score = score.add(rows)
        loop.log(logfmt.TrainLine(
            epoch, step, steps, times.last, times.mean, images_seen / times.seconds, clock.fps,
            times.last_data, times.mean_data, *_latest_and_mean(rows[-1], score), lr,
        ).line())
        pending = []
    return score


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


def _check_finite(rows, epoch: int, first_step: int, lr: float) -> None:
    for step, row in enumerate(rows, first_step):
        if not math.isfinite(row[0]):
            raise NonFiniteLoss(
                f"the loss is {row[0]} at epoch {epoch}, step {step} (learning rate {lr:.3g}); "
                "stopped, and nothing was saved from these weights. A lower --lr, a longer "
                "--warmup-epochs or --clip-grad may help"
            )


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
