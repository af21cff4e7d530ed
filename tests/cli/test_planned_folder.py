"""A dry run checks the run folder as the run does, refuses it with the same line, and changes no file."""

import hashlib
import json
import os
import shutil

import pytest
from PIL import Image

from imnet.cli import train_main

TINY = ["--data", "shapes", "--data.train_images", "32", "--data.test_images", "10", "--batch-size", "16",
        "--epochs", "1", "--device", "cpu", "--threads", "1"]  # fmt: skip


def content(folder):
    """Returns {path: (time of the last change, content)} for a folder and everything in it."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else os.fspath(p))
        for p in (folder, *folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train_main([*TINY, "--out", str(out), "--checkpoint-every-steps", "1"]) == 0
    return out


@pytest.fixture
def place(finished, tmp_path, monkeypatch):
    """The current folder, with a finished run ("used") and folders that are damaged or hold no run."""
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


def spoil(folder, kind):
    """Change a finished run so that it can be resumed only in part or not at all; ``kind`` says how."""
    newest, run = max((folder / "checkpoints").glob("step-*")), json.loads((folder / "run.json").read_text())
    if kind == "one damaged":
        (newest / "model.safetensors").write_bytes(b"")
    for path in newest.parent.glob("step-*") if kind == "all damaged" else []:
        (path / "state.json").unlink()
    if kind == "of another run":
        (folder / "run.json").write_text(json.dumps(run | {"config_hash": "0" * 64}))
    if kind == "without data":
        (folder / "run.json").write_text(json.dumps(run | {"data": {}}))
    if kind == "of other data":
        state = newest / "state.json"
        state.write_text(json.dumps(json.loads(state.read_text()) | {"data_fingerprint": "0" * 64}))
        manifest = newest / "MANIFEST.json"
        files = json.loads(manifest.read_text())["files"]
        sha256 = hashlib.sha256(state.read_bytes()).hexdigest()
        files["state.json"] = {"sha256": sha256, "bytes": state.stat().st_size}
        manifest.write_text(json.dumps({"format": 1, "files": files}))


@pytest.mark.parametrize(
    ("kind", "words", "code", "expected"),
    [
        ("all damaged", "", 65, "no checkpoint verifies"),
        ("all damaged", "--epochs 3 --allow-change", 65, "no checkpoint verifies"),
        ("of another run", "--allow-change", 65, "of a configuration that run.json does not know"),
        ("without data", "--epochs 3 --allow-change", 65, "run.json does not say of its data"),
        ("of other data", "", 2, "the data differ from the checkpoint's; add --allow-change and more --epochs"),
        ("as it was", "--lr 0.01", 2, "all the same: --allow-change and more --epochs"),
        ("as it was", "--data.num_classes 5 --allow-change", 2, "the weights are of another network"),
        ("as it was", "--optim.kind adamw --lr 0.01 --allow-change", 2, "the optimiser's state cannot be taken over"),
        ("as it was", "--batch-size 8 --allow-change", 2, "1 are trained already"),
        ("one damaged", "--batch-size 32 --epochs 3 --allow-change", 2, "which no number of batches of 32 ends at"),
    ],
)
def test_checkpoints_that_cannot_be_taken_up_are_refused_as_by_the_run(
    kind, words, code, expected, finished, tmp_path, capsys
):
    out = shutil.copytree(finished, tmp_path / "run")
    spoil(out, kind)
    told, before = [], {name: held for name, (_, held) in content(out).items()}
    for more in (["--dry-run"], []):
        assert train_main([*TINY, "--out", str(out), *words.split(), *more]) == code
        told.append(capsys.readouterr().err)
        assert {name: held for name, (_, held) in content(out).items()} == before
    assert told[0] == told[1]
    assert expected in told[0]


@pytest.mark.parametrize(
    ("kind", "words", "expected"),
    [
        ("as it was", "--epochs 3 --allow-change", "at step 2 of 6"),
        ("as it was", "--batch-size 8 --epochs 3 --allow-change", "at step 4 of 12"),
        ("one damaged", "", "at step 1 of 2"),
    ],
)
def test_a_dry_run_says_where_the_run_goes_on(kind, words, expected, finished, tmp_path, capsys):
    out = shutil.copytree(finished, tmp_path / "run")
    spoil(out, kind)
    before = content(out)
    assert train_main([*TINY, "--out", str(out), *words.split(), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert f"goes on      {expected} from " in planned
    assert content(out) == before
    assert train_main([*TINY, "--out", str(out), *words.split()]) == 0
    said = capsys.readouterr().out
    assert f"resuming   {expected} from " in said
    for line in (line for line in said.splitlines() if line.startswith(("skipped ", "changed ", "counter "))):
        assert " ".join(line.split()) in " ".join(planned.split())


def test_of_a_complete_run_a_dry_run_says_so(finished, capsys):
    for more, said in (["--dry-run"], f"complete     already: {finished}"), ([], f"complete already: {finished}"):
        assert train_main([*TINY, "--out", str(finished), *more]) == 0
        assert said in capsys.readouterr().out


def test_a_variable_with_a_wrong_tier_is_refused(place, monkeypatch, capsys):
    monkeypatch.setenv("IMNET_KERNELS", "fast")
    assert train_main([*TINY, "--dry-run"]) == 2
    assert "kernel tier 'fast'" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["--gpus 64", "--kernels augment=cuda", "--cuda-graphs", "--compile --device cpu"])
def test_what_this_machine_lacks_is_a_line_of_the_plan_and_the_runs_refusal(words, place, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "a-compiler-that-is-not-here")
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
