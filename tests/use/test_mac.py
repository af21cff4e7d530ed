"""The commands with a Python that has no more than on a Mac: no /proc, affinity or Triton. A real Mac was not tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.data.making import imagenet64_folder

SMALL = (
    *("--recipe", "quickstart", "--epochs", "1", "--device", "cpu", "--data.image-px", "12"),
    *("--data.train-images", "256", "--data.test-images", "64", "--model-options.width", "8"),
)


def command(name, *words):
    """Run a command as a user does, with mac/sitecustomize.py, which imports nothing of imnet; returns its stdout."""
    return python(
        f"import sys; from {name.rpartition('.')[0]} import {name.rpartition('.')[2]} as main; sys.exit(main())", *words
    )


def python(code, *words):
    path = os.pathsep.join([str(Path(__file__).with_name("mac")), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_two_ranks_train_and_their_run_can_be_used(tmp_path):
    run = tmp_path / "run"
    code = "import sys; from imnet import cli; code = cli.train_main(sys.argv[2:]); print('judging', flush=True)"
    evaluate = "sys.exit(code or cli.eval_main([sys.argv[1], '--device', 'cpu']))"
    said = python(f"{code}\n{evaluate}", run, *SMALL, "--procs", 2, "--out", run)
    about = json.loads((run / "run.json").read_text())
    assert about["hardware"]["cores"] == os.cpu_count()
    assert "loss" in said.partition("judging\n")[2]


@pytest.mark.slow
def test_a_sweep_of_two_jobs(tmp_path):
    base = {"recipe": "quickstart", "device": "cpu", "epochs": 1, "data.image_px": 12, "data.train_images": 256}
    base |= {"data.test_images": 64, "model_options": {"width": 8}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump({"base": base, "grid": {"optim.lr": [0.1, 0.2]}}))
    command("imnet.sweep.main", tmp_path / "grid.yaml", "--jobs", 2, "--out", tmp_path / "sweep")
    assert len(list((tmp_path / "sweep").glob("*/report.html"))) == 2


def test_pickled_batches_and_pictures_are_packed(tmp_path):
    from PIL import Image

    imagenet64_folder(tmp_path / "batches")
    command("imnet.data.tool.main", "pack", tmp_path / "batches", tmp_path / "one")
    for i in range(40):
        folder = tmp_path / "pictures" / "ab"[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 9), (6 * i, 0, 0)).save(folder / f"{i}.png")
    command("imnet.data.tool.main", "pack", tmp_path / "pictures", tmp_path / "two", "--size", 8, "--workers", 2)


def test_windows_is_told_where_imnet_runs():
    code = "import sys; sys.platform = 'win32'; import imnet"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[-1].endswith("imnet runs on Linux and macOS; on Windows, under WSL")
