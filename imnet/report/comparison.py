"""The parts of the page that compares runs: overlaid curves, a table of runs, and a table of recipes over seeds."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from statistics import fmean, stdev
from typing import Any

from imnet.report.data import NAN, RunLog
from imnet.report.markup import Markup, duration, figure, flatten, grid, html, percent, rate, section, soft, table
from imnet.report.plots import DASHES, SERIES, SMOOTHING, Curve, curves_svg, running_mean, thin
from imnet.report.sections import hours_published

CSS_DASHES = ("solid", "dashed", "dotted", "double")


def runs_table(runs: Sequence[RunLog]) -> Markup:
    """A table with one row per run, marked with its group's letter and the line style of its curves."""
    headers = ("Run", "Recipe", "Seed", "Epochs", "Top-1, last epoch", _best_named(runs), "Published")
    headers += ("images/s, median", "Time", "Hardware")
    rows = [(_label(run.path.resolve().name, mark, style), *_cells(run)) for run, mark, style in marked(runs)]
    return section("runs", "Runs", table(headers, rows, "wide"))


def _label(name: str, mark: str, style: tuple[int, int]) -> Markup:
    color, dash = style
    swatch = f'<span class="swatch" style="color:var(--c{color});border-top-style:{CSS_DASHES[dash]}"></span>'
    return Markup(f'<span class="name">{swatch}<b>{mark}</b></span> {html(_long(name))}')


def _long(text: str) -> Markup:
    """A name that may be broken anywhere, so that a table with many columns fits the page."""
    return Markup(f'<span class="long">{escape(text)}</span>')


def marked(runs: Sequence[RunLog]) -> list[tuple[RunLog, str, tuple[int, int]]]:
    """Runs in the order of their groups, each with its mark (A1, A2, B1, ...) and (colour, dash) of its curves.

    Groups differ in colour, the runs of a group in dash. If there is only one group, its runs differ in colour.
    """
    groups = group(runs)
    found = []
    for letter, members in enumerate(groups):
        for number, run in enumerate(members):
            color = letter if len(groups) > 1 else number
            dash = number if len(groups) > 1 else number // len(SERIES)
            dash += letter // len(SERIES)  # more groups than colours
            found.append((run, f"{_letter(letter)}{number + 1}", (color % len(SERIES), dash % len(DASHES))))
    return found


def _letter(number: int) -> str:
    """0 -> A, 25 -> Z, 26 -> AA."""
    return (_letter(number // 26 - 1) if number >= 26 else "") + chr(ord("A") + number % 26)


def published(run: RunLog) -> str:
    """The published top-1, and the changes that make the run not comparable with it."""
    return percent(run.published_top1, "none") + (f" ({run.changed})" if run.changed else "")


def _cells(run: RunLog) -> tuple[str, ...]:
    planned = "?" if math.isnan(run.epochs) else f"{run.stopped or run.epochs:g}"
    return (
        _long(run.name),
        "not recorded" if run.seed is None else str(run.seed),
        planned if run.finished else f"{run.reached_epoch:.4g} of {planned}, not finished",
        percent(run.last_top1),
        _best_cell(run, percent(run.best_top1)),
        published(run),
        rate(run.images_per_s),
        duration(run.total_seconds),
        run.hardware,
    )


def _best_cell(run: RunLog, text: str) -> str:
    return f"{text} (on the {run.chosen_on})" if run.vals and run.best else text


def _best_named(runs: Sequence[RunLog]) -> str:
    return f"Top-1, best epoch (selected on the {' or the '.join(dict.fromkeys(run.chosen_on for run in runs))})"


def groups_table(runs: Sequence[RunLog]) -> Markup:
    """Mean and spread over the seeds of each recipe; unfinished runs are counted separately and not averaged."""
    headers = ("Recipe", "n", "Seeds", "Top-1, last epoch", _best_named(runs), "Published", "Time", "Published time")
    groups = group(runs)
    rows = []
    for letter, (name, members) in enumerate(zip(_names(groups), groups, strict=True)):
        color = letter % len(SERIES) if len(groups) > 1 else 0
        dash = letter // len(SERIES) % len(DASHES)
        rows.append((_label(name, _letter(letter), (color, dash)), *_group_cells(members)))
    told = "over the finished runs of the same recipe, precision and images; n is their number."
    said = f"Mean ± sample standard deviation {told}"
    return section("groups", "By recipe", soft(said), table(headers, rows, "wide"))


def group(runs: Sequence[RunLog]) -> list[list[RunLog]]:
    """Groups of runs with equal recipes (every value but the seed), precision and data, in order of appearance."""
    groups: dict[str, list[RunLog]] = {}
    for run in runs:
        groups.setdefault(experiment(run), []).append(run)
    return list(groups.values())


def experiment(run: RunLog) -> str:
    """sha256 (hex) of everything that the runs of one ``group`` have in common."""
    return hashlib.sha256(json.dumps(identity(run), sort_keys=True, default=str).encode()).hexdigest()


def identity(run: RunLog) -> dict[str, Any]:
    return {"recipe": _without_seed(run.recipe), "precision": run.info.get("precision"), "images": _images(run)}


def _images(run: RunLog) -> str:
    """An identifier of the data, the beginning of its fingerprint: one recipe can be used with several folders.

    If a part is held out by the run's seed, the fingerprint depends on the seed, so sizes and classes are hashed.
    """
    data = run.info.get("data") or {}
    if (run.recipe.get("data") or {}).get("hold_out"):
        sizes = [data.get(key) for key in ("train_images", "test_images", "class_names")]
        return hashlib.sha256(json.dumps(sizes).encode()).hexdigest()[:12]
    return str(data.get("fingerprint"))[:12]


def _without_seed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: _without_seed(value) if isinstance(value, Mapping) else value
        for key, value in values.items()
        if key != "seed"
    }


def _names(groups: Sequence[Sequence[RunLog]]) -> list[str]:
    """A name for each group: its recipe's name, and if groups share that, values in which they differ, those with most
    variants first: four, or as many more as distinguish the group from all others."""
    flat = [dict(flatten(identity(members[0]))) for members in groups]
    by_name: dict[str, list[dict[str, str]]] = {}
    for members, values in zip(groups, flat, strict=True):
        by_name.setdefault(members[0].name, []).append(values)
    keys = {name: _differing(same_name) for name, same_name in by_name.items()}
    names = (members[0].name for members in groups)
    return [_told(name, values, by_name[name], keys[name]) for name, values in zip(names, flat, strict=True)]


def _differing(rows: Sequence[Mapping[str, str]]) -> list[str]:
    """The keys whose values differ between ``rows``, that with the most different values first."""
    count = {key: len({row.get(key) for row in rows}) for key in {key for row in rows for key in row}}
    return sorted((key for key, number in count.items() if number > 1), key=lambda key: (-count[key], key))


def _told(name: str, values: Mapping[str, str], same_name: Sequence[Mapping[str, str]], keys: Sequence[str]) -> str:
    alike, needed = [other for other in same_name if other is not values], 0
    while needed < len(keys) and (alike or needed < 4):
        alike = [other for other in alike if other.get(keys[needed]) == values.get(keys[needed])]
        needed += 1
    told = [f"{key.removeprefix('recipe.')} = {values.get(key, 'absent')}" for key in sorted(keys[:needed])]
    more = f", and {len(keys) - needed} more" if len(keys) > needed else ""
    return f"{name} ({', '.join(told)}{more})" if told else name


def _group_cells(members: Sequence[RunLog]) -> tuple[str, ...]:
    done = [run for run in members if run.finished]
    open_runs = len(members) - len(done)
    seeds = ["?" if run.seed is None else str(run.seed) for run in done]
    repeated = " (a seed more than once)" if len(set(seeds)) < len(seeds) else ""
    same_hardware = len({run.hardware for run in done}) <= 1
    time = [run.total_seconds for run in done]
    return (
        f"{len(done)}" + (f" (+ {open_runs} not finished)" if open_runs else ""),
        (", ".join(seeds) or "none") + repeated,
        spread([run.last_top1 for run in done], percent, points_of),
        _best_cell(members[0], spread([run.best_top1 for run in done], percent, points_of)),
        published(members[0]),
        spread(time, duration, duration) if same_hardware else "different hardware: see the runs",
        hours_published(members[0]),
    )


def points_of(deviation: float) -> str:
    return f"{100 * deviation:.2f} points"


def spread(values: Sequence[float], show: Callable[[float], str], show_deviation: Callable[[float], str]) -> str:
    """``mean ± std`` over the finite values; for a single value the text says that there is no spread."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return show(NAN)
    counted = "" if len(finite) == len(values) else f" (n = {len(finite)})"
    if len(finite) == 1:
        return f"{show(finite[0])}, one run: no spread{counted}"
    return f"{show(fmean(finite))} ± {show_deviation(stdev(finite))}{counted}"


def overlays(runs: Sequence[RunLog]) -> Markup:
    """Plots of training together with validation, top-1 by epoch and by time, training loss and throughput, with the
    colours of the table of runs."""
    by_epoch, by_time, losses, rates = [], [], [], []
    accuracy, loss = [], []
    for run, _, (color, dash) in marked(runs):
        top1 = [100 * line.top1 for line in run.evals]
        by_epoch.append(Curve(x=[line.epoch for line in run.evals], y=top1, color=color, dash=dash))
        by_time.append(Curve(x=_times(run), y=top1, color=color, dash=dash))
        x, y = thin([line.epoch for line in run.train], [line.loss for line in run.train])
        losses.append(Curve(x=x, y=running_mean(y, len(y) // SMOOTHING), color=color, dash=dash))
        x, y = thin([line.epoch for line in run.train], [line.images_per_s for line in run.train])
        rates.append(Curve(x=x, y=y, color=color, dash=dash))
        judged = run.vals or run.evals
        accuracy += _pair(
            [(x, 100 * y) for x, y in run.train_top1], [(i.epoch, 100 * i.top1) for i in judged], color, dash
        )
        loss += _pair(run.train_loss, [(line.epoch, line.loss) for line in judged], color, dash)
    several = len(group(runs)) > 1
    part = " and ".join(dict.fromkeys(run.part for run in runs)).capitalize()
    both = f"Thin: training. Bold: {_judged(runs)}."
    return grid(
        [
            _overlay(
                "both-accuracy", "Accuracy, training and validation", accuracy, "epoch", "top-1, %", several, both
            ),
            _overlay("both-loss", "Loss, training and validation", loss, "epoch", "loss", several, both),
            _overlay("accuracy", f"{part} top-1 by epoch", by_epoch, "epoch", "top-1, %", several),
            _overlay("time", f"{part} top-1 by time", by_time, "minutes, evaluations included", "top-1, %", several),
            _overlay("loss", "Training loss", losses, "epoch", "loss, running mean", several),
            _overlay("throughput", "Throughput", rates, "epoch", "images/s", several),
        ]
    )


Points = Sequence[tuple[float, float]]


def _pair(train: Points, judged: Points, color: int, dash: int) -> list[Curve]:
    """The two curves of a run in a plot of training and validation."""
    return [
        Curve(x=[x for x, _ in points], y=[y for _, y in points], faint=faint, color=color, dash=dash)
        for points, faint in ((train, True), (judged, False))
    ]


def _judged(runs: Sequence[RunLog]) -> str:
    """The images that the plots show as validation, in words."""
    without = sum(not run.vals and run.part == "test" for run in runs)
    if not without:
        return "the images held out of train"
    test = "the test set, since nothing was held out of train"
    return test if without == len(runs) else f"the images held out of train; in {without} of {len(runs)} runs {test}"


def _times(run: RunLog) -> list[float]:
    """Minutes on the run's clock at each evaluation; NaN if no clock was logged."""
    clock = run.clock
    return [max((at for epoch, at in clock if epoch <= line.epoch), default=NAN) / 60 for line in run.evals]


def _overlay(
    name: str, title: str, curves: Sequence[Curve], x_label: str, y_label: str, several: bool, more: str = ""
) -> Markup:
    pairs = ((x, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True))
    if not any(math.isfinite(x) and math.isfinite(y) for x, y in pairs):
        return section(name, title, "Not measured in any of these runs.")
    drawing = curves_svg(name, curves, x_label=x_label, y_label=y_label)
    told = "A colour is a group, a dash pattern a run of it" if several else "A line is a run"
    return section(name, title, figure(drawing, f"{told}, as in the tables. {more}".rstrip()))
