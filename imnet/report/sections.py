"""The parts of one run's page. Each function takes the run and returns a finished section."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import quantiles
from typing import Any

from imnet.report.data import NAN, EvalLine, RunLog, as_figure
from imnet.report.markup import (
    NOT_MEASURED,
    Markup,
    duration,
    figure,
    grid,
    hours,
    html,
    percent,
    rate,
    section,
    soft,
    table,
    tiles,
    values_table,
)
from imnet.report.plots import Curve, curves_svg, smoothed


def headline(run: RunLog) -> Markup:
    when = "last epoch" if run.finished else "so far"
    return tiles(
        [
            *([("test top-1, judged at the end", percent(run.final_top1))] if run.final_told else []),
            (f"{run.part} top-1, {when}", percent(run.last_top1)),
            (f"best epoch (selected on the {run.chosen_on})", percent(run.best_top1)),
            ("published top-1" + (" (not comparable)" if run.changed else ""), percent(run.published_top1, "none")),
            ("images/s, median", rate(run.images_per_s)),
            ("time, evaluations included", duration(run.total_seconds)),
        ]
    )


def status(run: RunLog) -> str:
    """One sentence: whether the run is finished or how far it is, the model and the seed."""
    model = f"model {run.recipe.get('model', 'not recorded')}"
    seed = f"seed {run.seed}" if run.seed is not None else "seed not recorded"
    if run.finished:
        early = f" of {_epoch(run.epochs)}, stopped by --patience {run.recipe.get('patience')}" if run.stopped else ""
        return f"Finished: {_epoch(run.reached_epoch)} epoch{'s' * (run.reached_epoch != 1)}{early}, {model}, {seed}."
    planned = "an unknown number of" if math.isnan(run.epochs) else _epoch(run.epochs)
    return f"Not finished: epoch {_epoch(run.reached_epoch)} of {planned}, {model}, {seed}."


def notes(run: RunLog) -> list[Markup]:
    """Notes that a reader needs before the figures; no section if there are none."""
    items = list(run.notes)
    if not run.finished:
        items.insert(0, "The run is not finished: the figures below are those so far, not final ones.")
    if not run.evals:
        items.append("No evaluation has been logged.")
    bad = [line for line in run.train if not math.isfinite(line.loss)]
    if bad:
        first = bad[0]
        items.append(
            f"{len(bad):,} of {len(run.train):,} logged training losses are not finite or missing, "
            f"the first at step {first.step:.0f} (epoch {first.epoch:.2f})."
        )
    if not items:
        return []
    listed = "".join(f"<li>{html(item)}</li>" for item in items)
    return [section("notes", "Notes", Markup(f'<ul class="warn">{listed}</ul>'))]


def results(run: RunLog) -> Markup:
    """A table of measured and published figures: the last epoch, then the best one with the images that selected it."""
    last, best, published = run.last, run.best, run.published
    evaluation = run.evaluation
    last_name = "Measured, last epoch" if run.finished else "Measured, last epoch so far"
    flip = percent(evaluation.top1_flip) if evaluation else NOT_MEASURED
    note = published.get("note") or "not stated"
    name = "Top-1" if run.judged_on == "test set" else f"Top-1, {run.judged_on}"
    compared = math.isfinite(run.raw_top1)
    rows = [
        *([("Test set, top-1", run.final_told, "", "")] if run.final_told else []),
        (name, percent(run.last_top1), percent(run.best_top1), percent(run.published_top1, "not published")),
        *([("Top-1 on the validation images", _share(run.vals[-1]), _share(run.best_val), "")] if run.vals else []),
        *([("Top-1, raw weights (the rest: their average)", percent(run.raw_top1), "", "")] if compared else []),
        ("Top-1 minus published", _gap(last, run), _gap(best, run), ""),
        *_ensemble(run),
        ("Top-1, final evaluation", percent(evaluation.top1 if evaluation else NAN), "", ""),
        ("Top-1, mirror averaged", flip, "", ""),
        ("Top-5", _share(last, "top5"), _share(best, "top5"), percent(as_figure(published, "top5"), "not published")),
        ("Epoch", _at(last, run), _at(best, run), ""),
        ("Hours", hours(run.total_seconds), "the same run", hours_published(run)),
        ("Hardware", run.hardware, "the same run", published.get("hardware") or "not published"),
        ("Chosen by", "nothing: the last epoch", f"top-1 on the {run.chosen_on}", note),
    ]
    headers = ("", last_name, f"Measured, best epoch (selected on the {run.chosen_on})", "Published")
    return section("results", "Published and measured", table(headers, rows), soft(_sampling(run)))


def _ensemble(run: RunLog) -> list[tuple[str, str, str, str]]:
    """A row with the published figure of a spectral ensemble, to which this run is only one band."""
    published = run.published
    if published.get("ensemble_top1") is None:
        return []
    bands = ", ".join(map(str, published.get("ensemble_of") or ())) or "all"
    name = f"Top-1, ensemble of the bands {bands}".replace("the bands all", "all bands")
    hours = published.get("ensemble_hours")
    told = percent(float(published["ensemble_top1"])) + ("" if hours is None else f" in {hours:g} h")
    return [(name, f"one run is band {run.band or 0} alone", "", told)]


def hours_published(run: RunLog) -> str:
    value = run.published.get("hours")
    return "not published" if value is None else f"{value:g} h"


def _sampling(run: RunLog) -> str:
    source = f"Source of the recipe: {run.recipe.get('source') or 'not stated'}."
    if run.evaluation is None or not math.isfinite(run.evaluation.top1):
        return f"{source} Number of test images: {NOT_MEASURED} (no final evaluation yet)."
    count, top1 = run.evaluation.num_images, run.evaluation.top1
    # Agresti and Coull's estimate, with two hits and two misses added: the plain one is 0 if all images are right.
    share = (top1 * count + 2) / (count + 4)
    error = math.sqrt(share * (1 - share) / (count + 4))
    return (
        f"{source} Final evaluation on {count:,} images; a test set of this size has a standard error of "
        f"{100 * error:.2f} points by itself, the spread over seeds not counted."
    )


def _epoch(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def _share(line: EvalLine | None, name: str = "top1") -> str:
    return percent(getattr(line, name, NAN))


def _gap(line: EvalLine | None, run: RunLog) -> str:
    return run.against_published(line.top1) if line else NOT_MEASURED


def _at(line: EvalLine | None, run: RunLog) -> str:
    if line is None:
        return NOT_MEASURED
    return _epoch(line.epoch) if math.isnan(run.epochs) else f"{_epoch(line.epoch)} of {_epoch(run.epochs)}"


def curves(run: RunLog) -> Markup:
    """Loss, accuracy, learning rate and throughput against the epoch."""
    return grid([_loss(run), _accuracy(run), _learning_rate(run), _throughput(run)])


def _loss(run: RunLog) -> Markup:
    epochs, losses = [line.epoch for line in run.train], [line.loss for line in run.train]
    if not any(map(math.isfinite, losses)):
        return section("loss", "Loss", f"Training loss: {NOT_MEASURED}.")
    drawn, drawn_how = smoothed(epochs, losses, "train", 1)
    caption = f"Training loss as optimised, {len(losses):,} logged value{'s' * (len(losses) > 1)}"
    caption += drawn_how and f" ({drawn_how})"
    test = [line.loss for line in run.evals]
    if any(map(math.isfinite, test)):
        drawn.append(Curve(x=[line.epoch for line in run.evals], y=test, label=run.part, color=0))
    val = [line.loss for line in run.vals]
    if any(map(math.isfinite, val)):
        drawn.append(Curve(x=[line.epoch for line in run.vals], y=val, label="validation", color=2))
    bad = next((line.epoch for line in run.train if not math.isfinite(line.loss)), None)
    caption += "." if bad is None else "; the dotted line marks the first one that is not finite."
    finite = [loss for loss in (*losses, *test, *val) if math.isfinite(loss)]
    log_y = min(finite) > 0 and max(finite) / min(finite) > 50
    caption += " Logarithmic scale." if log_y else ""
    return section("loss", "Loss", _drawn("loss", drawn, caption, y_label="loss", log_y=log_y, mark_x=bad))


def _accuracy(run: RunLog) -> Markup:
    title, epochs = f"{run.part.capitalize()} accuracy", [line.epoch for line in run.evals]
    named = [("top-1", [100 * line.top1 for line in run.evals]), ("top-5", [100 * line.top5 for line in run.evals])]
    drawn = [
        Curve(x=epochs, y=values, label=label, color=color)
        for color, (label, values) in enumerate(named)
        if any(map(math.isfinite, values))
    ]
    if not drawn:
        return section("accuracy", title, f"{title}: {NOT_MEASURED}.")
    missing = "" if len(drawn) == 2 else f" {'Top-1' if drawn[0].label == 'top-5' else 'Top-5'}: {NOT_MEASURED}."
    for label, color, points in (
        ("validation top-1", 2, [(line.epoch, line.top1) for line in run.vals]),
        ("training top-1", 3, run.train_top1),
    ):
        if points:
            drawn.append(Curve(x=[x for x, _ in points], y=[100 * y for _, y in points], label=label, color=color))
    level = None if math.isnan(run.published_top1) or run.changed else (100 * run.published_top1, "published top-1")
    caption = f"{len(epochs)} evaluation{'s' * (len(epochs) > 1)} on the {run.judged_on}.{missing}"
    return section("accuracy", title, _drawn("accuracy", drawn, caption, y_label="accuracy, %", level=level))


def _learning_rate(run: RunLog) -> Markup:
    rates = [line.lr for line in run.train]
    if not any(map(math.isfinite, rates)):
        return section("lr", "Learning rate", f"Learning rate: {NOT_MEASURED}.")
    curve = Curve(x=[line.epoch for line in run.train], y=rates, color=3)
    return section("lr", "Learning rate", _drawn("lr", [curve], "", y_label="learning rate"))


def _throughput(run: RunLog) -> Markup:
    rates = [line.images_per_s for line in run.train]
    finite = [value for value in rates if math.isfinite(value)]
    if not finite:
        return section("throughput", "Throughput", f"Throughput: {NOT_MEASURED}.")
    drawn, drawn_how = smoothed([line.epoch for line in run.train], rates, "", 2)
    spread = ""
    if len(finite) >= 4:
        low, _, high = quantiles(finite, n=4)
        spread = f", middle half {rate(low)} to {rate(high)}"
    counted = f"{len(finite):,} logged interval{'s' * (len(finite) > 1)}" + (drawn_how and f"; {drawn_how}")
    caption = f"Median {rate(run.images_per_s)} images/s{spread} ({counted}) on {run.hardware}."
    return section("throughput", "Throughput", _drawn("throughput", drawn, caption, y_label="images/s"))


def _drawn(name: str, curves: Sequence[Curve], caption: str, *, y_label: str, **how: Any) -> Markup:
    """The curves against the epoch, above their caption. Where each is a single point, an empty frame around it would
    tell less than a sentence, which takes the place of the drawing."""
    if any(sum(map(math.isfinite, curve.y)) > 1 for curve in curves):
        drawing = curves_svg(name, curves, x_label="epoch", y_label=y_label, **how)
        return figure(drawing, caption) if caption else drawing
    points = [(curve.label, x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True)]
    said = "; ".join(f"{label} {y:.4g} at epoch {_epoch(x)}".strip() for label, x, y in points if math.isfinite(y))
    return soft(f"{y_label[0].upper()}{y_label[1:]}: {said}. {caption}".strip())


def recipe(run: RunLog) -> Markup:
    return section("recipe", "Recipe and settings", values_table(run.config))


def environment(run: RunLog) -> Markup:
    recorded = {key: value for key, value in run.info.items() if key != "recipe"}
    body = values_table(recorded) if recorded else soft("run.json records nothing but the recipe.")
    return section("environment", "Environment", body)
