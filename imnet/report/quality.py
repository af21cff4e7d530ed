"""The quality of the predictions: figures of each class, calibration, and evaluations on other data."""

from __future__ import annotations

import math
import re
from typing import Any

from imnet.report.data import Evaluation, RunLog
from imnet.report.markup import NOT_MEASURED, Markup, figure, percent, section, soft, table
from imnet.report.plots import Curve, curves_svg
from imnet.scores import balanced_accuracy, calibration_error, macro_f1

SHOWN_CLASSES = 50
"""If there are more classes, the page shows those with the lowest F1; evaluation.json has all."""


def classes(run: RunLog) -> Markup:
    """Precision, recall, F1 and number of images of each class."""
    title = "Classes"
    if run.evaluation is None:
        return section("classes", title, f"Precision and recall: {NOT_MEASURED} (no final evaluation yet).")
    return section("classes", title, *_classes(run.evaluation))


def _classes(evaluation: Evaluation) -> list[Markup]:
    scores = evaluation.per_class
    said = (
        f"Balanced accuracy (mean recall) {percent(balanced_accuracy(scores))}, macro F1 {percent(macro_f1(scores))}."
    )
    ranked = list(zip(evaluation.class_names, scores, strict=True))
    if len(ranked) > SHOWN_CLASSES:
        ranked = [row for row in ranked if row[1].support]
        ranked = sorted(ranked, key=lambda row: 0.0 if row[1].f1 is None else row[1].f1)[:SHOWN_CLASSES]
        said += f" The {len(ranked)} classes of the lowest F1, of {len(scores)}; evaluation.json has all."
    rows = [(name, *map(_share, score[:3]), f"{score.support:,}") for name, score in ranked]
    return [soft(said), table(("Class", "Precision", "Recall", "F1", "Images"), rows)]


def _share(value: float | None) -> str:
    return percent(value, "-") if value is not None else "-"


def calibration(run: RunLog) -> Markup:
    """The reliability diagram, accuracy against predicted probability."""
    title = "Calibration"
    if run.evaluation is None or not run.evaluation.bins:
        why = "no final evaluation yet" if run.evaluation is None else "imnet-eval measures it"
        return section("calibration", title, f"Calibration error: {NOT_MEASURED} ({why}).")
    return section("calibration", title, _reliability(run.evaluation, "calibration"))


def _reliability(evaluation: Evaluation, name: str) -> Markup:
    held = [row for row in evaluation.bins if row[0]]
    accuracy = Curve(x=[p / n for n, p, _ in held], y=[hits / n for n, _, hits in held], label="measured")
    wanted = Curve(x=[0.0, 1.0], y=[0.0, 1.0], label="perfectly calibrated", color=3, dash=1)
    drawing = curves_svg(name, [accuracy, wanted], x_label="probability of the answer", y_label="share that is right")
    error, total = calibration_error(evaluation.bins), sum(n for n, _, _ in evaluation.bins)
    trust = (math.fsum(p for _, p, _ in held) - math.fsum(hits for _, _, hits in held)) / total if total else 0.0
    tone = "more" if trust > 0 else "less"
    return figure(
        drawing,
        f"Expected calibration error {percent(error)}: {len(evaluation.bins)} bins of equal width, {len(held)} of them "
        f"with images. On average the network is {tone} sure than right, by {percent(abs(trust))}.",
    )


def others(run: RunLog) -> list[Markup]:
    """Evaluations on other data, of other checkpoints or in another precision; no section if there are none."""
    if not run.others:
        return []
    headers = ("Data", "Part", "Checkpoint", "Precision", "Images", "Top-1", "Top-5", "Balanced", "Calibration error")
    parts: list[Any] = [table(headers, [_row(other, run) for other in run.others], "wide")]
    for number, other in enumerate(run.others):
        parts.append(soft("{}, {}, checkpoint {}, {}:".format(*_named(other, run))))
        parts += _classes(other)
        parts += [_reliability(other, f"other{number}")] if other.bins else []
    return [section("others", "Other evaluations", *parts)]


def _named(other: Evaluation, run: RunLog) -> list[str]:
    """The data, split, checkpoint and precision of an evaluation. Of weights other than the run's newest it says the
    step: a run that went on since has another ``last``, and maybe another ``best``."""
    about = other.about or {}
    data, split, which, precision = (str(about.get(key, "?")) for key in ("data", "split", "checkpoint", "precision"))
    step = re.match(r"step-0*(\d+)", str(about.get("weights")))
    if step and run.last and int(step[1]) != run.last.step:
        which += f" at that time, step {int(step[1]):,}" if which in ("last", "best") else ""
    return [data, split, which, precision]


def _row(other: Evaluation, run: RunLog) -> tuple[str, ...]:
    figures = (other.top1, other.top5, balanced_accuracy(other.per_class), calibration_error(other.bins))
    return (*_named(other, run), f"{other.num_images:,}", *map(percent, figures))
