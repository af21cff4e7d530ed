"""Several gloo ranks on the CPU: the same experiment as one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from imnet.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'kernels'}"}
SCRIPT = [sys.executable, str(Path(__file__).with_name("ranks_script.py"))]


def run(folder, procs=1, micro=0):
    subprocess.run(
        [*SCRIPT, str(folder), str(procs), str(micro)], check=True, env=ENV, capture_output=True, timeout=120
    )
    rows = read_metrics(folder / "metrics.jsonl")
    newest = sorted((folder / "checkpoints").iterdir())[-1]
    return rows, load_file(newest / "model.safetensors")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("one"))


@pytest.mark.parametrize(("procs", "micro"), [(2, 0), (3, 0), (1, 10), (2, 10)])
def test_ranks_and_accumulation_give_the_one_rank_curve(alone, tmp_path, procs, micro):
    rows, weights = run(tmp_path, procs, micro)
    expected_rows, expected = alone
    assert len(rows) == len(expected_rows) == 3 * 5 + 3
    for row, wanted in zip(rows, expected_rows, strict=True):
        assert row["step"] == wanted["step"]
        assert row["loss"] == pytest.approx(wanted["loss"], rel=2e-5)
        if row["kind"] == "eval":
            assert (row["top1"], row["top5"]) == (wanted["top1"], wanted["top5"])
    for name, tensor in expected.items():
        torch.testing.assert_close(weights[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_signal_to_the_launcher_saves_and_exits_75(tmp_path):
    command = [sys.executable, "-m", "imnet.cli", "--procs", "2", "--device", "cpu", "--out", str(tmp_path)]
    small = ["--data.train_images", "512", "--data.test_images", "64", "--data.image_px", "16", "--epochs", "400"]
    process = subprocess.Popen([*command, *small, "--batch-size", "64"], env=ENV, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 100
    while not list(tmp_path.glob("checkpoints/step-????????")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert errors.count("\n") == 1
    assert "SIGTERM: saved at step" in errors


def test_a_killed_rank_is_restarted_and_ends_in_the_same_weights(tmp_path):
    import psutil

    base = ["--device", "cpu", "--procs", "2", "--precision", "fp32", "--threads", "1", "--epochs", "6"]
    base += ["--data.train_images", "256", "--data.test_images", "64", "--data.image_px", "16", "--batch-size", "32"]
    base += ["--checkpoint-every-steps", "2", "--max-restarts", "3"]
    command = [sys.executable, "-m", "imnet.cli", *base]
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=ENV, timeout=120, capture_output=True)
    process = subprocess.Popen([*command, "--out", str(tmp_path / "killed")], env=ENV, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 100
    while not list((tmp_path / "killed").glob("checkpoints/step-????????")) and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks = [p for p in psutil.Process(process.pid).children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]
    ranks[-1].send_signal(signal.SIGKILL)
    assert process.wait(120) == 0
    newest = [sorted((tmp_path / name / "checkpoints").iterdir())[-1] for name in ("whole", "killed")]
    assert newest[0].name == newest[1].name
    for name in ("model.safetensors", "state.safetensors"):
        assert (newest[0] / name).read_bytes() == (newest[1] / name).read_bytes()
