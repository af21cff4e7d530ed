"""Pictures with matplotlib: bars of published and measured throughput, and the roofline of a kernel family."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from imnet.errors import DeviceError, IOFailure, UsageError
from imnet.files import check_output

from .form import scaled, short

INK, FAINT, GRID = "#1f2933", "#7b8794", "#e4e7eb"
PUBLISHED, MEASURED = "#9aa5b1", "#1f6f8b"
COLOURS, MARKERS = ("#2563a8", "#c2410c", "#15803d", "#7c3aed", "#b45309", "#0e7490"), "oDs^vP"
SUFFIXES = (".png", ".svg", ".pdf")
DRAWN_BY = "imnet-bench"
BELOW_MAIN = 50
"""The roofline's lower limit is the slowest real case divided by this; slower test cases fall outside the picture."""


def check(path: Path) -> None:
    """Raise an error, before anything is measured, if the picture could not be drawn or written."""
    if path.suffix not in SUFFIXES:
        raise UsageError(f"got --picture {path.name}; allowed: names that end in {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise IOFailure("no such folder", file=path.parent, hint="make it, or choose another --picture")
    check_output(path, DRAWN_BY.encode(), "--picture")
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise DeviceError("got --picture, but matplotlib is not installed", hint="pip install matplotlib") from error


@contextmanager
def _drawn(path: Path, height_in: float, title: str) -> Iterator[Any]:
    """Give empty axes in this project's style and write them to ``path`` at the end. The bytes are deterministic."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update({"svg.hashsalt": "imnet", "svg.fonttype": "none", "font.size": 9, "text.color": INK})
        figure = Figure(figsize=(9, height_in), layout="constrained")
        axes = figure.add_subplot()
        axes.set_title(title, loc="left")
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        yield axes
        word = "Software" if path.suffix == ".png" else "Creator"
        metadata = {word: DRAWN_BY} | ({"Date": None} if path.suffix == ".svg" else {})
        try:
            figure.savefig(path, dpi=150, metadata=metadata)
        except OSError as error:
            raise IOFailure(f"picture: {error.strerror}", file=path, hint="choose another file") from error


def bars(path: Path, rows: list[dict[str, Any]], where: str) -> None:
    """Draw two bars per network. ``rows`` come from ``throughput.compared``; ``where`` names this machine."""

    def note(row: dict[str, Any], key: str) -> str:
        less = "" if row["batch_images"] == row["recipe_batch_images"] else f", batch of {row['batch_images']}: rough"
        return short(row[key]) + (f"   {row['ratio']:.3g}x{less}" if key == "images_per_s" else "")

    sides = (
        ("published_images_per_s", -0.19, PUBLISHED, f"published, {rows[0]['card']}"),
        ("images_per_s", 0.19, MEASURED, f"measured, {where}"),
    )
    rates = [row[key] for key, *_ in sides for row in rows]
    with _drawn(path, 1.9 + 0.75 * len(rows), "") as axes:
        for key, at, colour, label in sides:
            axes.barh([i + at for i in range(len(rows))], [r[key] for r in rows], 0.34, color=colour, label=label)
            for i, row in enumerate(rows):
                axes.annotate(note(row, key), (row[key], i + at), (5, 0), textcoords="offset points", va="center")
        axes.set(xscale="log", xlim=(min(rates) / 2, max(rates) * 6))
        axes.set_xlabel("training images per second, end to end (logarithmic)")
        axes.set_yticks(range(len(rows)), [f"{r['model']}\n{r['image_px']} px" for r in rows])
        axes.invert_yaxis()
        axes.grid(axis="x", color=GRID)
        axes.figure.legend(loc="outside upper left", ncols=1, frameon=False)


def roofline(
    path: Path, title: str, rows: Sequence[dict[str, Any]], bytes_per_s: float, flops_per_s: dict[str, float]
) -> str:
    """Draw FLOP/s over FLOP per byte of the rows of ``imnet-profile kernels``, with the measured bandwidth and peak of
    the device as roofs. Returns a line to print: the path, or the reason why nothing was drawn."""
    shown = [(r, r["flops"] / r["bytes"], r["flops"] / r["median_s"]) for r in rows if r["flops"] and r["bytes"]]
    if not shown:
        return "no roofline: no case computes anything"
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return "no roofline: matplotlib is not installed (pip install matplotlib)"
    low = min(x for _, x, _ in shown) / 3
    high = 4 * max([x for _, x, _ in shown] + [peak / bytes_per_s for peak in flops_per_s.values()])
    least = min([y for r, _, y in shown if r["real"]] or [y for _, _, y in shown]) / BELOW_MAIN
    with _drawn(path, 5.0, title) as axes:
        ridge = max(flops_per_s.values()) / bytes_per_s
        label = f"copy {scaled(bytes_per_s, 'B/s')}"
        axes.plot([low, ridge], [low * bytes_per_s, ridge * bytes_per_s], color=INK, label=label)
        for name, peak in flops_per_s.items():
            label = f"{name} matrix product {scaled(peak, 'FLOP/s')}"
            axes.plot([peak / bytes_per_s, high], [peak, peak], color=INK, linestyle="--", label=label)
        for i, (row, x, y) in enumerate(one for one in shown if one[0]["real"]):
            label, colour = f"{row['case']}: {scaled(row['bytes_per_s'], 'B/s')}", COLOURS[i % len(COLOURS)]
            axes.scatter([x], [y], s=70, color=colour, marker=MARKERS[i % len(MARKERS)], label=label, zorder=4)
        odd = [(x, y) for row, x, y in shown if not row["real"]]
        if odd:
            x, y = zip(*odd, strict=True)
            axes.scatter(x, y, s=16, color=FAINT, alpha=0.6, label="odd shapes of the tests", zorder=3)
        axes.set(xscale="log", yscale="log", xlim=(low, high), ylim=(least, 2 * max(flops_per_s.values())))
        axes.set(xlabel="arithmetic intensity, FLOP per byte", ylabel="FLOP/s")
        axes.grid(True, which="major", color=GRID)
        axes.legend(loc="lower right", edgecolor="none", framealpha=1.0)
    return f"roofline: {path}"
