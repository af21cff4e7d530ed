"""imnet-profile data: stages of a set of pixels and of encoded pictures, against bytes counted by hand."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.profile.cli import main
from bench.profile.data import stages, timed
from imnet.data.base import EncodedSplit
from imnet.data.order import Order
from imnet.data.pipelines import Setting
from imnet.data.pipelines.batches import Batches
from imnet.data.pipelines.encoded import Decoder
from imnet.recipe import Augment, replace
from imnet.recipes import by_name

COMMON = ["--device", "cpu", "--threads", "1"]
CPU = torch.device("cpu")


def data(out, *words):
    return main(["data", *words, *COMMON, "--out", str(out)])


def test_stages_of_pixels(tmp_path, capsys):
    assert data(tmp_path, "--images", "128", "--batch-size", "32", "--precision", "bf16") == 0
    found = json.loads((tmp_path / "data.json").read_text())
    pixels = 32 * 32 * 32 * 3
    moved = {row["stage"]: row["bytes"] for row in found["stages"]}
    assert moved == {"read": 2 * pixels, "augment": 5 * pixels, "cast to bfloat16": 6 * pixels}
    assert sum(row["share"] for row in found["stages"]) == pytest.approx(1.0)
    total = sum(row["seconds"] for row in found["stages"])
    for row in found["stages"]:
        assert row["share"] == pytest.approx(row["seconds"] / total)
        assert row["images_per_s"] * row["seconds"] == pytest.approx(32)
        assert row["bytes_per_s"] * row["seconds"] == pytest.approx(row["bytes"])
    slowest = max(found["stages"], key=lambda row: row["seconds"])
    assert f"most of it is {slowest['stage']}" in capsys.readouterr().out


def test_random_images_stand_in_for_a_set(tmp_path):
    assert data(tmp_path, "--recipe", "imagenet64/wrn36_5", "--synthetic", "--batch-size", "4") == 0
    found = json.loads((tmp_path / "data.json").read_text())
    assert (found["data"], found["images"], found["image_shape"]) == ("synthetic", 64, [64, 64, 3])
    assert found["stages"][0]["bytes"] == 2 * 4 * 64 * 64 * 3


def encoded_split(sizes):
    """PNGs of random pixels, one of each (height, width)."""
    generator, files = np.random.default_rng(0), []
    for height, width in sizes:
        out = io.BytesIO()
        Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(out, "PNG")
        files.append(out.getvalue())
    labels = np.zeros(len(files), dtype=np.int64)
    return EncodedSplit(files.__getitem__, labels, 16, Path("made.zip"), sum(map(len, files))), files


@pytest.mark.parametrize(("cropped", "side"), [(False, 16), (True, 12)])
def test_stages_of_encoded_pictures(cropped, side):
    split, files = encoded_split([(20, 31), (40, 18), (16, 16), (25, 25)])
    crop = {"crop_scale": (0.1, 1.0), "crop_px": 12} if cropped else {}
    augment = Augment(mean=(0.5,), std=(0.25,), **crop)
    recipe = replace(by_name("quickstart"), augment=augment)
    setting = Setting(augment=augment, seed=0, device=CPU, dtype=torch.float32, order=Order(4, 4, 0))
    found = {stage.name: stage for stage in stages(recipe, split, setting)}
    assert list(found) == ["read", "decode, crop, resize", "augment"]
    encoded, pixels = sum(map(len, files)), 4 * side * side * 3
    assert found["read"].num_bytes == encoded
    assert sorted(found["read"].call()) == sorted(files)
    assert found["decode, crop, resize"].num_bytes == encoded + pixels
    assert found["augment"].num_bytes == 5 * pixels
    images, _ = found["augment"].call()
    whole = Batches(Decoder(split, augment, 0), augment, seed=0, dtype=torch.float32, mean=None)
    assert images.shape == (4, 3, side, side)
    assert torch.equal(images, whole.batch(setting.order.batch(setting.order.epoch(0), 0), 0, True)[0])
    rows = timed(list(found.values()), 4, CPU)
    assert sum(row["share"] for row in rows) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--recipe", "quickstarts"], 2, "did you mean quickstart?"),
        (["--synthetic", "--data-dir", "x"], 2, "give one of them"),
        (["--batch-size", "-1"], 2, "a whole number from 1"),
        (["--recipe", "imagenet64/wrn36_5", "--data-dir", "no-such-folder"], 65, "no-such-folder"),
    ],
)
def test_mistakes_are_one_line(words, code, said, tmp_path, capsys):
    assert data(tmp_path, *words) == code
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error
