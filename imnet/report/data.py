"""The data of one run for the report, and the figures derived from it. Does not import torch.

The files of a run folder that the report reads:

- ``config.yaml``: a mapping, the resolved recipe and run settings.
- ``run.json``: versions, device, precision, ... and ``recipe`` (``name``, ``model``, ``published``, ``epochs``, ...).
- ``metrics.jsonl``: one object per line. ``kind`` "train" has step, epoch, loss, lr, images_per_s, seconds, top1 (of
  the augmented training images, measured while the weights change); ``kind`` "eval" has step, epoch, loss, top1, top5
  (fractions), seconds; ``kind`` "val" has the same for the images held out of train. ``seconds`` is the time of the run
  so far, evaluations included.
- ``evaluation.json``, ``worst.png``: after an evaluation; ``evaluation-*.json``: for other data or checkpoints.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, median
from typing import Any

from imnet.recipe_json import from_dict, to_dict
from imnet.recipes import RECIPES
from imnet.report.lines import NAN, EvalLine, Evaluation, TrainLine, Worst
from imnet.report.markup import percent, points

__all__ = ["NAN", "EvalLine", "Evaluation", "RunLog", "TrainLine", "Worst"]


@dataclass(frozen=True, kw_only=True)
class RunLog:
    """Everything that the report shows about one run. ``notes`` are sentences about absent or ignored data."""

    path: Path
    config: Mapping[str, Any]
    info: Mapping[str, Any]
    train: tuple[TrainLine, ...]
    evals: tuple[EvalLine, ...]
    evaluation: Evaluation | None
    notes: tuple[str, ...]
    others: tuple[Evaluation, ...] = ()
    """Evaluations on other data, of other checkpoints or in other precisions."""
    vals: tuple[EvalLine, ...] = ()
    """Evaluations on the images held out of train, if there are any."""

    @property
    def recipe(self) -> Mapping[str, Any]:
        return self.info["recipe"]

    @property
    def name(self) -> str:
        return str(self.recipe.get("name", self.path.name))

    @property
    def seed(self) -> Any:
        places = (self.config, self.info, self.recipe)
        return next((p["seed"] for p in places if p.get("seed") is not None), None)

    @property
    def epochs(self) -> float:
        """Planned epochs; NaN if the recipe does not have them."""
        schedule = self.recipe.get("schedule")
        nested = schedule.get("epochs") if isinstance(schedule, Mapping) else None
        value = self.recipe.get("epochs", nested)
        return float(value) if isinstance(value, int | float) else NAN

    @property
    def reached_epoch(self) -> float:
        return max((line.epoch for line in (*self.train, *self.evals)), default=0.0)

    @property
    def finished(self) -> bool:
        """Whether the last planned epoch was evaluated (or, if no plan is known, whether evaluation.json exists)."""
        if math.isnan(self.epochs):
            return self.evaluation is not None
        return bool(self.evals) and self.evals[-1].epoch >= (self.stopped or self.epochs) - 1e-6

    @property
    def stopped(self) -> int | None:
        """The epoch at which --patience ended the run, if it did."""
        return self.info.get("stopped")

    @property
    def last(self) -> EvalLine | None:
        return self.evals[-1] if self.evals else None

    @property
    def best(self) -> EvalLine | None:
        """The evaluation at the epoch with the highest top-1 (the earliest of equals) on the validation images, or on
        the evaluated images if nothing was held out; since the last change of the data, if there was one."""
        since = (self.info.get("best") or {}).get("since") or 0
        finite = [line for line in self.vals or self.evals if math.isfinite(line.top1) and line.epoch > since]
        chosen = max(finite, key=lambda line: line.top1, default=None)
        return next((line for line in self.evals if chosen is not None and line.epoch == chosen.epoch), None)

    @property
    def last_top1(self) -> float:
        return self.last.top1 if self.last else NAN

    @property
    def best_top1(self) -> float:
        return self.best.top1 if self.best else NAN

    @property
    def chosen_on(self) -> str:
        """The images on which the best epoch is selected, in words."""
        return "validation images" if self.vals else self.judged_on

    @property
    def best_val(self) -> EvalLine | None:
        """The evaluation on the held-out images at the best epoch, if there is one."""
        return next((line for line in self.vals if self.best is not None and line.epoch == self.best.epoch), None)

    @property
    def train_top1(self) -> list[tuple[float, float]]:
        """(epoch, mean training accuracy over the lines logged in it) for epochs in which it was logged."""
        return _by_epoch([(line.epoch, line.top1) for line in self.train])

    @property
    def train_loss(self) -> list[tuple[float, float]]:
        """(epoch, mean training loss over the lines logged in it)."""
        return _by_epoch([(line.epoch, line.loss) for line in self.train])

    @property
    def judged_on(self) -> str:
        """The images that the evaluations used, in words: test set, validation set or held-out images."""
        data = self.info.get("data")
        return str((data if isinstance(data, Mapping) else {}).get("judged_on", "test set"))

    @property
    def part(self) -> str:
        """``judged_on`` in one word, for titles and legends: test, validation or held-out."""
        return self.judged_on.split()[0]

    @property
    def raw_top1(self) -> float:
        """Top-1 of the raw weights at the last epoch if the run evaluates their average (EMA), else NaN."""
        compared = self.info.get("last_epoch")
        return as_figure(compared.get("raw") if isinstance(compared, Mapping) else None)

    @property
    def final_top1(self) -> float:
        """Top-1 on the test set beside a validation set; NaN if there is none, or if the run has not ended."""
        return as_figure(self.info.get("final"))

    @property
    def final_told(self) -> str:
        """``final_top1`` and how it was measured, in words; empty if it is NaN."""
        final = self.info.get("final")
        if math.isnan(self.final_top1) or not isinstance(final, Mapping):
            return ""
        often, epoch = final.get("judged", 1), final.get("epoch")
        once = often == 1 and epoch == (self.stopped or self.recipe.get("epochs"))
        when = "judged once at the end" if once else f"judged {often} time(s), last at epoch {epoch}"
        return f"{percent(self.final_top1)} ({when}, {final.get('num_images', 0):,} images)"

    @property
    def published(self) -> Mapping[str, Any]:
        return self.recipe.get("published") or {}

    @property
    def band(self) -> int | None:
        """The spectral band that the network was trained on, or None for whole images."""
        augment = self.recipe.get("augment") or {}
        return augment.get("spectral_band", 0) if augment.get("spectral_r") else None

    @property
    def published_top1(self) -> float:
        """The published top-1 as a fraction, for this run's band if it has one; NaN if nothing was published."""
        bands = self.published.get("band_top1") or ()
        top1 = self.published.get("top1")
        if self.band:
            top1 = bands[self.band] if self.band < len(bands) else None
        return NAN if top1 is None else float(top1)

    @cached_property
    def changed(self) -> str:
        """The differences from what was published, as ``changed: model, data; not comparable``; empty if none."""
        parts = (changed_parts(self.recipe) if self.published else ()) + self.changed_on_the_way
        return f"changed: {', '.join(parts)}; not comparable" if parts and self.published else ""

    @property
    def changed_on_the_way(self) -> tuple[str, ...]:
        """The differences from what was published that are not values of the recipe."""
        theirs = (self.recipe.get("ran") or {}).get("precision", "auto")
        parts = ("precision",) if self.config.get("precision", "auto") not in ("auto", theirs) else ()
        return parts + (("the configuration on the way",) if self.info.get("before") else ())

    def against_published(self, top1: float) -> str:
        """``top1`` (a fraction) minus the published one, or the reason why there is no such number."""
        if math.isnan(self.published_top1):
            return "nothing published"
        return self.changed or points(top1 - self.published_top1)

    @property
    def images_per_s(self) -> float:
        """Median images/s over the logged intervals."""
        rates = [line.images_per_s for line in self.train if math.isfinite(line.images_per_s)]
        return median(rates) if rates else NAN

    @property
    def clock(self) -> list[tuple[float, float]]:
        """(epoch, seconds so far, evaluations included); if the logged clock restarts, the times are added up.

        Sorted by epochs and not by steps, which differ in size if a run was resumed with another batch size.
        """
        points, before, previous = [], 0.0, 0.0
        # Sorting is stable, so that at the same epoch the train line stays before the evaluation.
        for line in sorted((*self.train, *self.evals), key=lambda line: line.epoch):
            if not math.isfinite(line.seconds):
                continue
            if line.seconds < previous:
                before += previous
            previous = line.seconds
            points.append((line.epoch, before + previous))
        return points

    @property
    def total_seconds(self) -> float:
        return self.clock[-1][1] if self.clock else NAN

    @property
    def hardware(self) -> str:
        """The hardware of the run: the GPUs that it used, or the processor and its cores."""
        machine, ranks = self.info.get("hardware"), self.info.get("num_ranks", 1)
        device = str(self.info.get("device") or "device not recorded")
        if not isinstance(machine, Mapping):
            return device
        return hardware_of(machine, device, ranks)


def hardware_of(machine: Mapping[str, Any], device: str, ranks: int) -> str:
    """Words for what ``ranks`` on this kind of ``device`` used of a machine."""
    gpus = machine.get("gpus") or []
    if device.startswith("cuda") and gpus:
        used = Counter(gpus[:ranks])
        return ", ".join(f"{ranks if len(used) == 1 else n} x {name}" for name, n in used.items())
    processes = "" if ranks == 1 else f", {ranks} processes"
    return f"{machine.get('cpu', device)}, {machine.get('cores', '?')} cores{processes}"


def as_figure(figures: Any, name: str = "top1") -> float:
    """The figure ``name`` from a mapping of run.json; NaN if it is absent."""
    value = figures.get(name) if isinstance(figures, Mapping) else None
    return float(value) if isinstance(value, int | float) else NAN


def _by_epoch(values: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """(end of the epoch, mean of its finite values) for each epoch."""
    epochs: dict[int, list[float]] = {}
    for epoch, value in values:
        if math.isfinite(value):
            # The line of an epoch's last step has the epoch's end, perhaps rounded.
            epochs.setdefault(math.ceil(epoch - 1e-3), []).append(value)
    return [(float(epoch), fmean(found)) for epoch, found in sorted(epochs.items())]


def changed_parts(recipe: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of ``recipe`` that differ from the recipe in RECIPES to which its published figure belongs.

    That is the recipe of the same name, or if it was renamed, the most similar one with the same figure. Seed and
    spectral band do not count as differences.
    """
    book = [to_dict(r) for r in RECIPES.values() if r.name == recipe.get("name")]
    book = book or [to_dict(r) for r in RECIPES.values() if _figure(to_dict(r)) == _figure(recipe)]
    return min((differing(recipe, r) for r in book), key=len, default=())


def differing(recipe: Mapping[str, Any], other: Mapping[str, Any]) -> tuple[str, ...]:
    """Parts of ``recipe`` that differ from ``other``, a recipe in RECIPES."""
    mine, theirs = _comparable(recipe), _comparable(other)
    held_out = (other.get("ran") or {}).get("val_images")
    if held_out and (mine.get("data") or {}).get("val_images") == held_out:
        whole = {key: value for key, value in theirs["data"].items() if key.startswith("val_")}
        mine["data"] = mine["data"] | whole
    return tuple(key for key, value in theirs.items() if key in mine and mine[key] != value)


def _figure(recipe: Mapping[str, Any]) -> Any:
    """The published figures, without those that were added to recipes later."""
    names = ("top1", "top5", "hours", "hardware", "note")
    return [(recipe.get("published") or {}).get(name) for name in names]


def _comparable(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that determine a result, in JSON's form, with every field that a recipe has today."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        recipe = json.loads(json.dumps(to_dict(from_dict(recipe))))
    kept = {key: value for key, value in recipe.items() if key not in ("name", "source", "published", "ran", "seed")}
    if isinstance(kept.get("augment"), Mapping):
        kept["augment"] = {key: value for key, value in kept["augment"].items() if key != "spectral_band"}
    return kept
