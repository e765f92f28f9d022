"""--lr_find: the learning-rate range test of Smith 2015 (arXiv 1506.01186).

The rate grows exponentially from update to update, on the run's own images and by the engine's own
step, until the loss rises far above its lowest. train.py has built everything as for a run; weights
and optimizer are forgotten, only the figures and a picture of them stay.
"""
import math
from functools import partial
from pathlib import Path
from typing import Callable, List, NamedTuple, Optional, Tuple

from mobilenetv3 import (
    drawing,
    engine,
    entry,
    interrupt,
    optim,
    rangeplot,
    results,
    scaling,
    training,
)
from mobilenetv3.files import write_atomically

SMOOTHING = 0.9
"""Share of the running mean of the loss that an update keeps."""
DIVERGED = 4.0
"""Times the lowest smoothed loss at which the test ends, if that is above its beginning, too."""
WIDTH = 9
"""Points of the line whose slope counts."""
LEAST_FALL = 0.02
"""A loss that falls by less of itself has not fallen."""
FILES = ("lr_find.json", "lr_find.png")


class Range:
    """A schedule (`optim.Schedule`) whose rate grows by a constant factor at each update.

    Args:
        low, high: rates of the first and the last update.
        updates: how many, 2 or more.
        updates_per_epoch: as `optim.updates_per_epoch`.
    """

    def __init__(self, optimizer, low: float, high: float, updates: int, updates_per_epoch: int):
        self.optimizer, self.low, self.high, self.updates = optimizer, low, high, updates
        self.updates_per_epoch = updates_per_epoch
        self.epochs = math.ceil(updates / updates_per_epoch)

    def rate(self, update: int) -> float:
        """The rate of an update of the test, from 0."""
        return self.low * (self.high / self.low) ** (update / (self.updates - 1))

    def at(self, epoch: int, update: int = 0) -> None:
        """Set the rate for an update of an epoch; groups keep their factors (`lr_scale`)."""
        lr = self.rate(min(epoch * self.updates_per_epoch + update, self.updates - 1))
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group.get("lr_scale", 1.0)

    @property
    def lr(self) -> float:
        """The rate in force (of the first parameter group, which has the full one)."""
        return self.optimizer.param_groups[0]["lr"]


class Losses(engine.Unwatched):
    """Notes the loss of each update, over all ranks, and breaks the test off where it diverges.

    It is the loop's watch and its log. The loop must print every step: then the sums of an update
    are there when the first step of the next one is logged, equal on all ranks, and none has to
    ask another.

    Args:
        inner: the run's watch, for its signals.
        accumulate: steps of an update.
        show: takes one line of the log in `EACH`.
    """

    EACH = 10

    def __init__(self, inner: interrupt.Watch, accumulate: int, show: Callable[[str], None]):
        self.inner, self.accumulate, self.show = inner, accumulate, show
        self.lines = 0
        self.values: List[float] = []
        self.smoothed: List[float] = []
        self.progress: Optional[engine.Progress] = None
        self._before = (0.0, 0)

    def begin(self, step: int) -> None:
        """An epoch begins."""
        self.inner.begin(step)

    def saved(self) -> None:
        """Nothing is ever saved."""

    def start(self, progress: engine.Progress) -> None:
        """Note the losses of an epoch from here on."""
        self.progress, self._before = progress, (0.0, 0)

    def wants_break(self, step: int) -> bool:
        """Whether to end the test, or for a signal; all ranks get one answer."""
        self.inner.wants_break(step)  # the ranks agree; a checkpoint that is due is none of ours
        return self.inner.agreed is not None or self.is_over

    def log(self, line: str) -> None:
        """A step was made; of the steps before it the sums are there."""
        if (self.progress.step - 1) % self.accumulate == 0:
            self.note()
        if self.lines % self.EACH == 0:
            self.show(line)
        self.lines += 1

    def note(self) -> None:
        """Take over what the engine has summed since the last time."""
        score = self.progress.score
        images = score.images - self._before[1]
        if images:
            self.add((score.loss_sum - self._before[0]) / images)
        self._before = score.loss_sum, score.images

    def add(self, loss: float) -> None:
        """Note one loss, and its running mean without the bias of the mean's beginning."""
        self.values.append(loss)
        mean = 0.0
        for value in self.values:
            mean = SMOOTHING * mean + (1.0 - SMOOTHING) * value
        self.smoothed.append(mean / (1.0 - SMOOTHING ** len(self.values)))

    @property
    def is_over(self) -> bool:
        """Whether the smoothed loss is far above its lowest, and above its beginning."""
        if not self.smoothed:
            return False
        highest = max(self.smoothed[0], DIVERGED * min(self.smoothed))
        return not self.smoothed[-1] <= highest  # NaN, too


class Found(NamedTuple):
    """What the curve says."""

    suggestion: Optional[float]
    """The rate at which the smoothed loss falls fastest; None where it never falls."""
    lowest: Optional[float]
    """The rate at which it is lowest."""
    diverged: Optional[float]
    """The last rate, where the test ended because the loss rose or was no number."""


def read_curve(rates: List[float], smoothed: List[float], diverged: bool) -> Found:
    """Read a suggestion off a curve.

    The slope is that of a straight line through `WIDTH` points, over the logarithm of the rate, so
    that one odd batch decides nothing; it is looked for before the lowest point.

    Args:
        rates: growing by a constant factor.
        smoothed: losses, finite.
    """
    last = rates[-1] if diverged and rates else None
    if len(smoothed) < WIDTH + 2:
        return Found(None, None, last)
    lowest = min(range(len(smoothed)), key=smoothed.__getitem__)
    centres = range(WIDTH // 2, lowest - WIDTH // 2 + 1)
    slopes = {centre: _slope(smoothed[centre - WIDTH // 2: centre + WIDTH // 2 + 1])
              for centre in centres}
    steepest = min(slopes, key=slopes.__getitem__) if slopes else None
    fell = smoothed[0] - smoothed[lowest] > LEAST_FALL * abs(smoothed[0])
    if steepest is None or slopes[steepest] >= 0 or not fell:
        return Found(None, rates[lowest], last)
    return Found(rates[steepest], rates[lowest], last)


def _slope(values: List[float]) -> float:
    """Slope of the least-squares line through equidistant values."""
    middle = (len(values) - 1) / 2
    return sum((place - middle) * value for place, value in enumerate(values)) / sum(
        (place - middle) ** 2 for place in range(len(values)))


def search(job: training.Job, low: float, high: float, updates: int, folder: Path,
           per_lr: float) -> Optional[Callable[[], None]]:
    """Make the test, write the figures into a folder, and log them. Every rank calls it.

    Args:
        job: of a run that begins.
        updates: 2 or more.
        per_lr: the learning rate that --lr 1 gives: other than 1 with --scale_lr.

    Returns:
        What draws the picture beside the figures, to be called when no loader is in sight; None
        where there is nothing to draw.

    Raises:
        ValueError: the loss was no number at the lowest rate already.
        entry.Interrupted: a signal came.
    """
    accumulate, steps = job.loop.accumulate, len(job.train_loader)
    schedule = Range(job.parts.optimizer, low, high, updates,
                     optim.updates_per_epoch(steps, accumulate))
    losses = Losses(job.loop.watch, accumulate, job.run.log)
    job = job._replace(
        schedule=schedule, parts=job.parts._replace(ema=optim.NoEma()),
        loop=job.loop._replace(print_freq=1, log=losses.log, watch=losses),
    )
    why = _grow(job, schedule, losses)
    values = [value for value in losses.values if math.isfinite(value)]
    if not values:
        raise ValueError(f"--lr_find: no loss at {low:g} was a finite number ({why}); begin lower: "
                         "--lr_find_range LOW HIGH")
    rates = [schedule.rate(update) for update in range(len(values))]
    smoothed = losses.smoothed[:len(values)]
    found, draw = read_curve(rates, smoothed, bool(why) or losses.is_over), None
    if job.who.is_main:
        paths = _free_names(folder)
        results.write_json(paths[0], dict(
            results.about(job.parts.device.torch_device), **found._asdict(), rates=rates,
            losses=values, smoothed=smoothed, batch_size=job.config["batch_size"],
            updates=updates, range=[low, high], ranks=job.who.world,
            amp=job.parts.precision.amp_type, optimizer=job.config["opt"],
        ))
        _tell(job, found, per_lr)
        fault = drawing.fault()
        picture = f"; no picture: {fault}" if fault else f" and {paths[1].name}"
        job.run.log(f"=> {paths[0].resolve()}{picture}")
        if not fault:
            draw = partial(_draw, paths[1], rates, values, smoothed, found)
    return draw


def _draw(path: Path, rates: List[float], values: List[float], smoothed: List[float],
          found: Found) -> None:
    write_atomically(path, lambda file: rangeplot.draw(
        file, rates, values, smoothed, found.suggestion, found.lowest))


def _grow(job: training.Job, schedule: Range, losses: Losses) -> str:
    """Train while the rate grows; returns why it ended early by an error, "" if it did not."""
    steps, left = len(job.train_loader), schedule.updates
    for epoch in range(schedule.epochs):
        end = min(steps, left * job.loop.accumulate)
        progress = engine.Progress(epoch, steps, end)
        training.begin(job, progress, {})
        losses.start(progress)
        try:
            engine.train_one_epoch(
                job.parallel, iter(job.run.progress(job.train_loader)),
                job.criterion, job.parts.optimizer, job.parts.precision, schedule, job.parts.ema,
                job.clock, progress, job.loop,
            )
        except (engine.NonFiniteLoss, scaling.Overflow) as error:
            losses.note()
            return getattr(error, "what", str(error))
        losses.note()
        if losses.inner.agreed:
            raise entry.Interrupted(losses.inner.agreed, "nothing of a range test stays")
        if losses.is_over:
            break
        left -= schedule.updates_per_epoch
    return ""


def _tell(job: training.Job, found: Found, per_lr: float) -> None:
    log = job.run.log
    if found.diverged is not None:
        log(f"=> range test: ended at {found.diverged:.3g}, where the loss was above its beginning "
            f"and {DIVERGED:g} times its lowest, or no number")
    if found.suggestion is None:
        log("=> range test: no suggestion, the loss did not fall; try more updates or another "
            "--lr_find_range")
        return
    given = "" if per_lr == 1.0 else f", which is --lr {found.suggestion / per_lr:.3g} here"
    log(f"=> range test: suggested learning rate {found.suggestion:.3g}{given}, where the loss "
        f"falls fastest; it is lowest at {found.lowest:.3g}. For --batch_size "
        f"{job.config['batch_size']} and --opt {job.config['opt']}")


def _free_names(folder: Path) -> Tuple[Path, Path]:
    """Names for the results that nothing has yet: lr_find, lr_find_2, ..."""
    number = 1
    while True:
        stem = "lr_find" if number == 1 else f"lr_find_{number}"
        paths = tuple(folder / (stem + Path(name).suffix) for name in FILES)
        if not any(path.exists() for path in paths):
            return paths
        number += 1
