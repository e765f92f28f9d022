"""Which class was taken for which: counts, exact over all ranks, as CSV and as a picture.

The counts stay where the model runs, and are summed over the ranks as integers, once, at the end.
"""
import csv
import io
from pathlib import Path
from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch

from mobilenetv3 import dist, drawing, metrics
from mobilenetv3.files import PathLike, write_atomically
from mobilenetv3.text import cell

FILES = ("per_class.csv", "confusion.csv", "confusion.png")
MANY = 40
"""Classes above which a picture names only some of them."""


class Confusion:
    """Counts (true class, predicted class) while a validation set is scored.

    The class predicted is the first of those that `metrics.batch_row` counts, also where two logits
    are equal, so the sum of the diagonal is the number of images that Top-1 counts as correct.

    Args:
        classes: of the data set: rows.
        outputs: of the model, no fewer: columns.
    """

    def __init__(self, classes: int, outputs: int, device: torch.device):
        assert classes <= outputs
        self.shape = classes, outputs
        self._counts = torch.zeros(classes * outputs, dtype=torch.int64, device=device)

    def __call__(self, output: torch.Tensor, targets: torch.Tensor) -> None:
        """Count a batch: logits (N, outputs) and class indices (N,)."""
        cells = targets * self.shape[1] + metrics.ranked(output)[:, 0]
        self._counts.index_add_(0, cells, torch.ones_like(cells))

    def total(self) -> torch.Tensor:
        """The counts of all ranks, int64 (classes, outputs), on the CPU. Every rank must call."""
        return dist.all_reduce_sum(self._counts.clone()).cpu().view(self.shape)


class ClassScore(NamedTuple):
    """How one class was recognised."""

    index: int
    name: str
    images: int
    correct: int
    taken_for: Optional[int]
    """The other class that most of its images were taken for; None where none was."""
    taken: int
    """How many."""

    @property
    def acc1(self) -> Optional[float]:
        """Top-1, per cent; None where there were no images."""
        return 100.0 * self.correct / self.images if self.images else None


def per_class(counts: torch.Tensor, names: Sequence[str]) -> List[ClassScore]:
    """One score a class, in order, from `Confusion.total`."""
    scores = []
    for index, row in enumerate(counts.tolist()):
        others = list(row)
        correct, others[index] = others[index], -1
        most = max(range(len(others)), key=others.__getitem__)
        is_any = others[most] > 0
        scores.append(ClassScore(index, names[index], sum(row), correct,
                                 most if is_any else None, others[most] if is_any else 0))
    return scores


def names_of(names: Sequence[str], outputs: int) -> List[str]:
    """A name for each output; those beyond the data set's classes are called by their number."""
    return [*names, *(f"class {index}" for index in range(len(names), outputs))]


def write(folder: Path, counts: torch.Tensor, names: Sequence[str], title: str) -> str:
    """Write FILES into a folder, which is there.

    Returns:
        Why the picture was left out; "" if it was not.
    """
    scores_file, counts_file, picture = FILES
    write_scores(folder / scores_file, per_class(counts, names), names)
    write_counts(folder / counts_file, counts, names)
    fault = drawing.fault()
    if not fault:
        draw(folder / picture, counts, names, title)
    return fault


def write_scores(path: PathLike, scores: Sequence[ClassScore], names: Sequence[str]) -> None:
    """One line a class: number, name, images, correct, Top-1 in per cent, most frequent mistake.

    A name that a spreadsheet would compute stands behind an apostrophe.
    """
    rows = [("index", "class", "images", "correct", "top1", "taken_for", "times")]
    for score in scores:
        top1 = "" if score.acc1 is None else f"{score.acc1:.3f}"
        taken_for = "" if score.taken_for is None else names[score.taken_for]
        rows.append((score.index, score.name, score.images, score.correct, top1, taken_for,
                     score.taken))
    _write_csv(path, rows)


def write_counts(path: PathLike, counts: torch.Tensor, names: Sequence[str]) -> None:
    """The whole table: a line a true class, a column a predicted one."""
    rows = [("true / predicted", *names)]
    rows += [(names[index], *row) for index, row in enumerate(counts.tolist())]
    _write_csv(path, rows)


def _write_csv(path: PathLike, rows: Sequence[Tuple]) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [cell(item) if isinstance(item, str) else item for item in row] for row in rows)
    content = text.getvalue().encode("utf-8", "surrogateescape")
    write_atomically(path, lambda file: file.write(content))


def draw(path: PathLike, counts: torch.Tensor, names: Sequence[str], title: str) -> None:
    """Draw the table as a PNG: each row's counts as shares of its images, 0 to 1.

    Of many classes a cell is a dot: it has two pixels at least, and the colours rise with the
    square root of the share, so that mistakes can be seen beside the diagonal.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    rows, columns = counts.shape
    shares = counts.double() / counts.sum(1, keepdim=True).clamp(min=1)
    is_many = rows > MANY
    side = max(10.0, 0.026 * rows) if is_many else max(5.0, 0.35 * rows + 3.0)  # inches
    figure = Figure(figsize=(side * 1.15, side), dpi=100)
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(1, 1, 1)
    image = axes.imshow(shares.numpy(), norm=PowerNorm(0.5 if is_many else 1.0, 0.0, 1.0),
                        cmap="Blues", interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04, label="share of the true class")
    axes.set(xlabel="predicted", ylabel="true", title=title)
    if not is_many:
        short = [_plain(name) for name in names]
        axes.set_xticks(range(columns))
        axes.set_xticklabels(short, rotation=90, fontsize=8)
        axes.set_yticks(range(rows))
        axes.set_yticklabels(short[:rows], fontsize=8)
    if rows <= MANY // 2:
        _write_numbers(axes, counts, shares)
    figure.tight_layout()
    write_atomically(path, lambda file: figure.savefig(file, format="png"))


def _write_numbers(axes, counts: torch.Tensor, shares: torch.Tensor) -> None:
    for row, column in torch.nonzero(counts).tolist():
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(int(counts[row, column])), ha="center", va="center",
                  color=colour, fontsize=7)


def _plain(name: str) -> str:
    """A name short enough for an axis, without what matplotlib takes for mathematics."""
    name = "".join(c if c.isprintable() else " " for c in name).replace("$", r"\$")
    return name if len(name) <= 24 else name[:23] + "..."
