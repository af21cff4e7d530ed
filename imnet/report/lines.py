"""The parts of a RunLog: the lines of a run folder's metrics.jsonl and the values of its evaluation.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, NamedTuple

from imnet.scores import ClassScore, Confusion, per_class

NAN = math.nan


def mean(values: Sequence[float], missing: float = NAN) -> float:
    """The mean of the finite values; ``missing`` if there are none."""
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else missing


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation of the finite values; NaN if there are too few."""
    finite = [value for value in values if math.isfinite(value)]
    return mean(finite), stdev(finite) if len(finite) > 1 else NAN


class TrainLine(NamedTuple):
    """One logged training interval; a field that was not logged is NaN."""

    step: float
    epoch: float
    loss: float
    lr: float
    images_per_s: float
    seconds: float
    top1: float = NAN


class EvalLine(NamedTuple):
    """One evaluation during training; accuracies are fractions, a field that was not logged is NaN."""

    step: float
    epoch: float
    loss: float
    top1: float
    top5: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Worst:
    """One of the images with the largest loss; ``probability`` is that of the true class.

    ``predicted`` may be beyond the named classes, since a network can have more outputs than the data set has classes.
    """

    index: int
    label: int
    predicted: int
    loss: float
    probability: float


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The contents of evaluation.json."""

    num_images: int
    top1: float
    top5: float
    top1_flip: float
    loss: float
    confusion: Confusion
    class_names: tuple[str, ...]
    worst: tuple[Worst, ...]
    support: tuple[int, ...]
    """Number of images of each class."""
    bins: tuple[tuple[float, float, float], ...] = ()
    """Bins of the reliability diagram, see ``imnet.scores``; empty if an older version evaluated."""
    about: Mapping[str, Any] | None = None
    """Data, split, checkpoint and precision, unless this is the run's own evaluation."""

    @property
    def per_class(self) -> list[ClassScore]:
        return per_class(self.confusion, self.support)
