"""The run folder: one run at a time, nothing left of a refused run, and files that other programs can read."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import resource
import socket
from pathlib import Path

import pytest

from imnet.cli import predict_main, train_main
from imnet.errors import IOFailure
from imnet.recipe_json import config_hash
from imnet.runfolder import RunFolder, check_same, writer

from .conftest import options

REFUSED = {
    "no data": ["--data", "fashion-mnist", "--data-dir", "absent"],
    "too few images": ["--data", "shapes", "--data.train_images", "8", "--batch-size", "16"],
    "no such weights": ["--data", "shapes", "--weights", "absent.safetensors"],
    "an ensemble without data": ["--recipe", "spectral/resnet34_sub4", "--data-dir", "absent"],
}


@pytest.mark.parametrize("words", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("there", [(), ("new",), ("new", "new/run")])
def test_a_refused_command_leaves_no_folder_that_was_not_there(tmp_path, monkeypatch, words, there):
    monkeypatch.chdir(tmp_path)
    for folder in there:
        Path(folder).mkdir()
    assert train_main([*words, "--device", "cpu", "--epochs", "1", "--out", "new/run"]) in (2, 65, 74)
    assert sorted(str(p) for p in Path().rglob("*")) == list(there)


def test_what_was_there_stays(tmp_path):
    """Other files stay as they are, also a .lock of another program or of a killed run."""
    (tmp_path / ".lock").write_text("mine")
    (tmp_path / "notes.txt").write_text("mine")
    with contextlib.closing(RunFolder(tmp_path)):
        pass
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {".lock": "mine", "notes.txt": "mine"}


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
@pytest.mark.parametrize("name", ["report.html", "metrics.jsonl", "config.yaml", "evaluation.json"])
def test_what_is_no_file_in_the_place_of_a_runs_file_is_one_line(tiny, tmp_path, name, make):
    (tmp_path / "run.json").write_text(json.dumps({"status": "running", "config_hash": config_hash(tiny, "fp32"),
                                                   "recipe": {}, "precision": "fp32", "device": "cpu"}))  # fmt: skip
    make(tmp_path / name)
    with pytest.raises(IOFailure, match=f"{name}: is no file, and a run would write one; move it away"):
        check_same(tmp_path, tiny, options(tmp_path), "fp32")


def test_a_pipe_in_the_place_of_run_json_is_not_waited_for(tmp_path, capsys):
    os.mkfifo(tmp_path / "run.json")
    assert train_main(["--device", "cpu", "--epochs", "1", "--out", str(tmp_path)]) == 74
    assert f"{tmp_path}: run.json is unreadable: it is a pipe; put a copy back" in capsys.readouterr().err


def test_the_lock_of_a_run_that_has_begun_stays(tmp_path):
    with contextlib.closing(RunFolder(tmp_path / "run")) as folder:
        folder.write_run({})
    assert {p.name for p in (tmp_path / "run").iterdir()} == {".lock", "run.json"}


def test_the_lock_of_a_run_that_has_taken_the_place_stays(tmp_path):
    mine = RunFolder(tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "elsewhere")
    with contextlib.closing(RunFolder(tmp_path / "run")):
        mine.close()
        assert writer(tmp_path / "run") == f"pid {os.getpid()} on {socket.gethostname()}"
    assert [p.name for p in tmp_path.iterdir()] == ["elsewhere"]


def test_a_link_to_a_folder_is_locked_there(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk")
    with contextlib.closing(RunFolder(tmp_path / "run")) as folder:
        folder.check_place()
        with pytest.raises(IOFailure, match="a run is writing here"):
            RunFolder(tmp_path / "disk")
    assert (tmp_path / "run").is_symlink()
    assert not list((tmp_path / "disk").iterdir())


def _in_turn(folder: Path, inside: Path, times: int) -> None:
    while times:
        with contextlib.suppress(IOFailure), contextlib.closing(RunFolder(folder)):
            os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # FileExistsError if another process is inside
            inside.unlink()
            times -= 1


def test_of_many_that_come_and_go_one_is_inside(tmp_path):
    """Every process removes the lock file and the folder again, while others are about to lock them."""
    spawn = multiprocessing.get_context("fork")
    rest = (tmp_path / "new" / "run", tmp_path / "inside", 100)
    processes = [spawn.Process(target=_in_turn, args=rest, daemon=True) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4


def test_a_full_disk_keeps_no_folder_from_being_given_back(tmp_path):
    """The lock's old text is restored only if there is room, since an error there would hide what ended the run."""
    (tmp_path / ".lock").write_text("pid 1 on elsewhere")
    folder, limits = RunFolder(tmp_path), resource.getrlimit(resource.RLIMIT_FSIZE)
    assert writer(tmp_path) == f"pid {os.getpid()} on {socket.gethostname()}"
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, limits[1]))
    try:
        folder.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert writer(tmp_path) is None


def no_number(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def test_the_files_of_a_run_that_diverged_are_json(tmp_path, capsys):
    """Python's json writes a NaN loss as NaN, which is not JSON: jq, browsers and most languages refuse it."""
    small = ["--data.train_images", "64", "--data.test_images", "40", "--batch-size", "16", "--device", "cpu"]
    spoilt = ["--optim.lr", "1e18", "--on-nonfinite", "skip:1000"]
    assert train_main(["--epochs", "1", *small, *spoilt, "--out", str(tmp_path / "run")]) == 0
    (tmp_path / "picture.png").write_bytes((tmp_path / "run" / "worst.png").read_bytes())
    capsys.readouterr()
    assert predict_main([str(tmp_path / "run"), str(tmp_path / "picture.png"), "--json", "--device", "cpu"]) == 0
    told = [path.read_text() for path in sorted((tmp_path / "run").glob("*.json"))]
    told += (tmp_path / "run" / "metrics.jsonl").read_text().splitlines() + capsys.readouterr().out.splitlines()
    for text in told:
        json.loads(text, parse_constant=no_number)
    evaluation = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert evaluation["loss"] is None
    assert [row["index"] for row in evaluation["worst"]] == list(range(16))
