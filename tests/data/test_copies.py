"""Evaluated images that are trained on as well: all are found, and reported wherever the accuracy is."""

from pathlib import Path

import numpy as np
import pytest

import imnet
from imnet import data, report
from imnet.data import copies
from imnet.data.base import EncodedSplit, Split
from imnet.dryrun import text
from imnet.run_options import RunOptions
from tests.data.making import class_files, picture, write_tree


def split_of(contents, encoded):
    """A split of ``contents`` (N, ...): as pixels, or as "encoded" files that are equal if the contents are."""
    labels = np.arange(len(contents)) % 3
    if not encoded:
        return Split(contents, labels)
    files = [row.tobytes().lstrip(b"\0") for row in contents]
    return EncodedSplit(files.__getitem__, labels, 8, Path("made"), np.array([*map(len, files)], np.uint32))


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize(("shape", "levels"), [((1, 1, 1), 5), ((2, 2, 1), 2), ((3, 1, 3), 2), ((9, 9, 3), 256)])
def test_all_that_are_there_and_no_others(encoded, shape, levels):
    rng = np.random.default_rng(levels)
    train, judged = (rng.integers(0, levels, (n, *shape), dtype=np.uint8) for n in (60, 25))
    judged[5:8] = train[11]
    found = {j: i for i, j in copies.pairs(split_of(train, encoded), split_of(judged, encoded))}
    wanted = {j for j in range(25) if (train == judged[j]).all((1, 2, 3)).any()}
    assert set(found) == wanted
    assert {5, 6, 7} <= wanted
    assert all((train[i] == judged[j]).all() for j, i in found.items())


def test_one_byte_makes_another_image():
    rng = np.random.default_rng(0)
    train = rng.integers(0, 256, (40, 16, 16, 3), dtype=np.uint8)
    judged = train.copy()
    for j in range(1, 40):
        judged[j].reshape(-1)[rng.integers(768)] ^= 1
    for encoded in (False, True):
        assert copies.pairs(split_of(train, encoded), split_of(judged, encoded)) == [(0, 0)]


def test_nothing_is_looked_for_where_that_would_read_too_much(monkeypatch):
    same = np.random.default_rng(0).integers(1, 256, (10, 8, 8, 3), dtype=np.uint8)
    monkeypatch.setattr(copies, "MOST_BYTES", 2 * same.nbytes - 1)
    for encoded in (False, True):
        split = split_of(same, encoded)
        assert copies.pairs(split, split) is None
        monkeypatch.setattr(copies, "MOST_BYTES", 2 * same.nbytes)
        assert len(copies.pairs(split, split)) == 10
        monkeypatch.setattr(copies, "MOST_BYTES", 2 * same.nbytes - 1)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder with two validation pictures that are also in train, one of them under another class."""
    folder = tmp_path_factory.mktemp("photos")
    files = class_files("train", 8) | class_files("val", 4, seed=5000)
    train, val = ([name for name in files if name.startswith(part)] for part in ("train", "val"))
    files[val[0]], files[val[1]] = files[train[0]], files[train[-1]]
    write_tree(folder, files)
    return folder


def recipe_for(whole):
    base = imnet.recipes["quickstart"]
    return imnet.replace(
        base, epochs=1, model_options={"width": 8},
        data=imnet.replace(base.data, name="folder", image_px=16, num_classes=3, batch_images=8, train_images=None,
                           test_images=None),
        augment=imnet.replace(base.augment, crop_pad_px=0, cutout_px=0, **(
            {"crop_scale": (0.5, 1.0), "crop_px": 16, "resize_eval_px": 18} if whole else {})),
    )  # fmt: skip


@pytest.mark.parametrize("whole", [False, True])
def test_what_was_not_looked_for_is_said_wherever_the_figure_is(photos, tmp_path, monkeypatch, whole):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(copies, "MOST_BYTES", 1000)
    recipe = recipe_for(whole)
    run = imnet.train(recipe, out=tmp_path / "run", data_dir=str(photos), device="cpu", precision="fp32", threads=1)
    assert run.info["data"]["copies"] == {"test": None}
    assert "not looked for: test images that are trained on as well" in text(
        recipe, RunOptions(data_dir=str(photos), device="cpu")
    )
    told = "Whether any are trained on as well was not looked for, the set being too large: the test images."
    assert told in report.summary(run.path)
    assert told in (run.path / "report.html").read_text()


@pytest.mark.parametrize("whole", [False, True])
def test_a_run_on_a_folder_says_so_wherever_its_figure_is(photos, tmp_path, monkeypatch, whole):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe = recipe_for(whole)
    run = imnet.train(recipe, out=tmp_path / "run", data_dir=str(photos), device="cpu", precision="fp32", threads=1)
    assert run.info["data"]["encoded"] == whole
    assert run.info["data"]["copies"] == {"test": 2}
    said = "trained on as well, to the byte: 2 of 12 test images, 1 of them of another class"
    assert said in run.dataset(None, "cpu")[0].notes
    assert said in text(recipe, RunOptions(data_dir=str(photos), device="cpu"))
    told = "Trained on as well, to the byte: 2 of the test images. Their figures are better than those of new images."
    assert f"note               {told}" in report.summary(run.path)
    assert told in (run.path / "report.html").read_text()


def test_held_out_copies_are_counted_where_they_were_left(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = picture(3)
    files = {
        f"{name}/{i}.jpg": one if i < 10 else picture(10 * i + len(name)) for name in ("a", "bb") for i in range(20)
    }
    write_tree(tmp_path / "set", files)
    found = data.load("folder", tmp_path / "set", image_px=16, hold_out=0.5, val_images=4)
    test, val = (part.images for part in (found.test, found.val) if isinstance(part, Split))
    assert isinstance(found.train, Split)
    rows = {row.tobytes() for row in found.train.images}
    counts = {name: sum(row.tobytes() in rows for row in part) for name, part in (("test", test), ("val", val))}
    assert found.copies == {name: count for name, count in counts.items() if count}
    assert counts["test"] > 0


def test_a_set_without_copies_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_tree(tmp_path / "set", class_files("train", 4) | class_files("val", 2, seed=900))
    found = data.load("folder", tmp_path / "set", image_px=16)
    assert found.copies == {}
    assert not any("trained on as well" in note for note in found.notes)
