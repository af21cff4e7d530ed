"""The results of a search: its configurations from best to worst, and a heat map if two values were searched."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from imnet.report.comparison import group, identity, points_of, spread
from imnet.report.data import RunLog
from imnet.report.lines import mean
from imnet.report.markup import Markup, duration, flatten, html, percent, section, soft


def judged(run: RunLog) -> float:
    """The top-1 by which a search should choose: on the images held out of train, or else on the test set."""
    return run.vals[-1].top1 if run.vals else run.last_top1


def _judged(runs: Sequence[RunLog]) -> float:
    return mean(list(map(judged, runs)), -math.inf)


def ranking(runs: Sequence[RunLog], labels: Sequence[str]) -> str:
    """A text table with one line per label, averaged over its runs, the best first."""
    groups: dict[str, list[RunLog]] = {}
    for run, label in zip(runs, labels, strict=True):
        groups.setdefault(label, []).append(run)
    ranked = sorted(groups.items(), key=lambda row: _judged(row[1]), reverse=True)
    held_out = any(run.vals for run in runs)
    rows = [("configuration", "n", *(["validation, last epoch"] if held_out else []), "test, last epoch", "time, mean")]
    for label, members in ranked:
        validation = [_mean_and_spread([judged(run) for run in members])] if held_out else []
        test = _mean_and_spread([run.last_top1 for run in members])
        time = duration(mean([run.total_seconds for run in members]))
        rows.append((label, str(len(members)), *validation, test, time))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines)


def _mean_and_spread(values: Sequence[float]) -> str:
    """``mean ± std``, or the value alone for one run, since the column n shows that there is no spread."""
    return percent(values[0]) if len(values) == 1 else spread(values, percent, points_of)


def heat_maps(runs: Sequence[RunLog]) -> list[Markup]:
    """A section for every recipe of which exactly two values differ between the runs; averaged over seeds."""
    families: dict[Any, list[tuple[dict[str, str], list[RunLog]]]] = {}
    for members in group(runs):
        values = dict(flatten(identity(members[0])))
        families.setdefault((members[0].name, frozenset(values)), []).append((values, members))
    found = []
    for number, ((name, keys), family) in enumerate(families.items()):
        axes = sorted(key for key in keys if len({values[key] for values, _ in family}) > 1)
        if len(axes) == 2:
            found.append(_map(f"search{number}", name, axes, family))
    return found


def _map(key: str, name: str, axes: Sequence[str], family: Sequence[tuple[dict[str, str], list[RunLog]]]) -> Markup:
    """The heat map of one recipe; the value with more variants is the horizontal axis."""
    down, across = sorted(axes, key=lambda axis: len({values[axis] for values, _ in family}))
    cells = {(values[down], values[across]): [r for r in members if r.finished] for values, members in family}
    top1 = {at: mean([run.last_top1 for run in members]) for at, members in cells.items() if members}
    finite = [value for value in top1.values() if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    best = max(top1, key=lambda at: _judged(cells[at]), default=None)
    columns = _sorted({at[1] for at in cells})
    head = "".join(f"<th>{html(value)}</th>" for value in columns)
    body = ""
    for row in _sorted({at[0] for at in cells}):
        shown = "".join(_cell(top1.get((row, c)), cells.get((row, c)), low, high, (row, c) == best) for c in columns)
        body += f'<tr><th scope="row">{html(row)}</th>{shown}</tr>\n'
    corner = f"{_short(down)} \\ {_short(across)}"
    drawn = f'<table class="heat search"><thead><tr><th>{html(corner)}</th>{head}</tr></thead><tbody>{body}</tbody>'
    chosen_on = "validation images" if any(run.vals for _, members in family for run in members) else "test set"
    said = (
        f"{name}: top-1 on the test set at the last epoch, mean over the seeds. Framed: the best one, chosen on the "
        f"{chosen_on}."
    )
    return section(key, "Search", soft(said), Markup(f'<div class="scroll">{drawn}</table></div>'))


def _cell(value: float | None, members: Sequence[RunLog] | None, low: float, high: float, best: bool) -> str:
    if not members or value is None:
        return f"<td>{'not run' if members is None else 'not finished'}</td>"
    shade = 0.08 + 0.77 * ((value - low) / (high - low) if high > low else 1.0)
    kind = "hit best" if best else "hit"
    shown = spread([run.last_top1 for run in members], percent, points_of)
    tip = f"{shown}, n = {len(members)}"
    return f'<td class="{kind}" style="--a:{shade:.2f}" title="{html(tip)}">{percent(value, "NaN")}</td>'


def _short(axis: str) -> str:
    return axis.removeprefix("recipe.")


def _sorted(values: set[str]) -> list[str]:
    """The values sorted as numbers if all are numbers, else as text."""
    try:
        return sorted(values, key=float)
    except ValueError:
        return sorted(values)
