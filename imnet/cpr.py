"""AdamCPR as a part of a recipe; what it does is in ``imnet.adamcpr``. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from imnet.fields import COUNT, NOT_NEGATIVE, POSITIVE, Range, about, check_ranges


@dataclass(frozen=True, kw_only=True)
class AdamCPR:
    """Adam whose weights have a largest norm each instead of a decay (Franke et al. 2023, arXiv 2311.09058).

    The bound of a weight is its squared norm after ``warm_start_steps`` steps, which the paper calls Kappa-WS.
    """

    kind: ClassVar[str] = "adamcpr"
    weight_decay: ClassVar[float] = 1.0
    """Of the parameter groups: 1 marks those that are bounded, and no decay is done."""
    lr: float = field(metadata=about("learning rate, which the schedule multiplies", POSITIVE))
    beta1: float = field(default=0.9, metadata=about("decay of the mean gradient", Range(low=0, below=1)))
    beta2: float = field(default=0.999, metadata=about("decay of the mean squared gradient", Range(low=0, below=1)))
    eps: float = field(default=1e-8, metadata=about("added to the root of that", POSITIVE))
    warm_start_steps: int = field(
        default=1000, metadata=about("optimiser steps after which the norms become the bounds", COUNT)
    )
    kappa_update: float = field(
        default=1.0, metadata=about("how fast the pull grows on a weight beyond its bound", NOT_NEGATIVE)
    )
    decay_norms: bool = field(default=False, metadata=about("bounds for normalisation parameters and biases too"))

    def __post_init__(self) -> None:
        check_ranges(self, "optim.")
