"""Settings of the whole test run."""

import dataclasses
import functools
import gc
import os
import pickle
import subprocess

import pytest

from imnet.report import comparison, plots, quality, sections

# A run that takes all cores would keep them from the other processes while its threads wait for one another: such tests
# take three times as long. With this policy, which torch reads when it is imported, its threads sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


def pytest_collection_finish():
    """Keeps Python's collector from going through torch's modules and the tests again and again: about a tenth of the
    processor time of the tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 20, 100)


@pytest.fixture(autouse=True, scope="session")
def drawn_once():
    """Draws equal curves once, because a drawing depends on its arguments alone and most of the tests' runs have the
    same losses and learning rates. Drawing all of them took a fifth of the processor time of the tests' runs. Images/s
    are others in every run: of those that are neither absent nor extreme, one drawing stands for all."""
    drawings = {}

    def usual(curve):
        return dataclasses.replace(curve, y=[1.0 if 1 <= y < 1e6 else y for y in curve.y])

    @functools.wraps(plots.curves_svg)
    def curves_svg(name, curves, **how):
        key = pickle.dumps((name, list(map(usual, curves)) if how["y_label"] == "images/s" else curves, how))
        if key not in drawings:
            drawings[key] = plots.curves_svg(name, curves, **how)
        return drawings[key]

    with pytest.MonkeyPatch.context() as patch:
        for drawing in (comparison, quality, sections):
            patch.setattr(drawing, "curves_svg", curves_svg)
        yield


@pytest.fixture
def busy():
    """Keeps every core of this process busy with another program."""
    words = ["sh", "-c", "echo; while :; do :; done"]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in os.sched_getaffinity(0)]
    for other in others:
        other.stdout.readline()
    yield
    for other in others:
        other.kill()
        other.communicate()
