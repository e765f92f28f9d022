"""Counts, never percentages of percentages: what was correct out of how many, and how fast."""
import time
from typing import List, NamedTuple

import torch


def ranked(output: torch.Tensor) -> torch.Tensor:
    """The five likeliest classes, or all where there are fewer, best first: (N, C) -> (N, <= 5)."""
    return output.detach().topk(min(5, output.shape[1]), 1).indices


def batch_row(loss: torch.Tensor, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Sums of one batch, left on the device so that no step waits for it.

    Args:
        loss: mean over the batch, scalar.
        output: logits (N, C).
        target: class indices (N,), or probabilities (N, C) as Mixup makes them, of which the
            largest then counts as the label.

    Returns:
        float32 (4,): summed loss, correct in the first, correct among the first five (or C where
        there are fewer classes), N. float32 holds whole numbers up to 2**24.
    """
    if target.dim() == 2:
        target = target.argmax(1)
    hits = ranked(output) == target[:, None]
    loss = loss.detach().float()
    images = torch.full_like(loss, len(target))  # a fill, where a copy from the host would wait
    return torch.stack([loss * images, hits[:, 0].sum().float(), hits.any(1).sum().float(), images])


class Score(NamedTuple):
    """Sums over images; the averages are taken once, at the end."""

    loss_sum: float = 0.0
    correct1: int = 0
    correct5: int = 0
    images: int = 0

    def add(self, rows: List[List[float]]) -> "Score":
        """Add rows as `batch_row` makes them, one by one: how they are grouped changes no bit.

        Python's floats are double: no drift.
        """
        loss_sum = self.loss_sum
        for row in rows:
            loss_sum += row[0]
        return Score(
            loss_sum,
            self.correct1 + int(sum(row[1] for row in rows)),
            self.correct5 + int(sum(row[2] for row in rows)),
            self.images + int(sum(row[3] for row in rows)),
        )

    @property
    def loss(self) -> float:
        """Mean over the images, nats."""
        return self.loss_sum / max(1, self.images)

    @property
    def acc1(self) -> float:
        """Top-1, per cent."""
        return 100.0 * self.correct1 / max(1, self.images)

    @property
    def acc5(self) -> float:
        """Top-5, per cent."""
        return 100.0 * self.correct5 / max(1, self.images)


class Clock:
    """Training throughput of a run: images/s over the steps after a warm-up.

    The first `warmup` steps (compilation, memory pools, filling queues) are timed but not counted.
    Evaluation and checkpoints lie between `start` and the `lap` before it, so they never count.
    `lap` is called only where the device has just been waited for.
    """

    def __init__(self, warmup: int, now=time.perf_counter):
        self.warmup, self.now = warmup, now
        self.steps = 0
        self._counted = [0, 0.0]  # images, seconds
        self._early = [0, 0.0]

    def start(self) -> None:
        """Begin, or go on after an evaluation."""
        self._mark = self.now()

    def lap(self, steps: int, images: int) -> float:
        """Account for steps and images (of all ranks) since the last mark; returns seconds."""
        now = self.now()
        seconds, self._mark = now - self._mark, now
        # A lap that began in the warm-up is not counted; the loop ends a lap where it ends.
        total = self._counted if self.steps >= self.warmup else self._early
        total[0] += images
        total[1] += seconds
        self.steps += steps
        return seconds

    @property
    def is_measured(self) -> bool:
        """Whether any step after the warm-up was timed."""
        return self._counted[1] > 0

    @property
    def fps(self) -> float:
        """Images/s over the counted steps; during the warm-up, over the steps so far."""
        images, seconds = self._counted if self.is_measured else self._early
        return images / seconds if seconds > 0 else 0.0
