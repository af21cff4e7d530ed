"""Draws equal curves of the reports once in the whole test run, in the tests' processes and in those that they fork.

A drawing depends on its arguments alone, and most of the tests' runs have the same losses and learning rates: drawing
all of them took a fifth of the processor time of the tests. Images/s are others in every run: of those that are neither
absent nor extreme, one drawing stands for all.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pickle
from pathlib import Path

from imnet.report import comparison, plots, quality, sections
from imnet.report.markup import Markup

FOLDER = "IMNET_TEST_DRAWINGS"
"""The environment variable that names the folder of the drawings. The server from which tests/train/conftest.py forks
imports this module when it is set."""
USERS = (comparison, quality, sections)


def _usual(curve):
    return dataclasses.replace(curve, y=[1.0 if 1 <= y < 1e6 else y for y in curve.y])


@functools.wraps(plots.curves_svg)
def curves_svg(name, curves, **how):
    drawn = [*map(_usual, curves)] if how["y_label"] == "images/s" else curves
    file = Path(os.environ[FOLDER], hashlib.sha256(pickle.dumps((name, drawn, how))).hexdigest())
    if file.is_file():
        return Markup(file.read_text("utf-8"))
    drawing = plots.curves_svg(name, curves, **how)
    # No other process sees half of it. One without room for it, as some tests want it, draws for itself.
    part = file.with_suffix(f".{os.getpid()}")
    with contextlib.suppress(OSError):
        part.write_text(drawing, "utf-8")
        part.replace(file)
    return drawing


if FOLDER in os.environ:
    for user in USERS:
        user.curves_svg = curves_svg
