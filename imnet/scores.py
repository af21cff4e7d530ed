"""Scores from a confusion matrix and from the bins of a reliability diagram. Plain Python, since the report imports it.

Precision, recall and F1 are the usual ones; balanced accuracy is the mean recall (Brodersen 2010); the expected
calibration error uses 15 bins of equal width of the predicted class's probability (Guo 2017).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

BINS = 15
"""Bin b holds the probabilities in (b / 15, (b + 1) / 15]."""


class Confusion(NamedTuple):
    """A sparse confusion matrix: its cells that are not 0, sorted. (A full one of 20,000 classes has 400 million.)"""

    true: list[int]
    """The true class of each cell."""
    predicted: list[int]
    images: list[int]
    """The number of images in each cell, 1 or more."""

    def cells(self) -> Iterator[tuple[int, int, int]]:
        """(true class, predicted class, number of images) of each cell."""
        return zip(self.true, self.predicted, self.images, strict=True)

    def rows(self, num_classes: int) -> list[list[int]]:
        """The full matrix, [true class][predicted class]."""
        found = [[0] * num_classes for _ in range(num_classes)]
        for true, predicted, images in self.cells():
            found[true][predicted] = images
        return found


class ClassScore(NamedTuple):
    """The scores of one class as fractions. None if undefined: recall without images of the class, precision without
    predictions of it, F1 without either."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int
    """Number of images of the class."""


def per_class(confusion: Confusion, support: Sequence[int]) -> list[ClassScore]:
    """The score of every class. ``support`` is the number of images per class; it is not taken from the matrix, which
    lacks predictions beyond the classes (of a head with more outputs than the set has classes)."""
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
    """Mean recall of the classes that have images; NaN if none has."""
    return _mean([score.recall for score in scores if score.recall is not None])


def macro_f1(scores: Sequence[ClassScore]) -> float:
    """Mean F1 of the classes that have images; NaN if none has."""
    return _mean([score.f1 for score in scores if score.support and score.f1 is not None])


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values) if values else math.nan


def calibration_error(bins: Sequence[Sequence[float]]) -> float:
    """Expected calibration error of ``bins``, each (images, sum of their probabilities, hits): the mean over the bins,
    weighted by images, of the distance between accuracy and mean probability; NaN without images."""
    total = sum(count for count, _, _ in bins)
    return math.fsum(abs(hits - probability) for _, probability, hits in bins) / total if total else math.nan
