"""Bars a model: what was published for a card, and what was measured here. Needs matplotlib."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from imnet.errors import DeviceError, IOFailure, UsageError

from .tables import short

PUBLISHED, MEASURED, INK = "#9aa5b1", "#1f6f8b", "#222222"
SUFFIXES = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Before anything is measured: whether the picture could be drawn and written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"got --picture {path.name}; allowed: names that end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise IOFailure("no such folder", file=path.parent, hint="make it, or choose another --picture")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DeviceError("got --picture, but matplotlib is not installed", hint="pip install matplotlib") from error


def draw(path: Path, rows: list[dict[str, Any]], where: str) -> None:
    """``rows`` are those of ``reference.compared``; ``where`` names this machine."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    card, height = rows[0]["card"], 1.9 + 0.75 * len(rows)
    figure, axes = plt.subplots(figsize=(9, height), layout="constrained")
    largest = max(max(r["images_per_s"], r["published_images_per_s"]) for r in rows)
    least = min(min(r["images_per_s"], r["published_images_per_s"]) for r in rows)
    for i, row in enumerate(rows):
        _bar(axes, i - 0.19, row["published_images_per_s"], PUBLISHED, "")
        less = "" if row["batch_images"] == row["recipe_batch_images"] else f", batch of {row['batch_images']}: rough"
        _bar(axes, i + 0.19, row["images_per_s"], MEASURED, f"   {row['ratio']:.3g}x{less}")
    axes.set_xscale("log")
    axes.set_xlim(least / 2, largest * 6)
    axes.set_yticks(range(len(rows)), [f"{r['model']}\n{r['image_px']} px" for r in rows])
    axes.invert_yaxis()
    axes.set_xlabel("training images per second, end to end (logarithmic)")
    axes.grid(axis="x", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
    handles = [plt.Rectangle((0, 0), 1, 1, color=color) for color in (PUBLISHED, MEASURED)]
    labels = [f"published, {card}", f"measured, {where}"]
    figure.legend(handles, labels, loc="outside upper left", ncols=1, frameon=False, fontsize=9)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise IOFailure(f"picture: {error.strerror}", file=path, hint="choose another --picture") from error
    finally:
        plt.close(figure)


def _bar(axes: Any, at: float, value: float, color: str, note: str) -> None:
    axes.barh(at, value, height=0.34, color=color)
    axes.annotate(
        f"{short(value)}{note}", (value, at), (5, 0), textcoords="offset points", va="center", color=INK, fontsize=9
    )
