"""The learning-rate schedules that a recipe can name: pure functions of time. ``imnet.recipe`` re-exports them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from imnet.fields import COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Range, about, check_ranges


@dataclass(frozen=True, kw_only=True)
class _Schedule:
    """A schedule: ``factor(t, epochs)`` is the multiple of the base learning rate after ``t`` (fractional) epochs."""

    warmup_epochs: float = field(
        default=0.0, metadata=about("epochs of linear warmup from ~0, multiplied with the schedule", NOT_NEGATIVE)
    )

    def __post_init__(self) -> None:
        check_ranges(self, "schedule.")

    def factor(self, t: float, epochs: float) -> float:
        warm = min(1.0, (t + 1e-9) / self.warmup_epochs) if self.warmup_epochs > 0 else 1.0
        return warm * self._shape(t, epochs)

    def _shape(self, t: float, epochs: float) -> float:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Constant(_Schedule):
    kind: ClassVar[str] = "constant"

    def _shape(self, t: float, epochs: float) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Step(_Schedule):
    """Multiplies the learning rate by ``gamma`` every ``every_epochs`` epochs."""

    kind: ClassVar[str] = "step"
    every_epochs: int = field(default=30, metadata=about("epochs between two drops", COUNT))
    gamma: float = field(default=0.1, metadata=about("factor of each drop", POSITIVE))

    def _shape(self, t: float, epochs: float) -> float:
        return self.gamma ** int(t // self.every_epochs)


@dataclass(frozen=True, kw_only=True)
class MultiStep(_Schedule):
    """Multiplies the learning rate by ``gamma`` at each milestone."""

    kind: ClassVar[str] = "multistep"
    milestones_epochs: tuple[int, ...] = field(default=(60, 120, 160), metadata=about("epochs of the drops", COUNT))
    gamma: float = field(default=0.2, metadata=about("factor of each drop", POSITIVE))

    def _shape(self, t: float, epochs: float) -> float:
        return self.gamma ** sum(t >= m for m in self.milestones_epochs)


@dataclass(frozen=True, kw_only=True)
class Cosine(_Schedule):
    """Half a cosine from 1 to ``final_factor``, updated every step or every epoch (``per``)."""

    kind: ClassVar[str] = "cosine"
    final_factor: float = field(default=0.0, metadata=about("share of the learning rate at the end", SHARE))
    per: Literal["step", "epoch"] = field(default="step", metadata=about("how often the learning rate changes"))

    def _shape(self, t: float, epochs: float) -> float:
        t = math.floor(t) if self.per == "epoch" else t
        return self.final_factor + (1 - self.final_factor) * 0.5 * (1 + math.cos(math.pi * min(1.0, t / epochs)))


@dataclass(frozen=True, kw_only=True)
class OneCycle(_Schedule):
    """A triangle: from ``start_factor`` up to 1 at ``peak_fraction`` of the run, then down to ``final_factor``."""

    kind: ClassVar[str] = "onecycle"
    peak_fraction: float = field(
        default=0.25, metadata=about("position of the peak, as a share of the run", Range(above=0, below=1))
    )
    start_factor: float = field(default=0.1, metadata=about("share of the learning rate at the start", SHARE))
    final_factor: float = field(default=0.0, metadata=about("share of the learning rate at the end", SHARE))

    def _shape(self, t: float, epochs: float) -> float:
        x = min(1.0, t / epochs)
        if x < self.peak_fraction:
            return self.start_factor + (1 - self.start_factor) * x / self.peak_fraction
        return self.final_factor + (1 - self.final_factor) * (1 - x) / (1 - self.peak_fraction)


Schedule = Constant | Step | MultiStep | Cosine | OneCycle
