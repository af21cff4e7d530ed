"""What a confusion matrix and the bins of a reliability diagram say. Plain Python: the report reads this too.

Precision, recall and F1 are the usual ones; balanced accuracy is the mean recall (Brodersen 2010); the expected
calibration error has equal-width bins of the predicted class's probability (Guo 2017, 15 of them).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BINS = 15
"""Bin b holds the probabilities in (b / 15, (b + 1) / 15]."""


class Confusion(NamedTuple):
    """A confusion matrix by the cells that count something, sorted: of 20,000 classes it has 400 million."""

    true: list[int]
    """The true class of a cell."""
    predicted: list[int]
    images: list[int]
    """How many there are, 1 or more."""

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """(true class, predicted class, images) of each."""
        return zip(self.true, self.predicted, self.images, strict=True)

    def rows(self, num_classes: int) -> list[list[int]]:
        """The whole matrix, [true class][predicted class]."""
        found = [[0] * num_classes for _ in range(num_classes)]
        for true, predicted, images in self.cells():
            found[true][predicted] = images
        return found


class ClassScore(NamedTuple):
    """Of one class, as fractions; None where nothing defines it: no image of the class, or none predicted as it."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """Images of the class."""


def per_class(confusion: Confusion, support: Sequence[int]) -> list[ClassScore]:
    """A score a class. ``support`` counts the images of each class; those of the matrix lack predictions beyond the
    classes (a head that is wider than the set)."""
    columns, hits = [0] * len(support), [0] * len(support)
    for true, predicted, images in confusion.cells():
        columns[predicted] += images
        if true == predicted:
            hits[true] += images
    return [
        ClassScore(_share(hit, column), _share(hit, row), _share(2 * hit, row + column), row)
        for hit, row, column in zip(hits, support, columns, strict=True)
    ]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def balanced_accuracy(scores: Sequence[ClassScore]) -> float:
    """Mean recall of the classes that have images; NaN where none has."""
    return _mean([score.recall for score in scores if score.recall is not None])


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Mean F1 of the classes that have images; NaN where none has."""
    return _mean([score.f1 for score in scores if score.support and score.f1 is not None])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error of ``bins``, each (images, sum of their probabilities, hits): the mean distance of
    accuracy and probability over the bins, weighted by their images; NaN without any image."""
    total = sum(count for count, _, _ in bins)
    return math.fsum(abs(hits - probability) for _, probability, hits in bins) / total if total else math.nan
