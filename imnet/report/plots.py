"""The report's drawings: curves as inline SVG, the worst images as one PNG.

matplotlib and Pillow are imported inside the functions, so that ``imnet-report --help`` stays fast.
"""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from imnet.errors import DataError
from imnet.report.lines import mean
from imnet.report.markup import Markup

if TYPE_CHECKING:
    import numpy as np

# matplotlib needs literal colours; these are replaced in the SVG text by the page's CSS variables.
INK, GRID = "#010203", "#040506"
SERIES = tuple(f"#0a0b{number:02x}" for number in range(8))
DASHES = ("-", "--", ":", "-.")
MAX_POINTS = 600  # more than the pixels of a phone or half a desktop; keeps the page of 1e5 lines small
CROWD = 12  # with more curves than this, they are drawn thinner
SMOOTHING = 40  # a running mean is over 1/40 of the points

SIZE_IN = (4.9, 2.9)
DIGIT_IN = 0.09  # the width of a digit of 10 points in a wide font

TILE_PX = 128
CAPTION_PX = 34


@dataclass(frozen=True, kw_only=True)
class Curve:
    """One line of a plot; non-finite values are gaps. ``color`` indexes the page's eight series colours."""

    x: Sequence[float]
    y: Sequence[float]
    label: str = ""
    color: int = 0
    dash: int = 0
    faint: bool = False


def curves_svg(
    name: str,
    curves: Sequence[Curve],
    *,
    x_label: str,
    y_label: str,
    log_y: bool = False,
    level: tuple[float, str] | None = None,
    mark_x: float | None = None,
) -> Markup:
    """Draw ``curves`` as one inline ``<svg>``, equal for equal input.

    ``name`` makes the ids of several drawings in one page unique; ``level`` is a dashed horizontal line with its text,
    and ``mark_x`` a vertical line (the first non-finite loss).
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    # No pyplot, which keeps global state and may look for a display. rcdefaults, so that a user's matplotlibrc does not
    # change the page. Text stays text, which is small, searchable and in the page's colour.
    settings: Any = {"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 10, "axes.edgecolor": INK}
    settings |= {"figure.facecolor": "none", "axes.facecolor": "none", "savefig.facecolor": "none"}
    settings |= dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), INK)
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure = Figure(figsize=SIZE_IN)
        axes = figure.add_subplot()
        for curve in curves:
            _draw(axes, curve, 1.8 if len(curves) <= CROWD else 1.2)
        if level is not None:
            _draw_level(axes, *level)
        if mark_x is not None:
            axes.axvline(mark_x, color=SERIES[4], linewidth=1.2, linestyle=":")
        _dress(axes, x_label, y_label, log_y, any(curve.label for curve in curves))
        _place(figure, axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None})  # a date would be read from $SOURCE_DATE_EPOCH
    return _inline(out.getvalue(), name, f"{y_label} against {x_label}")


def _draw(axes: Any, curve: Curve, width: float) -> None:
    x, y = thin(curve.x, curve.y)
    axes.plot(
        x,
        y,
        color=SERIES[curve.color % len(SERIES)],
        linestyle=DASHES[curve.dash % len(DASHES)],
        linewidth=min(1.0, 0.7 * width) if curve.faint else width,
        alpha=0.4 if curve.faint else 1.0,
        label=curve.label or None,
        marker="o" if len(x) <= 25 and not curve.faint else None,
        markersize=3.5,
    )


def _draw_level(axes: Any, y: float, text: str) -> None:
    axes.axhline(y, color=INK, linewidth=1.0, linestyle=(0, (4, 3)))
    # Accuracies rise towards the published line from below left, so that the space above it on the left is free.
    axes.annotate(text, (0.01, y), xycoords=("axes fraction", "data"), xytext=(0, 3), textcoords="offset points")


def _dress(axes: Any, x_label: str, y_label: str, log_y: bool, legend: bool) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.margins(y=0.12)
    if x_label == "epoch" and axes.get_xlim()[1] >= 3:
        axes.xaxis.get_major_locator().set_params(integer=True)
    if log_y:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: "")
    axes.grid(color=GRID, linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_axisbelow(True)
    if legend:
        axes.legend(frameon=False, fontsize=9.5)


def _place(figure: Any, axes: Any) -> None:
    """Set margins for the numbers beside the axes. matplotlib's own layouts measure them by drawing everything once
    more, which takes half of a page's time."""
    low, high = sorted(axes.get_ylim())
    told = axes.yaxis.get_major_formatter()
    longest = max(map(len, told.format_ticks([y for y in axes.get_yticks() if low <= y <= high])), default=0)
    left, right, bottom, top = 0.36 + DIGIT_IN * longest, 0.2, 0.48, 0.3 if told.get_offset() else 0.1
    width, height = SIZE_IN
    figure.subplots_adjust(left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - top / height)


def _inline(svg: str, name: str, label: str) -> Markup:
    """The ``<svg>`` element alone, with unique ids and the page's colours.

    Metadata is removed because the page needs none, and the style element because its ``*`` would style all of it.
    """
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="([^"]*)"', svg)
    assert view_box is not None
    opening = f'<svg viewBox="{view_box[1]}" role="img" aria-label="{escape(label)}">'
    svg = opening + svg[svg.index(">") + 1 :]
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    variables = {INK: "var(--ink)", GRID: "var(--line)"}
    variables |= {color: f"var(--c{number})" for number, color in enumerate(SERIES)}
    for color, variable in variables.items():
        svg = svg.replace(color, variable)
    return Markup(svg)


def thin(x: Sequence[float], y: Sequence[float], limit: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Reduce to at most ``limit`` points, the means of equal stretches; one without a finite value is a gap (NaN)."""
    width = math.ceil(len(x) / limit)
    starts = range(0, len(x), max(width, 1))
    return [mean(x[at : at + width]) for at in starts], [mean(y[at : at + width]) for at in starts]


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the finite values in a ``window`` around each value; a value that is not finite becomes NaN, a gap.

    The window is centred, and narrower at the ends: a trailing mean lags, which would draw a falling training loss
    above the test loss.
    """
    last = len(values) - 1
    means = []
    for at, value in enumerate(values):
        reach = min(window // 2, at, last - at)
        means.append(mean(values[at - reach : at + reach + 1]) if math.isfinite(value) else math.nan)
    return means


def smoothed(x: Sequence[float], y: Sequence[float], label: str, color: int) -> tuple[list[Curve], str]:
    """(curves, words for the caption): the values as they are, or if there are many, faint below their running mean."""
    if len(x) <= 60:
        return [Curve(x=x, y=y, label=label, color=color)], ""
    x, y = thin(x, y)
    window = max(3, len(x) // SMOOTHING)
    bold = Curve(x=x, y=running_mean(y, window), label=label, color=color)
    return [Curve(x=x, y=y, color=color, faint=True), bold], f"bold: running mean over {100 * window / len(x):.0f} %"


def contact_sheet(images_uint8: np.ndarray, captions: Sequence[str], columns: int = 4) -> bytes:
    """A PNG of the images in rows of ``columns``, each above its caption (at most two lines).

    ``images_uint8`` is (n, H, W, C) with C = 1 or 3. Small images are enlarged by integer factors, so that pixels stay
    visible; large ones are reduced to 128 px. DataError for any other shape or dtype.
    """
    from PIL import Image, ImageDraw

    if images_uint8.ndim != 4 or images_uint8.dtype != "uint8" or images_uint8.shape[3] not in (1, 3):
        got = f"{images_uint8.dtype} {tuple(images_uint8.shape)}"
        raise DataError(f"contact sheet: got {got}, must be uint8 (n, H, W, C) with C = 1 or 3")
    if len(captions) != len(images_uint8) or not len(captions):
        raise DataError(f"contact sheet: got {len(images_uint8)} images and {len(captions)} captions, must be equal")
    columns = min(columns, len(captions))
    rows = math.ceil(len(captions) / columns)
    cell_w, cell_h = TILE_PX + 8, TILE_PX + CAPTION_PX + 8
    sheet = Image.new("RGB", (columns * cell_w, rows * cell_h), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (pixels, caption) in enumerate(zip(images_uint8, captions, strict=True)):
        left, top = number % columns * cell_w + 4, number // columns * cell_h + 4
        tile = _tile(pixels)
        sheet.paste(tile, (left + (TILE_PX - tile.width) // 2, top + (TILE_PX - tile.height) // 2))
        _write_caption(draw, caption, left, top + TILE_PX + 2)
    out = io.BytesIO()
    sheet.save(out, format="PNG")
    return out.getvalue()


def _tile(pixels: np.ndarray) -> Any:
    """Turn uint8 (H, W, C) into an RGB image whose longer side is at most TILE_PX."""
    from PIL import Image

    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
    longer = max(image.size)
    if longer > TILE_PX:
        width, height = (max(1, round(side * TILE_PX / longer)) for side in image.size)
        return image.resize((width, height), Image.Resampling.LANCZOS)
    factor = TILE_PX // longer
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _write_caption(draw: Any, caption: str, left: int, top: int) -> None:
    from PIL import ImageFont

    font = ImageFont.load_default(size=12)
    lines = [""]
    for word in caption.split():
        joined = f"{lines[-1]} {word}".strip()
        if not lines[-1] or draw.textlength(joined, font=font) <= TILE_PX:
            lines[-1] = joined
        else:
            lines.append(word)
    if len(lines) > 2:
        lines = [lines[0], " ".join(lines[1:])]
    for number, line in enumerate(lines):
        draw.text((left, top + number * 15), _fit(draw, line, font), fill="black", font=font)


def _fit(draw: Any, line: str, font: Any) -> str:
    if draw.textlength(line, font=font) <= TILE_PX:
        return line
    while line and draw.textlength(line + "...", font=font) > TILE_PX:
        line = line[:-1]
    return line + "..."
