"""What a run is while it goes on: what does not change, and how far it has come."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from imnet.data import DataSet
from imnet.data.order import Order
from imnet.data.pipelines import Pipeline
from imnet.defaults import Execution
from imnet.device import Place
from imnet.launch import World
from imnet.recipe import Recipe
from imnet.recipe_json import config_hash
from imnet.run_options import RunOptions

NO_BEST = {"top1": 0.0, "epoch": 0}


@dataclass(frozen=True, kw_only=True)
class Setup:
    """One rank's share of a run, decided before the first step."""

    recipe: Recipe
    options: RunOptions
    place: Place
    world: World
    threads: int
    dataset: DataSet
    order: Order
    train_data: Pipeline
    test_data: Pipeline
    val_data: Pipeline | None
    """Of the images held out of train."""
    pipeline_reason: str
    execution: Execution
    parameters: int
    has_batch_norm: bool
    weights: dict[str, Any] | None = None
    """Where the first weights came from and what fitted, at rank 0; None where they were drawn."""
    before: tuple[dict[str, Any], ...] = ()
    """The configurations that the folder had earlier (--allow-change), oldest first; at rank 0."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * self.order.steps_per_epoch

    @property
    def judged_on(self) -> str:
        """What ``dataset.test`` is, in words: a set that chooses (the best epoch, settings) is no test set any more."""
        if self.dataset.final is not None:
            return "validation set"
        return "held-out images" if self.recipe.data.hold_out else "test set"

    @property
    def chosen_on(self) -> str:
        """What the best epoch is selected on."""
        return "validation images" if self.val_data is not None else self.judged_on

    @property
    def config_hash(self) -> str:
        return config_hash(self.recipe, self.place.precision)


@dataclass(kw_only=True)
class RunState:
    """How far a run has come: what a checkpoint holds beside weights and optimiser."""

    sums: Tensor
    """(2,): the losses of this rank's images since the last line of the log, and how many of them were classified
    rightly, NaN where their labels are mixed; on the device."""
    loss_images: int = 0
    step: int = 0
    seconds: float = 0.0
    warm_up_s: float = 0.0
    skipped_steps: int = 0
    bad_images: int = 0
    metrics_bytes: int = 0
    """Length of metrics.jsonl at the checkpoint; what was written after it is taken back."""
    judged: tuple[int, float | None] = (-1, None)
    """The newest evaluation: step and top-1."""
    last_epoch: dict[str, Any] | None = None
    """Figures of the averaged and of the raw weights at the end of a run that averages; at rank 0."""
    final: dict[str, Any] | None = None
    """Figures of the test set beside a validation set, at which epoch, and how often it was judged; at rank 0."""
    stopped: int | None = None
    """The epoch at which --patience ended the run."""
    best: dict[str, Any] = field(default_factory=lambda: dict(NO_BEST))
    """Of the images that were held out of train, where there are any, else of the test images."""
