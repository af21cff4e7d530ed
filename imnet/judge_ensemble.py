"""imnet-eval on an ensemble: fuses its bands in every way, and compares the results with their cost.

Choices (the ranking of the bands, p, how many bands, fitted weights) are made on images that were held out of the
training set, if there are any. The document's way, which chooses on the very images of the evaluation, is shown too.
"""

from __future__ import annotations

import math
from argparse import Namespace
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from imnet import device, fusion, models, runfolder
from imnet.console import say_all
from imnet.errors import DataError, UsageError, quoted
from imnet.fields import flag
from imnet.files import write_json
from imnet.fused import CHOSEN, HELD_OUT, Ensemble
from imnet.fusion import Score
from imnet.listing import columns
from imnet.models.count import flops
from imnet.report.markup import rate
from imnet.report.measured import FUSION
from imnet.report.read import load
from imnet.run import Run

JUDGED = "the test images"


@dataclass(frozen=True)
class Rule:
    """A way to weight the bands, and its scores."""

    name: str
    chosen_on: str
    """The images that the weights were chosen on; empty if there was nothing to choose."""
    weights: dict[int, float]
    """Weights by band, the largest first; without the bands that are left out."""
    test: Score
    val: Score | None


def rules(test: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, bands: Sequence[int], p: float) -> list[Rule]:
    """Score each band alone and every way to fuse them; ``test`` and ``val`` are logits (K, N, C) and labels (N,)."""
    num = len(bands)
    equal = torch.full((num,), 1 / num, dtype=torch.float64)
    ways = [(f"band {band}", "", torch.eye(num, dtype=torch.float64)[k]) for k, band in enumerate(bands)]
    ways.append(("average", "", equal))
    if val is not None:
        chosen = fusion.choose(*val)
        ways += [
            (f"geometric, p = {p:g}", HELD_OUT, fusion.Choice(fusion.rank(*val), p).weights(num)),
            (f"{CHOSEN}, p = {chosen.p:g}", HELD_OUT, chosen.weights(num)),
            ("fitted", HELD_OUT, fusion.fit(*val)),
        ]
    theirs = fusion.choose(*test)
    ways += [
        (f"the document's way: geometric, p = {p:g}", JUDGED, fusion.Choice(fusion.rank(*test), p).weights(num)),
        (f"the document's way: chosen, p = {theirs.p:g}", JUDGED, theirs.weights(num)),
    ]
    return [_rule(name, where, weights, bands, test, val) for name, where, weights in ways]


def _rule(
    name: str,
    chosen_on: str,
    weights: Tensor,
    bands: Sequence[int],
    test: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor] | None,
) -> Rule:
    held = {band: weight for band, weight in zip(bands, weights.tolist(), strict=True) if weight}
    ordered = dict(sorted(held.items(), key=lambda row: -row[1]))

    def scored(logits: Tensor, labels: Tensor) -> Score:
        return fusion.score(fusion.fuse(logits, weights), labels)

    return Rule(name, chosen_on, ordered, scored(*test), None if val is None else scored(*val))


@dataclass(frozen=True)
class Cost:
    """The cost of one or several networks, as measured in their training; NaN for figures that were not measured."""

    name: str
    parameters: int
    forward_flops: int
    """FLOPs of a forward pass of one image."""
    images_per_s: float
    """Images per second in training; for several networks, as if they shared one device in turn."""
    device_hours: float
    """Time of all ranks together, evaluations included."""
    top1: float

    @classmethod
    def of(cls, name: str, run: Run, top1: float | None = None) -> Cost:
        """The cost of one run; ``top1`` defaults to that of the run's last evaluation."""
        r, info = run.recipe, run.info
        net = models.build(r.model, r.num_outputs, r.data.channels, **r.model_options)
        forward = flops(net, (r.data.channels, r.input_px, r.input_px))
        log = load(run.path)
        hours = log.total_seconds * info["num_ranks"] / 3600
        if top1 is None:
            top1 = log.last_top1
        return cls(name, info["parameters"], forward, log.images_per_s, hours, top1)

    @classmethod
    def together(cls, name: str, parts: Sequence[Cost], top1: float) -> Cost:
        speed = 1 / sum(1 / part.images_per_s for part in parts)
        sums = (sum(part.parameters for part in parts), sum(part.forward_flops for part in parts))
        return cls(name, *sums, speed, sum(part.device_hours for part in parts), top1)


def costs(ensemble: Ensemble, found: Sequence[Rule], baseline: Run | None) -> list[Cost]:
    """Costs of each band, of the baseline if there is one, and of the ensembles of all and of the chosen bands."""
    alone = {rule.name: rule.test.top1 for rule in found}
    each = {band: Cost.of(f"band {band}", run, alone[f"band {band}"]) for band, run in ensemble.bands.items()}
    rows = [*each.values()]
    if baseline is not None:
        rows.append(Cost.of(f"baseline {baseline.recipe.name}", baseline))
    for rule in found:
        if rule.name == "average" or "chosen" in rule.name:
            rows.append(Cost.together(rule.name, [each[band] for band in rule.weights], rule.test.top1))
    return rows


def run(values: Namespace) -> int:
    """imnet-eval on an ensemble: print the two tables and write them to fusion.json."""
    _refuse(values)
    ensemble = Ensemble(values.run)
    baseline = None if values.baseline is None else _baseline(values.baseline, ensemble)
    dataset, options = ensemble.first.dataset(values.data_dir, values.device, values.precision)
    how, bands = (values.checkpoint, values.batch_size), ensemble.weights_ids(values.checkpoint)
    test = ensemble.logits(dataset, options, "test", *how)
    val = None if dataset.val is None else ensemble.logits(dataset, options, "val", *how)
    found = rules(test, val, tuple(ensemble.bands), fusion.DEFAULT_P if values.p is None else values.p)
    table = costs(ensemble, found, baseline)
    about = {"checkpoint": values.checkpoint, "precision": device.resolve(options).precision}
    rows = {"rules": [asdict(rule) for rule in found], "costs": [asdict(cost) for cost in table]}

    def lines() -> Iterator[str]:
        yield "\n".join([*_head(ensemble, test, val, baseline), "", *_scores(found), "", *_costs(table)])
        write_json(ensemble.path / FUSION, {"about": about, "bands": bands, **rows})  # NaN (not measured) becomes null
        yield f"written    {ensemble.path / FUSION}"

    say_all(lines())
    return 0


def _baseline(path: Path, ensemble: Ensemble) -> Run:
    """Open the baseline's run. Raises DataError if it was evaluated on other images than the bands."""
    run = Run(path)
    ours, theirs = (
        " ".join(f"{r.data.get(key)}" for key in ("name", "test_images", "judged_on")) for r in (ensemble.first, run)
    )
    if ours != theirs:
        what = f"the baseline was judged on other images ({theirs}) than the ensemble ({ours})"
        raise DataError(what, file=path, hint="give a run of the same data set")
    return run


def _refuse(values: Namespace) -> None:
    """Raise UsageError for options that only apply to a single network."""
    for name in ("data", "split", "out", "ten_crop", "no_flip"):
        if getattr(values, name):
            hint = f"give one band: imnet-eval {quoted(runfolder.band_folder(values.run, 0))}"
            raise UsageError(f"got --{flag(name)} for an ensemble, whose logits are fused on its own images", hint=hint)
    if values.p is not None and not 0 < values.p < 1:
        raise UsageError(f"got --p {values.p:g}; allowed: between 0 and 1", hint="leave it out: 0.3")


def _head(
    ensemble: Ensemble, test: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor] | None, baseline: Run | None
) -> list[str]:  # fmt: skip
    recipe = ensemble.recipe
    lines = [
        f"ensemble   {recipe.name}: {len(ensemble.bands)} of {recipe.augment.num_bands} bands, their logits summed",
        f"images     {len(test[1]):,} of the {ensemble.first.data.get('judged_on', 'test set')}",
    ]
    if val is not None:
        lines.append(f"held out   {len(val[1]):,} training images rank the bands and choose")
    else:
        what = "ranking, p and bands can only be chosen on the images that also judge: too good to be compared"
        lines.append(f"note       no training image was held out (--data.val_images N), so {what}")
    if ensemble.unfinished:
        lines.append(f"note       not at the end of their training: bands {' '.join(map(str, ensemble.unfinished))}")
    if baseline is not None and baseline.info["status"] != "complete":
        lines.append(f"note       not at the end of its training: the baseline, {baseline.path}")
    return lines


def _scores(found: Sequence[Rule]) -> list[str]:
    head = ("", "top-1", "top-5", "loss", "held-out top-1", "chosen on", "bands and their weights")
    rows = [
        (
            rule.name,
            f"{rule.test.top1:.2%}",
            f"{rule.test.top5:.2%}",
            f"{rule.test.loss:.4f}",
            "-" if rule.val is None else f"{rule.val.top1:.2%}",
            rule.chosen_on or "-",
            "" if len(rule.weights) == 1 and not rule.chosen_on else _told(rule.weights),
        )
        for rule in found
    ]
    return columns([head, *rows])


def _told(weights: dict[int, float], most: int = 6) -> str:
    told = [f"{band}: {weight:.3f}" for band, weight in weights.items()]
    return "  ".join(told[:most]) + (f"  and {len(told) - most} more" if len(told) > most else "")


def _costs(table: Sequence[Cost]) -> list[str]:
    head = ("cost", "parameters", "GFLOP an image", "images/s", "device hours", "top-1")
    rows = [
        (
            cost.name,
            f"{cost.parameters:,}",
            f"{cost.forward_flops / 1e9:.3f}",
            rate(cost.images_per_s),
            f"{cost.device_hours:.4g}",
            f"{cost.top1:.2%}" if math.isfinite(cost.top1) else "-",
        )
        for cost in table
    ]
    return columns([head, *rows])
