"""Drawings of the report: pixels and curves are drawn where the values are."""

from __future__ import annotations

import io
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from run_folders import make_run

from imnet.errors import ImnetError
from imnet.report import contact_sheet
from imnet.report.comparison import marked
from imnet.report.plots import Curve, curves_svg, running_mean, thin
from imnet.report.read import load


@pytest.mark.parametrize(("height", "width", "channels", "n"), [(28, 28, 1, 16), (64, 48, 3, 5), (224, 300, 3, 1)])
def test_contact_sheet_shows_the_pixels_it_was_given(height, width, channels, n):
    images = np.random.default_rng(1).integers(0, 256, (n, height, width, channels), dtype=np.uint8)
    sheet = np.asarray(Image.open(io.BytesIO(contact_sheet(images, ["Ankle boot as Sneaker with 0.99 " * 9] * n))))
    columns, rows = min(n, 4), -(-n // 4)
    assert sheet.shape == (rows * 170, columns * 136, 3)
    assert (sheet[132:170] < 128).any()  # the caption is drawn
    if max(height, width) > 128:
        return
    factor = 128 // max(height, width)
    top, left = 4 + (128 - height * factor) // 2, 4 + (128 - width * factor) // 2
    shown = sheet[top : top + height * factor : factor, left : left + width * factor : factor]
    assert (shown == np.broadcast_to(images[0], (height, width, 3))).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "n"), [((2, 8, 8), "u1", 2), ((2, 8, 8, 4), "u1", 2), ((2, 8, 8, 3), "f4", 2)]
)
def test_contact_sheet_refuses_other_arrays(shape, dtype, n):
    with pytest.raises(ImnetError, match="contact sheet"):
        contact_sheet(np.zeros(shape, dtype), ["x"] * n)
    with pytest.raises(ImnetError, match="captions"):
        contact_sheet(np.zeros((3, 8, 8, 1), "u1"), ["x"] * n)


def test_curve_is_drawn_where_the_values_are():
    y = [0.1, 0.9, 0.4, 0.7, 0.2]
    drawing = curves_svg("t", [Curve(x=[0, 1, 2, 3, 4], y=y, color=2)], x_label="epoch", y_label="loss")
    path = re.search(r'<path d="(M [^"]*)" clip-path="[^"]*" style="fill: none; stroke: var\(--c2\)', drawing)
    assert path is not None
    numbers = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", path[1]), float)
    assert np.corrcoef(numbers[:, 1], y)[0, 1] == pytest.approx(-1.0, abs=1e-6)
    assert np.allclose(np.diff(numbers[:, 0], 2), 0, atol=1e-4)


@pytest.mark.parametrize(
    "y", [[0, 2.5e-4], [0, 2.5e-6], [12_000, 12_100], [1.5e6, 1.2e7], [99.9991, 99.9995], [-0.06, 0.06], [1e-4, 2.3]]
)
def test_no_number_is_cut_off(y):
    wide = y[1] > 100 * y[0] > 0
    drawing = curves_svg("t", [Curve(x=[0, 1], y=y)], x_label="epoch", y_label="learning rate", log_y=wide)
    found = re.findall(r'<text style="[^"]*text-anchor: (\w+)[^"]*" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)', drawing)
    # Numbers are right of the axis' rotated name and below the upper edge, with letters 10 points high.
    named = next(float(x) for _, x, _, text in found if text == "learning rate")
    assert 8 < named < min(float(x) - 6 * len(text) for anchor, x, _, text in found if anchor == "end")
    assert min(float(y) for _, _, y, _ in found) > 7


values = st.lists(st.floats(-1e6, 1e6) | st.just(math.nan), min_size=1, max_size=80)


@settings(deadline=None, max_examples=60)
@given(values, st.integers(1, 30))
def test_running_mean_and_thin_against_numpy(y, window):
    for at, mean in enumerate(running_mean(y, window)):
        reach = min(window // 2, at, len(y) - 1 - at)
        expected = math.nan if math.isnan(y[at]) else np.nanmean(y[at - reach : at + reach + 1])
        assert mean == pytest.approx(expected, rel=1e-9, abs=1e-6, nan_ok=True)
    x, thinned = thin(list(range(len(y))), y, limit=window)
    assert len(x) == len(thinned) <= window
    width = math.ceil(len(y) / window)
    for number, mean in enumerate(thinned):
        part = [value for value in y[number * width : (number + 1) * width] if not math.isnan(value)]
        assert mean == pytest.approx(np.mean(part) if part else math.nan, rel=1e-9, abs=1e-6, nan_ok=True)


def test_ten_recipes_have_ten_looks(tmp_path):
    """The page has only eight colours, so further runs must differ in their dashes."""
    runs = [load(make_run(tmp_path / str(i), recipe={"name": f"r{i}", "model": f"m{i}"})) for i in range(10)]
    looks = [style for _, _, style in marked(runs)]
    assert len(set(looks)) == 10
    seeds = [load(make_run(tmp_path / f"s{i}", seed=i)) for i in range(3)]
    assert len({style for _, _, style in marked(seeds)}) == 3
