"""A dry run looks into the run folder as the run does, refuses it with the same line, and leaves all as it was."""

import json
import os
import shutil

import pytest
from PIL import Image

from imnet.cli import train_main

TINY = ["--data", "shapes", "--data.train_images", "32", "--data.test_images", "10", "--batch-size", "16",
        "--epochs", "1", "--device", "cpu", "--threads", "1"]  # fmt: skip


def content(folder):
    """Every name under a folder, with when it was changed and what it holds."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else os.fspath(p))
        for p in (folder, *folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train_main([*TINY, "--out", str(out)]) == 0
    return out


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """The current folder: a run in it, and much that is none."""
    shutil.copytree(finished, tmp_path / "used")
    shutil.copytree(finished, tmp_path / "bands" / "band-0")
    others = {"file": "mine", "others/config.yaml": "mine", "damaged/run.json": "{", "odd/checkpoints": ""}
    for name, text in others.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    shutil.copytree(finished, tmp_path / "edited")
    edited = tmp_path / "edited" / "run.json"
    edited.write_text(json.dumps(json.loads(edited.read_text()) | {"recipe": {}}))
    (tmp_path / "nowhere").symlink_to("absent")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        ("used --resume never", 2, "already holds a run"),
        ("used --seed 3", 2, "another configuration (seed was 0, is 3)"),
        ("edited --seed 3", 65, "the recipe in run.json cannot be read"),
        ("others", 2, "the folder holds config.yaml of no run"),
        ("damaged", 74, "run.json is unreadable"),
        ("odd", 74, "in the place of its checkpoints"),
        ("bands", 2, "the folder holds an ensemble"),
        ("used --data-dir used", 0, ""),
        (". --data-dir .", 2, "among the data"),
        ("file", 74, "File exists"),
        ("file/run", 74, "Not a directory"),
        ("nowhere", 74, "File exists"),
        ("/proc/run", 74, "No such file"),
        ("n" * 300, 74, "File name too long"),
        ("new/" + "n" * 300, 74, "File name too long"),
        ("used --optim-backend apex", 2, "apex is not installed"),
        ("used --kernels fast", 2, "kernel tier 'fast'"),
    ],
)
def test_the_same_answer_as_the_run(words, code, expected, place, capsys):
    told, before = [], content(place)
    assert train_main([*TINY, "--out", *words.split(), "--dry-run"]) == code
    told.append(capsys.readouterr().err)
    assert content(place) == before
    assert train_main([*TINY, "--out", *words.split()]) == code
    told.append(capsys.readouterr().err)
    assert content(place).keys() == before.keys()
    assert told[0] == told[1]
    assert expected in told[0]
    assert told[0].count("\n") == (code != 0)


def test_a_variable_with_a_wrong_tier_is_refused(place, monkeypatch, capsys):
    monkeypatch.setenv("IMNET_KERNELS", "fast")
    assert train_main([*TINY, "--dry-run"]) == 2
    assert "kernel tier 'fast'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--gpus 64", "--kernels augment=cuda", "--cuda-graphs"])
def test_what_this_machine_lacks_is_a_line_of_the_plan_and_the_runs_refusal(words, place, capsys):
    asked = [*(w for w in TINY if w not in ("--device", "cpu")), *words.split()]
    assert train_main([*asked, "--dry-run"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("machine"))
    assert train_main(asked) == 69
    assert line == "machine      NOT HERE: " + capsys.readouterr().err.strip().removeprefix("imnet-train: ")


@pytest.mark.parametrize("words", ["", "--data.image_px 8", "--out runs/x", "--log csv,tensorboard", "--weights used"])
def test_nothing_is_written(words, place):
    for number in range(24):
        path = place / "photos" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number * 10, 0, 0)).save(path)
    before = content(place)
    assert train_main(["photos", "--device", "cpu", *words.split(), "--dry-run"]) == 0
    assert content(place) == before
