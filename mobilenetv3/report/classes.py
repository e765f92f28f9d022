"""How each class was recognised, from counts of (true class, predicted class)."""
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple


class ClassScore(NamedTuple):
    """One class of a validation set."""

    index: int
    images: int
    correct: int
    taken_for: Optional[int]
    """The other class that most of its images were taken for; None where none was."""
    taken: int

    @property
    def acc1(self) -> float:
        """Top-1, per cent."""
        return 100.0 * self.correct / self.images


def scores(counts: Sequence[Sequence[int]]) -> List[ClassScore]:
    """The classes that have images, the worst recognised first.

    Args:
        counts: rows of true class, predicted class, images.
    """
    rows: Dict[int, Dict[int, int]] = {}
    for true, predicted, images in counts:
        row = rows.setdefault(true, {})
        row[predicted] = row.get(predicted, 0) + images
    found = []
    for index, row in rows.items():
        others = sorted((-images, predicted) for predicted, images in row.items()
                        if predicted != index and images)
        most = others[0] if others else (0, None)
        if sum(row.values()):
            found.append(ClassScore(index, sum(row.values()), row.get(index, 0), most[1],
                                    -most[0]))
    return sorted(found, key=lambda score: (score.acc1, -score.images, score.index))


def mistakes(counts: Sequence[Sequence[int]]) -> List[Tuple[int, int, int]]:
    """(true class, predicted class, images) of those taken for others, the most frequent first."""
    wrong = [(true, predicted, images) for true, predicted, images in counts
             if true != predicted and images]
    return sorted(wrong, key=lambda row: (-row[2], row[0], row[1]))
