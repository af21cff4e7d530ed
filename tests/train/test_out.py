"""A run does not begin in a folder where it would overwrite other files, nor among the pictures that it trains on."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import imnet
from imnet.cli import train_main
from imnet.data.readers import recognise
from imnet.data.tool import main as data_main
from imnet.errors import IOFailure, UsageError
from imnet.run import Run
from imnet.runfolder import WRITTEN

from .conftest import TINY, options

QUICK = [
    "--device",
    "cpu",
    "--precision",
    "fp32",
    "--threads",
    "1",
    "--model",
    "speednet",
    "--model-options.width",
    "8",
]


@pytest.fixture
def pictures(tmp_path) -> Path:
    rng = np.random.default_rng(0)
    for label in "ab":
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(12):
            pixels = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / label / f"{i}.png")
    return tmp_path / "pictures"


def trained(*words: str) -> int:
    return train_main([*words, *QUICK, "--epochs", "1"])


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize("name", WRITTEN)
def test_a_file_of_others_that_a_run_would_replace_is_kept(tmp_path, name):
    """Many other programs use names such as config.yaml and checkpoints/ too."""
    is_folder = name in ("tensorboard", "checkpoints")
    mine = tmp_path / name / "step-00000001.tmp" / "events.out.tfevents.1" if is_folder else tmp_path / name
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_bytes(b"mine")
    with pytest.raises(UsageError, match=f"the folder holds {name} of no run"):
        imnet.train(TINY, **vars(options(tmp_path)))
    assert set(content(tmp_path).values()) == {b"mine"}


def test_every_file_that_a_run_writes_is_among_those_that_are_looked_for(tmp_path):
    imnet.train(TINY, **vars(options(tmp_path, log="csv,tensorboard")))
    assert {p.name for p in tmp_path.iterdir()} <= {*WRITTEN, "run.json", ".lock"}


def test_files_beside_a_run_are_no_matter(tmp_path):
    for name in ("slurm-1.out", "notes.txt"):
        (tmp_path / name).write_bytes(b"mine")
    (tmp_path / "checkpoints").mkdir()
    assert imnet.train(TINY, **vars(options(tmp_path))).info["status"] == "complete"
    assert (tmp_path / "notes.txt").read_bytes() == b"mine"


@pytest.mark.parametrize("kind", ["file", "link to nothing"])
def test_a_file_in_the_place_of_the_checkpoints_is_found_before_anything_is_trained(tmp_path, kind):
    place = tmp_path / "checkpoints"
    place.write_bytes(b"mine") if kind == "file" else place.symlink_to("nowhere")
    with pytest.raises(IOFailure, match="in the place of its checkpoints"):
        imnet.train(TINY, **vars(options(tmp_path)))
    assert not (tmp_path / "run.json").exists()


@pytest.mark.parametrize("out", [".", "a", "../pictures", "../link", "sub"])
def test_no_run_begins_among_the_pictures(pictures, out, monkeypatch, capsys):
    (pictures.parent / "link").symlink_to("pictures")
    (pictures / "sub" / "c").mkdir(parents=True)
    shutil.copy(pictures / "a" / "1.png", pictures / "sub" / "c" / "1.png")
    before = content(pictures)
    monkeypatch.chdir(pictures)
    assert trained(".", "--out", out) == 2
    assert "among the data" in capsys.readouterr().err
    assert content(pictures) == before


def test_no_run_begins_in_a_packed_store(pictures, tmp_path, capsys):
    assert data_main(["pack", str(pictures), str(tmp_path / "store"), "--size", "8"]) == 0
    before = content(tmp_path / "store")
    assert trained("--recipe", "quickstart", "--out", str(tmp_path / "store")) == 2
    assert "the folder is a packed store" in capsys.readouterr().err
    assert content(tmp_path / "store") == before


def test_a_run_in_a_folder_of_its_own_within_the_pictures_is_not_read_as_some(pictures, monkeypatch, capsys):
    """``cd pictures; imnet-train .`` writes its run, with pictures, to runs/ below the data."""
    monkeypatch.chdir(pictures)
    assert trained(".") == 0
    assert any(pictures.glob("runs/*/worst.png"))
    found = recognise(pictures)
    assert found.class_names == ("a", "b")
    assert len(found.splits["train"]) == 24
    assert "run of imnet" in found.left.line()
    assert trained(".") == 0
    assert "complete already" in capsys.readouterr().out


@pytest.mark.parametrize("place", ["runs/one", "train/one", "train/a/one"])
def test_a_run_within_the_set_is_left_out_in_every_form(pictures, place, tmp_path):
    top = tmp_path / "set"
    shutil.copytree(pictures, top / "train")
    run = top / place
    run.mkdir(parents=True)
    for name in ("run.json", "config.yaml", "metrics.jsonl"):
        (run / name).write_bytes(b"{}")
    shutil.copy(pictures / "a" / "1.png", run / "worst.png")
    forms = [top, *(Path(shutil.make_archive(str(tmp_path / "all"), form, top)) for form in ("zip", "tar"))]
    for found in map(recognise, forms):
        assert found.class_names == ("a", "b")
        assert len(found.splits["train"]) == 24
    (run / "config.yaml").unlink()  # a folder that only resembles a run is read
    assert len(recognise(top).splits["train"]) == 24 + place.startswith("train")


def test_a_store_takes_neither_its_sources_place_nor_a_file_of_others(pictures, tmp_path, capsys):
    mine = tmp_path / "there" / "source.json"
    mine.parent.mkdir()
    mine.write_bytes(b'{"mine": 1}')
    assert data_main(["pack", str(pictures), str(pictures)]) == 2
    assert data_main(["pack", str(pictures), str(mine.parent)]) == 74
    assert content(mine.parent) == {"source.json": b'{"mine": 1}'}
    assert all(name.endswith(".png") for name in content(pictures))


def test_a_run_that_was_killed_before_its_configuration_was_written_goes_on(tmp_path):
    imnet.train(TINY, **vars(options(tmp_path)))
    for path in tmp_path.iterdir():
        if path.name == "checkpoints":
            shutil.rmtree(path)
        elif path.name != "run.json":
            path.unlink()
    imnet.train(TINY, **vars(options(tmp_path)))
    assert Run(tmp_path).metrics


@pytest.mark.parametrize("kind", ["missing", "of another network"])
def test_weights_that_do_not_fit_are_refused_before_the_pictures_are_packed(pictures, kind, tmp_path, monkeypatch):
    from safetensors.torch import save_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    weights = tmp_path / "w.safetensors"
    if kind != "missing":
        save_file({"fc.weight": torch.zeros(2, 2)}, weights)
    assert trained(str(pictures), "--weights", str(weights), "--out", str(tmp_path / "run")) == 2
    assert not list((tmp_path / "cache").rglob("*.imnet*"))


def test_a_run_on_pictures_that_were_moved_says_how_it_goes_on_and_does(pictures, tmp_path, capsys):
    out, new = tmp_path / "run", tmp_path / "new"
    assert trained(str(pictures), "--out", str(out)) == 0
    pictures.rename(new)
    assert trained(str(new), "--out", str(out)) == 2
    words = capsys.readouterr().err.partition("were the pictures moved: ")[2].split()
    assert words[-1] == "THEIR_NEW_PLACE"
    assert train_main([*words[:-1], str(new)]) == 0
    assert f"complete already: {out}" in capsys.readouterr().out
