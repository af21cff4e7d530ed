"""The page of a system: the table of its document, each row with the published and the measured figures.

The same table is written beside the page as Markdown and CSV. A row without a measurement is shown as "not run".
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from html import unescape
from typing import Any

from imnet.recipes.documents import Document
from imnet.report.lines import mean, mean_and_deviation
from imnet.report.markup import Markup, duration, html, percent, points, section, soft, table
from imnet.report.rows import Row

NOT_RUN = "not run"
MAIN_TITLE = "The document"
MARK = f"## {MAIN_TITLE}\n\n| Row |"
"""Text that every Markdown file of this module contains, whatever the system."""
CSV_COLUMNS = (
    "row", "recipe", "band", "ensemble", "parameters", "mib", "networks", "epochs_published", "epochs",
    "top1_published", "references", "top1", "top1_deviation", "difference", "top1_best_epoch", "changed",
    "hours_published", "hardware_published", "hours", "hardware", "precision", "n", "seeds",
)  # fmt: skip


def main_table(document: Document, found: Sequence[Row]) -> Markup:
    """The document's own table."""
    said = [soft(note) for note in document.notes]
    cited = "; ".join(f"{mark} {who}" for mark, who in document.citations.items())
    said += [soft(f"{cited}.")] if cited else []
    said.append(soft("Measured: mean ± sample standard deviation over n finished runs; the last epoch, then the best."))
    noted: dict[str, dict[str, None]] = {}
    for row in found:
        if row.recipe and row.recipe.published and row.recipe.published.note:
            noted.setdefault(row.recipe.published.note, {})[row.label] = None
    items = [f"<li>{html(', '.join(labels))}: {html(note)}</li>" for note, labels in noted.items()]
    footnotes = [Markup(f'<ul class="soft">{"".join(items)}</ul>')] if len(noted) > 1 else []
    return section("document", f"Document {document.number}", *said, _table(found), *footnotes)


def other_table(name: str, title: str, said: str, found: Sequence[Row]) -> list[Markup]:
    """A section of rows that are not in the document's table; none if there are no such rows."""
    return [section(name, title, soft(said), _table(found))] if found else []


def _columns(found: Sequence[Row]) -> list[tuple[str, Any]]:
    """(header, function from a row to its cell) of each column, without columns that would be empty."""
    some = [row.recipe.published for row in found if row.recipe and row.recipe.published and row.band is None]
    columns: list[tuple[str, Any]] = [("", _label)]
    columns += [("Parameters", _parameters)] if any(p.parameters for p in some) else []
    columns += [("Model size", _size)] if any(p.mib for p in some) else []
    columns += [("Epochs", _epochs)]
    columns += [("Published", _published)] if any(row.recipe for row in found) else []
    columns += [("Measured", _measured)]
    columns += [("Difference", _difference)] if any(row.recipe for row in found) else []
    columns += [("Published time, hardware", _published_time)] if any(p.hardware for p in some) else []
    return [*columns, ("Time", _time), ("Hardware", _hardware), ("n", _n)]


def _table(found: Sequence[Row]) -> Markup:
    columns = _columns(found)
    body = []
    before: tuple[Any, ...] = ()
    for row in found:
        here = (row.label, row.band)
        cells = [show(row) for _, show in columns]
        body.append(cells if here != before else ["", *cells[1:]])
        before = here if row.recipe else ()
    return table([header for header, _ in columns], body, "wide system")


def _label(row: Row) -> str:
    if row.recipe is None:
        changed = f'<br><span class="soft">changed {html(", ".join(row.changed))}</span>' if row.changed else ""
        return Markup(f"{html(row.found.name if row.found else '')}{changed}")
    return row.label if row.band is None else f"{row.label}, band {row.band}"


def _parameters(row: Row) -> str:
    p = row.recipe.published if row.recipe else None
    return f"{p.parameters:,}" if p and p.parameters else ""


def _size(row: Row) -> str:
    p = row.recipe.published if row.recipe else None
    many = f" x {row.networks}" if row.networks > 1 else ""
    return f"{p.mib:g} MiB{many}" if p and p.mib else ""


def _epochs(row: Row) -> str:
    ours = row.found.recipe.get("epochs", "?") if row.found else None
    theirs = row.recipe.epochs if row.recipe else None
    return f"{ours} (document: {theirs})" if ours and theirs and ours != theirs else str(ours or theirs)


def _published(row: Row) -> Markup:
    p = row.recipe.published if row.recipe and row.band is None else None
    brackets = [f"({percent(top1)} {mark})" for mark, top1 in (p.references if p else {}).items()]
    shown = percent(row.published, "-")
    return Markup("<br>".join(map(html, [shown, *brackets])))


def _measured(row: Row) -> Markup:
    m = row.found
    if m is None:
        return Markup(f'<span class="soft">{NOT_RUN}</span>')
    lines = [f"<b>{html(_spread(m.last))}</b>"]
    if m.best and m.chosen_on:
        lines.append(
            f'<span class="soft">{html(_spread(m.best))} best epoch (selected on the {html(m.chosen_on)})</span>'
        )
    if m.ensemble:
        lines.append(f'<span class="soft">{html(m.ensemble)}</span>')
    if row.recipe is not None and m.name != row.recipe.name:
        lines.append(f'<span class="soft">{html(m.name)}</span>')
    return Markup("<br>".join(lines))


def _spread(values: Sequence[float]) -> str:
    middle, deviation = mean_and_deviation(values)
    return percent(middle) + (f" ± {100 * deviation:.2f}" if math.isfinite(deviation) else "")


def _difference(row: Row) -> Markup:
    if not math.isfinite(row.difference):
        return Markup("")
    told = f'<br><span class="soft">another run: changed {html(", ".join(row.changed))}</span>'
    return Markup(html(points(row.difference)) + told * bool(row.changed))


def _published_time(row: Row) -> str:
    p = row.recipe.published if row.recipe and row.band is None else None
    if p is None:
        return ""
    return ", ".join(filter(None, [f"{row.hours:g} h" if math.isfinite(row.hours) else "", p.hardware]))


def _time(row: Row) -> Markup:
    return Markup(f'<span class="name">{duration(mean(row.found.seconds))}</span>' if row.found else "")


def _hardware(row: Row) -> str:
    return ", ".join(filter(None, [row.found.hardware, row.found.precision])) if row.found else ""


def _n(row: Row) -> str:
    return str(len(row.found.last)) if row.found else "0"


def heading(document: Document) -> str:
    """The first line of the Markdown file."""
    return f"# {document.title} (document {document.number})"


def markdown(document: Document, tables: Mapping[str, Sequence[Row]]) -> str:
    """The Markdown of the tables that are not empty, each under its title."""
    lines = [heading(document), "", *(f"{note}\n" for note in document.notes)]
    for title, found in tables.items():
        columns = _columns(found)
        head = [header or "Row" for header, _ in columns]
        lines += [f"## {title}", "", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"] if found else []
        lines += [f"| {' | '.join(_plain(show(row)) for _, show in columns)} |" for row in found]
        lines += [""] if found else []
    return "\n".join(lines)


def _plain(cell: str) -> str:
    """The text of a cell without tags, and without characters that would end a cell of Markdown."""
    text = re.sub(r"<[^>]+>", "", cell.replace("<br>", "; ")) if isinstance(cell, Markup) else cell
    return (unescape(text) if isinstance(cell, Markup) else text).replace("|", "\\|").replace("\n", " ")


def as_csv(found: Sequence[Row]) -> str:
    """The rows as CSV, with unformatted numbers (fractions, hours); absent values are empty."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in found:
        writer.writerow("" if value is None or value != value else value for value in _values(row))
    return out.getvalue()


def _values(row: Row) -> list[Any]:
    m, recipe = row.found, row.recipe
    p = recipe.published if recipe else None
    last, deviation = mean_and_deviation(m.last if m else ())
    return [
        row.label or None,
        m.name if m else recipe.name if recipe else None,
        row.band,
        m.ensemble if m else None,
        p.parameters if p else None,
        p.mib if p else None,
        row.networks,
        recipe.epochs if recipe else None,
        m.recipe.get("epochs") if m else None,
        row.published,
        "; ".join(f"{top1:g} {mark}" for mark, top1 in (p.references if p and row.band is None else {}).items()),
        last,
        deviation,
        row.difference,
        mean(m.best if m else ()),
        ", ".join(row.changed),
        row.hours,
        p.hardware if p else None,
        mean(m.seconds if m else ()) / 3600,
        m.hardware if m else None,
        m.precision if m else None,
        len(m.last) if m else 0,
        " ".join(m.seeds) if m else None,
    ]
