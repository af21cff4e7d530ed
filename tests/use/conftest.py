"""A small run and its test images as files, for the tests of evaluation, prediction and export."""

import contextlib
import os
import shutil
import sys
from dataclasses import replace

import pytest
from PIL import Image

import imnet
from imnet.from_recipe import load_data
from imnet.run_options import RunOptions

QUICK = imnet.recipes["quickstart"]
TINY = imnet.replace(
    QUICK,
    epochs=1,
    model_options={"width": 8},
    data=imnet.replace(QUICK.data, train_images=64, test_images=20, image_px=16, batch_images=16),
)
"""A training of a few steps."""


@pytest.fixture(scope="session")
def _trained(tmp_path_factory):
    base = imnet.recipes["quickstart"]
    data = replace(base.data, train_images=128, test_images=64, image_px=16, batch_images=32)
    recipe = replace(base, data=data, augment=replace(base.augment, crop_pad_px=1, cutout_px=0), epochs=2)
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "eval_every_epochs": 1}
    return imnet.train(recipe, out=tmp_path_factory.mktemp("run") / "r", **options).path


@pytest.fixture(scope="module")
def run(_trained, tmp_path_factory):
    """A copy for each file of tests, since evaluations are written beside the run's own."""
    return imnet.load_run(shutil.copytree(_trained, tmp_path_factory.mktemp("run") / "r"))


@pytest.fixture(scope="module")
def split(run):
    return load_data(run.recipe, RunOptions(device="cpu")).test


@pytest.fixture(scope="module")
def folder(run, split, tmp_path_factory):
    """The test images as files, one folder per class; sorted by name, the classes are not in the network's order."""
    where = tmp_path_factory.mktemp("pictures") / "set"
    names = run.info["data"]["class_names"]
    assert list(names) != sorted(names)
    for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (where / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(where / names[label] / f"{i:03}.png")
    return where


@pytest.fixture
def pictures(split, tmp_path):
    """A folder with six good pictures, two of them in a subfolder, a damaged one, and files that are not pictures."""
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for i in range(6):
        where = folder / "more" if i > 3 else folder
        Image.fromarray(split.images[i]).save(where / f"{i}.png")
    (folder / "cut.jpg").write_bytes(b"\xff\xd8\xff")
    (folder / ".hidden.png").write_bytes(b"")
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def unread(monkeypatch):
    """A context in which the reader of the standard output has gone, as after ``| head -1``."""

    @contextlib.contextmanager
    def gone():
        end, start = os.pipe()
        os.close(end)
        with open(start, "w", buffering=1) as nobody, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", nobody)
            yield

    return gone
