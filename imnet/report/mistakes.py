"""The mistakes of the network: the confusion matrix and the worst images of the final evaluation."""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Sequence

from imnet.errors import DataError
from imnet.files import exists
from imnet.report.data import Evaluation, RunLog, Worst
from imnet.report.markup import NOT_MEASURED, Markup, grid, html, section, soft, table
from imnet.report.read import read_bytes

HEAT_MAP_CLASSES = 50
NUMBERED_CLASSES = 20  # with more classes, cells show only colours, with the counts as tool tips
CONFUSED_PAIRS = 20
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def confusion(run: RunLog) -> Markup:
    """A heat map with names, and for many classes the most confused pairs too, or instead."""
    title = "Confusion matrix"
    if run.evaluation is None:
        return section("confusion", title, f"Confusion matrix: {NOT_MEASURED} (no final evaluation yet).")
    content = []
    classes = len(run.evaluation.class_names)
    if classes <= HEAT_MAP_CLASSES:
        content.append(soft("Row: true class. Column: predicted class. Last column: share of the row that is correct."))
        content.append(_heat_map(run.evaluation))
    if classes > NUMBERED_CLASSES:
        content += _pairs(run.evaluation)
    return section("confusion", title, *content)


def best_confusion(runs: Sequence[RunLog]) -> list[Markup]:
    """The confusion matrix of the run with the highest top-1 at its last epoch; no section if no run was evaluated."""
    judged = [run for run in runs if run.evaluation is not None and run.last is not None]
    if not judged:
        return []
    best = max(judged, key=lambda run: run.last_top1)
    return [Markup(confusion(best).replace("<h2>Confusion matrix", f"<h2>Confusion matrix of {html(best.path.name)}"))]


def sheet(name: str, title: str, png: bytes) -> Markup:
    """A section with one picture."""
    return section(name, title, _picture(png, title, "natural"))


def _heat_map(evaluation: Evaluation) -> Markup:
    names, rows = evaluation.class_names, []
    small = len(names) > NUMBERED_CLASSES
    head = "".join(f"<th><span>{html(name)}</span></th>" for name in (*names, "correct"))
    for true, counts in enumerate(evaluation.confusion.rows(len(names))):
        total = sum(counts)
        cells = "".join(_cell(names, true, column, count, total, small) for column, count in enumerate(counts))
        share = f"{100 * counts[true] / total:.1f} %" if total else "no images"
        rows.append(f'<tr><th scope="row">{html(names[true])}</th>{cells}<td class="sum">{share}</td></tr>\n')
    kind = "heat small" if small else "heat"
    return Markup(
        f'<div class="scroll"><table class="{kind}"><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>\n{''.join(rows)}</tbody></table></div>"
    )


def _cell(names: Sequence[str], true: int, column: int, count: int, total: int, small: bool) -> str:
    # Square root: an error of 1 % of a class must still be visible beside a diagonal of 95 %.
    shade = f' style="--a:{0.85 * math.sqrt(count / total):.2f}"' if count else ""
    kind = ' class="hit"' if true == column else ""
    if not small:
        return f"<td{kind}{shade}>{count or ''}</td>"
    tip = f' title="{html(names[true])} as {html(names[column])}: {count}"' if count else ""
    return f"<td{kind}{shade}{tip}></td>"


def _pairs(evaluation: Evaluation) -> Sequence[Markup]:
    names, totals = evaluation.class_names, Counter[int]()
    for true, _, count in evaluation.confusion.cells():
        totals[true] += count
    pairs = [(-count, true, column) for true, column, count in evaluation.confusion.cells() if true != column]
    rows = [
        (names[true], names[column], -count, f"{-100 * count / totals[true]:.1f} %")
        for count, true, column in sorted(pairs)[:CONFUSED_PAIRS]
    ]
    if not rows:
        return [soft("No image is confused.")]
    said = soft(f"The {len(rows)} most confused of {len(names)} x {len(names) - 1} ordered pairs of classes.")
    return [said, table(("True class", "Predicted as", "Images", "Share of the true class"), rows)]


def worst(run: RunLog) -> Markup:
    """The contact sheet of the worst images as a data URI, and the same as a table."""
    title = "Worst images"
    if run.evaluation is None:
        return section("worst", title, f"Worst images: {NOT_MEASURED} (no final evaluation yet).")
    names = run.evaluation.class_names
    rows = [
        (f"{row.index}", names[row.label], _predicted(names, row), _share(row.probability), f"{row.loss:.3f}")
        for row in run.evaluation.worst
    ]
    headers = ("Image", "True class", "Predicted as", "Probability of the true class", "Loss")
    listed = table(headers, rows) if rows else soft("evaluation.json lists no worst images.")
    said = soft(f"The {len(rows)} {run.part} images with the largest loss; a wrong label in the data also shows here.")
    return section("worst", title, said, grid([_sheet(run), Markup(f"<div>{listed}</div>")]))


def _predicted(names: Sequence[str], row: Worst) -> str:
    if row.predicted == row.label:
        return f"{names[row.label]} (right)"
    return names[row.predicted] if row.predicted < len(names) else f"output {row.predicted} (no class)"


def _share(probability: float) -> str:
    """A percentage with three significant digits, since two decimals would show these tiny values as 0.00 %."""
    return f"{100 * probability:.3g} %" if math.isfinite(probability) else NOT_MEASURED


def _sheet(run: RunLog) -> Markup:
    path = run.path / "worst.png"
    if not exists(path):
        return soft("The run folder holds no worst.png.")
    data = read_bytes(path)
    if not data.startswith(PNG_SIGNATURE):
        raise DataError("is not a PNG", file=path, hint="evaluate the run again")
    return _picture(data, "the worst images with their captions")


def _picture(data: bytes, alt: str, css_class: str = "") -> Markup:
    uri = base64.b64encode(data).decode()
    return Markup(f'<figure class="{css_class}"><img src="data:image/png;base64,{uri}" alt="{html(alt)}"></figure>')
