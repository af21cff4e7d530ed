"""Formatting of figures: readable numbers, and tables as Markdown or as columns for a terminal."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import Any

NOT_MEASURED = "not measured"
Row = dict[str, Any]


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, ["---"] * len(head), *rows])


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in columns two spaces apart: the first is left-aligned, the others right-aligned."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    pairs = [zip(line, widths, strict=True) for line in lines]
    found = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(p)).rstrip() for p in pairs]
    return "\n".join([found[0], "-" * len(found[0]), *found[1:]])


def duration(seconds: float) -> str:
    """A time in s, ms or us with three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def short(value: float | None) -> str:
    """A number with three digits, or from 100 on as a whole number; NOT_MEASURED for None."""
    if value is None:
        return NOT_MEASURED
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits with a decimal prefix, e.g. 12.3 GB/s; ``-`` for None."""
    if value is None:
        return "-"
    for size, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:{'.3g' if abs(value / size) < 999.5 else '.0f'}} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def spread(values: Sequence[float], scale: float, digits: int) -> str:
    """The values times ``scale`` as mean ± sample standard deviation; of a single value only the mean."""
    mean = f"{statistics.fmean(values) * scale:.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values) * scale:.{digits}f}"


def grouped(rows: Iterable[Row], *names: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows grouped by their values of ``names``; groups are in the order of their first rows."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found
