"""The state of a run: ``Setup`` is fixed before the first step, ``RunState`` changes with every step."""

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
class Sources:
    """The data set of a run, its order, its pipelines, and the reason for the kind of pipeline."""

    dataset: DataSet
    order: Order
    train: Pipeline
    test: Pipeline
    val: Pipeline | None
    """The images held out of the training set, if any."""
    pipeline_reason: str


@dataclass(frozen=True, kw_only=True)
class Setup(Sources):
    """Everything about one rank's part of a run that is decided before the first step."""

    recipe: Recipe
    options: RunOptions
    place: Place
    world: World
    threads: int
    execution: Execution
    parameters: int
    has_batch_norm: bool
    weights: dict[str, Any] | None = None
    """On rank 0: the source of the initial weights and which of them fitted; None if they were initialised randomly."""
    before: tuple[dict[str, Any], ...] = ()
    """On rank 0: the configurations that the folder had before (--allow-change), oldest first."""

    @property
    def num_steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.recipe.epochs * self.order.steps_per_epoch

    @property
    def judged_on(self) -> str:
        """A name for ``dataset.test``: a set that chooses the best epoch or settings is no longer called a test set."""
        if self.dataset.final is not None:
            return "validation set"
        return "held-out images" if self.recipe.data.hold_out else "test set"

    @property
    def chosen_on(self) -> str:
        """A name for the images that the best epoch is selected on."""
        return "validation images" if self.val is not None else self.judged_on

    @property
    def config_hash(self) -> str:
        return config_hash(self.recipe, self.place.precision)


@dataclass(kw_only=True)
class RunState:
    """The progress of a run: what a checkpoint saves beside weights and optimiser."""

    sums: Tensor
    """(2,) on the device: sum of losses and number of correct predictions over this rank's images since the last log
    line; the second is NaN if labels are mixed. In fp64, where the order of these sums cannot be seen: a checkpoint has
    those of all ranks, so that a resumed run adds in another order."""
    loss_images: int = 0
    step: int = 0
    seconds: float = 0.0
    warm_up_s: float = 0.0
    skipped_steps: int = 0
    bad_images: int = 0
    metrics_bytes: int = 0
    """Length of metrics.jsonl at the checkpoint; a resumed run removes the lines after it."""
    judged: tuple[int, float | None] = (-1, None)
    """Step and top-1 of the newest evaluation."""
    last_epoch: dict[str, Any] | None = None
    """On rank 0, at the end of a run with EMA: figures of the averaged and of the raw weights."""
    final: dict[str, Any] | None = None
    """On rank 0, if there is a validation set: figures of the test set, their epoch, and how often it was evaluated."""
    stopped: int | None = None
    """The epoch at which --patience ended the run."""
    best: dict[str, Any] = field(default_factory=lambda: dict(NO_BEST))
    """Best top-1 and its epoch, on the images held out of the training set if there are any, else on the test set."""
