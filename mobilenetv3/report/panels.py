"""Curves as data: panels and their series, from which page and pictures are both drawn."""
import math
import re
from typing import Callable, List, NamedTuple, Optional, Sequence, Tuple

from .history import History, Point

MOST_POINTS = 2000
"""Points of a series that are drawn; of more, the least and the greatest of each stretch."""
PEAK = 10.0
"""Times the median above which a loss is drawn on a logarithmic axis."""
_VALIDATION = re.compile(r"val_(loss|acc1|acc5)(?:_(\w{1,40}))?")


class Series(NamedTuple):
    """One curve."""

    run: int
    """Number of the run, from 0."""
    role: str
    """A key of palette.STYLES."""
    label: str
    x: List[float]
    y: List[Optional[float]]
    """None where there is no finite number: a gap."""
    colour: int
    """Number in palette.CURVES."""


class Panel(NamedTuple):
    """Series on common axes."""

    key: str
    title: str
    unit: str
    series: List[Series]
    scale: str = ""
    """Of the y axis: "", "log" or "log2"."""
    from_zero: bool = False


class Mark(NamedTuple):
    """A place where a run went on after it had ended, or was killed."""

    run: int
    x: float
    text: str


class Curves(NamedTuple):
    """All that is drawn of some runs."""

    panels: List[Panel]
    marks: List[Mark]
    x_title: str
    thinned: int
    """Points of the longest series that was thinned out; 0 where none was."""


def curves(histories: Sequence[History]) -> Curves:
    """The curves of one run, or of several in the same panels."""
    furthest = max((point.at for history in histories for start in history.trained
                    for point in start.points), default=0.0)
    has_epochs = any(epoch > 0 for history in histories for epoch in history.validations)
    by_steps = furthest < 1.0 and not has_epochs
    drawn = [_Run(number, history, by_steps, len(histories) > 1)
             for number, history in enumerate(histories)]

    def each(*makers: Callable) -> List[Series]:
        found = [series for run in drawn for make in makers for series in make(run)]
        return [series for series in found if series.x]

    panels = [
        Panel("loss", "Loss", "nats", each(
            lambda run: run.steps(lambda line: line.loss),
            lambda run: run.means(lambda line: line.loss_avg),
            lambda run: run.validations("loss"))),
        Panel("acc1", "Acc@1", "%", each(
            lambda run: run.steps(lambda line: line.acc1),
            lambda run: run.means(lambda line: line.acc1_avg),
            lambda run: run.validations("acc1"))),
        Panel("acc5", "Acc@5", "%", each(
            lambda run: run.means(lambda line: line.acc5_avg),
            lambda run: run.validations("acc5"))),
        Panel("lr", "Learning rate", "", each(
            lambda run: run.values(lambda line: line.lr)), from_zero=True),
        Panel("scale", "Loss scale", "", each(
            lambda run: run.values(lambda line: line.scale)), scale="log2"),
        Panel("fps", "Throughput", "images/s", each(
            lambda run: run.steps(lambda line: line.rate),
            lambda run: run.values(lambda line: line.fps)), from_zero=True),
        Panel("data", "Waiting for data", "% of a step", each(
            lambda run: run.steps(_data_share),
            lambda run: run.means(_mean_data_share)), from_zero=True),
    ]
    panels = [panel for panel in panels if panel.series and not _says_nothing(panel)]
    panels = [panel._replace(scale="log") if panel.key == "loss" and _has_peaks(panel) else panel
              for panel in panels]
    longest = max((len(one.x) for panel in panels for one in panel.series), default=0)
    thin = [panel._replace(series=[thinned(one) for one in panel.series]) for panel in panels]
    return Curves(thin, [mark for run in drawn for mark in run.marks()],
                  "steps" if by_steps else "epochs", longest if longest > MOST_POINTS else 0)


class _Run:
    """One run's series, in units of the x axis that all runs share."""

    def __init__(self, number: int, history: History, by_steps: bool, is_one_of_many: bool):
        self.number, self.history, self.by_steps = number, history, by_steps
        self.is_one_of_many = is_one_of_many
        self.kept = history.kept()

    def x(self, point: Point) -> float:
        return point.step if self.by_steps else round(point.at, 6)

    def series(self, role: str, label: str, x, y, colour: int) -> Series:
        finite = [value if math.isfinite(value) else None for value in y]
        return Series(self.number, role, label, list(x), finite,
                      self.number if self.is_one_of_many else colour)

    def steps(self, value: Callable) -> List[Series]:
        """Every printed step, faint; and what a restart made again."""
        found = [self._of(self.kept, "step", "printed step", value)]
        for points in self.history.redone():
            found.append(self._of(points, "redone", "made again", value))
        return found + [_bad(one) for one in found]

    def values(self, value: Callable) -> List[Series]:
        """A curve of printed steps that needs no mean."""
        return [self._of(self.kept, "value", "training", value)]

    def means(self, value: Callable) -> List[Series]:
        """The mean of each epoch: what its last line says."""
        last = [point for point, after in zip(self.kept, [*self.kept[1:], None])
                if after is None or after.line.epoch != point.line.epoch]
        is_single = len(last) < 2 and self.by_steps
        return [] if is_single else [self._of(last, "train", "training", value)]

    def _of(self, points: Sequence[Point], role: str, label: str, value: Callable) -> Series:
        return self.series(role, label, [self.x(point) for point in points],
                           [value(point.line) for point in points], 0)

    def validations(self, what: str) -> List[Series]:
        """One series for each kind of weights that was scored: val_loss, val_loss_ema, ...

        One that is everywhere the same as what counts is that itself, and gives it its name.
        """
        found = self.history.validations
        kinds = sorted({match.group(2) or "" for record in found.values() for name in record
                        for match in [_VALIDATION.fullmatch(name)]
                        if match and match.group(1) == what})
        values = {kind: self._scored(f"val_{what}_{kind}" if kind else f"val_{what}")
                  for kind in kinds}
        same = [kind for kind in kinds if kind and values[kind] == values.get("")]
        made = []
        for kind in kinds:
            if kind in same:
                continue
            name = kind or (same[0] if same else "")
            place = len(made) + (1 if "" in kinds else 2)
            x = [self._at_end_of(epoch) for epoch, _ in values[kind]]
            made.append(self.series("other" if kind else "val",
                                    f"validation, {name}" if name else "validation", x,
                                    [value for _, value in values[kind]], place))
        return made + [_bad(one) for one in made]

    def _scored(self, name: str) -> List[Tuple[int, float]]:
        """(epoch, value) of each validation that has a number of this name."""
        found = self.history.validations
        return [(epoch, found[epoch][name]) for epoch in sorted(found)
                if epoch >= 0 and name in found[epoch]]

    def _at_end_of(self, epoch: int) -> float:
        if self.by_steps:
            return self.kept[-1].step if self.kept else 0
        # A run that ends inside an epoch is validated there.
        last = self.kept[-1] if self.kept else None
        return self.x(last) if last is not None and last.line.epoch == epoch else epoch + 1.0

    def marks(self) -> List[Mark]:
        """Where a later start began."""
        return [Mark(self.number, start.step if self.by_steps else round(start.at, 6),
                     f"went on from epoch {start.points[0].line.epoch}, "
                     f"step {start.points[0].line.step}")
                for start in self.history.trained[1:]]


def _data_share(line) -> float:
    return 100.0 * line.data / line.time if line.time > 0 else 0.0


def _mean_data_share(line) -> float:
    return 100.0 * line.data_avg / line.time_avg if line.time_avg > 0 else 0.0


def _bad(series: Series) -> Series:
    """Where a curve has no finite number, at the height of the last that it had."""
    x, y, last = [], [], next((value for value in series.y if value is not None), 0.0)
    for place, value in zip(series.x, series.y):
        if value is None:
            x.append(place)
            y.append(last)
        else:
            last = value
    return series._replace(role="bad", label=f"{series.label}, not finite", x=x, y=y)


def _says_nothing(panel: Panel) -> bool:
    """A loss scale that is 1 throughout: there is none."""
    return panel.key == "scale" and all(
        value == 1.0 for series in panel.series for value in series.y)


def _has_peaks(panel: Panel) -> bool:
    """Whether some values are so large that the others would lie on the axis."""
    values = sorted(value for series in panel.series for value in series.y if value is not None)
    return bool(values) and values[0] > 0 and values[-1] > PEAK * values[len(values) // 2]


def thinned(series: Series) -> Series:
    """No more than MOST_POINTS points: the least and the greatest of each stretch, in order."""
    count = len(series.x)
    if count <= MOST_POINTS:
        return series
    stretch = -(-2 * count // MOST_POINTS)
    places: List[int] = []
    for first in range(0, count, stretch):
        here = range(first, min(count, first + stretch))
        known = [place for place in here if series.y[place] is not None]
        if known:
            ends = min(known, key=series.y.__getitem__), max(known, key=series.y.__getitem__)
            places += sorted(set(ends))
        else:
            places.append(first)
    return series._replace(x=[series.x[place] for place in places],
                           y=[series.y[place] for place in places])
