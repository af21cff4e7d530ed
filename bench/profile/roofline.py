"""The roofline: FLOP/s over FLOP per byte, under what the device was measured to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .report import saved, scaled

_INK, _FAINT, _GRID = "#1f2933", "#7b8794", "#e4e7eb"
_COLOURS = ("#2563a8", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490")
_WIDTH_IN, _HEIGHT_IN = 8.0, 5.0
_BELOW_MAIN = 50
_LABEL_AT = 0.72
"""Of the way up to the ridge: cases in the caches lie above the line further down."""


@dataclass(frozen=True)
class Point:
    """A measured call: FLOPs, bytes, seconds; ``main`` ones are named and coloured, the others are small and grey."""

    name: str
    flops: int
    num_bytes: int
    seconds: float
    main: bool = True

    @property
    def intensity(self) -> float:
        return self.flops / self.num_bytes

    @property
    def flops_per_s(self) -> float:
        return self.flops / self.seconds


def draw(
    path: Path, title: str, points: Sequence[Point], bytes_per_s: float, flops_per_s: dict[str, float]
) -> str | None:
    """Write the picture (the suffix says which kind: .svg, .png); why not, where it cannot be drawn."""
    shown = [p for p in points if p.flops and p.num_bytes and p.seconds > 0]
    if not shown:
        return "no roofline: no case computes anything"
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        return "no roofline: matplotlib is not installed (pip install matplotlib)"
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(
            {
                "svg.hashsalt": title,
                "svg.fonttype": "none",
                "font.size": 10,
                "axes.edgecolor": _FAINT,
                "text.color": _INK,
            }
        )
        figure = Figure(figsize=(_WIDTH_IN, _HEIGHT_IN), layout="constrained")
        axes = figure.add_subplot()
        _draw_roofs(axes, shown, bytes_per_s, flops_per_s)
        _draw_points(axes, shown)
        _dress(axes, title)
        kind = path.suffix.removeprefix(".")
        metadata = {"Date": None} if kind == "svg" else {}
        saved(path, lambda name: figure.savefig(name, format=kind, dpi=150, metadata=metadata))
    return None


def _draw_roofs(axes: Any, points: Sequence[Point], bytes_per_s: float, flops_per_s: dict[str, float]) -> None:
    ridges = [peak / bytes_per_s for peak in flops_per_s.values()]
    low = min(p.intensity for p in points) / 3
    high = max([p.intensity for p in points] + ridges) * 4
    bottom = min([*_heights(points), low * bytes_per_s]) / 2
    top = max([*flops_per_s.values(), high * bytes_per_s if not ridges else 0.0]) * 2.2
    axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(bottom, top))
    end = max(ridges, default=high)
    axes.plot([low, end], [low * bytes_per_s, end * bytes_per_s], color=_INK, linewidth=1.8)
    at = low * (min(ridges, default=high) / low) ** _LABEL_AT
    axes.annotate(
        f"copy {scaled(bytes_per_s, 'B/s')}", (at, at * bytes_per_s), xytext=(0, 6), textcoords="offset points",
        rotation=_angle(axes, low, high, bottom, top), rotation_mode="anchor", ha="center", color=_INK,
    )  # fmt: skip
    for name, peak in flops_per_s.items():
        axes.plot([peak / bytes_per_s, high], [peak, peak], color=_INK, linewidth=1.8, linestyle="--")
        label = f"{name} matrix product {scaled(peak, 'FLOP/s')}"
        axes.annotate(label, (high, peak), xytext=(-4, 5), textcoords="offset points", ha="right", color=_INK)


def _angle(axes: Any, low: float, high: float, bottom: float, top: float) -> float:
    """Of a line of slope one in logarithmic axes, in degrees on the page; the axes fill about this share of it."""
    import math

    across = _WIDTH_IN * 0.88 / math.log10(high / low)
    up = _HEIGHT_IN * 0.80 / math.log10(top / bottom)
    return math.degrees(math.atan2(up, across))


def _heights(points: Sequence[Point]) -> list[float]:
    """FLOP/s of the points that are drawn: small odd ones far below the main ones would squeeze these together."""
    least = min((p.flops_per_s for p in points if p.main), default=0.0) / _BELOW_MAIN
    return [p.flops_per_s for p in points if p.flops_per_s >= least]


def _draw_points(axes: Any, points: Sequence[Point]) -> None:
    for i, p in enumerate(p for p in points if p.main):
        label = f"{p.name}: {scaled(p.num_bytes / p.seconds, 'B/s')}"
        colour, marker = _COLOURS[i % len(_COLOURS)], "oDs^vP"[i % 6]
        axes.scatter([p.intensity], [p.flops_per_s], s=70, color=colour, marker=marker, label=label, zorder=4)
    least = min(_heights(points))
    others = [p for p in points if not p.main and p.flops_per_s >= least]
    below = len([p for p in points if p.flops_per_s < least])
    if others or below:
        x, y = [p.intensity for p in others], [p.flops_per_s for p in others]
        label = "odd shapes of the tests" + (f" ({below} more below)" if below else "")
        axes.scatter(x, y, s=16, color=_FAINT, alpha=0.6, linewidths=0, label=label, zorder=3)


def _dress(axes: Any, title: str) -> None:
    axes.set_xlabel("arithmetic intensity, FLOP per byte", color=_INK)
    axes.set_ylabel("FLOP/s", color=_INK)
    axes.set_title(title, color=_INK, loc="left")
    axes.grid(True, which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors=_INK, which="both", length=3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9, labelcolor=_INK)
