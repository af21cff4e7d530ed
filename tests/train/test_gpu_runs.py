"""Whole runs on a GPU: the defaults train, and with --deterministic two runs and a killed one end in the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from imnet import recipes
from imnet.errors import UsageError
from imnet.models.registry import MODELS
from imnet.run_options import RunOptions
from imnet.start import train

from .test_resume import digests, wait_for_step

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
QUICK = dataclasses.replace(recipes["quickstart"], epochs=2)
BUSY = """
import torch
a = torch.randn(8192, 8192, device="cuda")
held = torch.empty(int(torch.cuda.mem_get_info()[0] * 0.8), dtype=torch.uint8, device="cuda")
print("busy", flush=True)
while True:
    a @ a
    torch.cuda.synchronize()
"""


def on_gpu(out, **changes):
    return RunOptions(out=str(out), **{"checkpoint_every_steps": 20, "threads": 2} | changes)


def execution(folder):
    return json.loads((folder / "run.json").read_text())["execution"]


def test_the_default_run_is_captured_and_learns(tmp_path):
    run = dataclasses.replace(recipes["quickstart"], epochs=3)
    train(run, on_gpu(tmp_path, checkpoint_every_steps=None))
    assert execution(tmp_path)["cuda_graphs"]
    assert not execution(tmp_path)["compile"]
    assert json.loads((tmp_path / "evaluation.json").read_text())["top1"] > 0.6


def test_a_compiled_run_learns(tmp_path):
    run = dataclasses.replace(recipes["quickstart"], epochs=3)
    train(run, on_gpu(tmp_path, checkpoint_every_steps=None, compile=True))
    assert json.loads((tmp_path / "evaluation.json").read_text())["top1"] > 0.6


def test_an_odd_last_batch_is_trained_beside_the_captured_step(tmp_path):
    data = dataclasses.replace(QUICK.data, drop_last=False, train_images=1000)
    whole = dataclasses.replace(QUICK, data=data, epochs=4)
    for name, graphs in (("captured", None), ("plain", False)):
        train(whole, on_gpu(tmp_path / name, cuda_graphs=graphs, deterministic=True))
    assert execution(tmp_path / "captured")["cuda_graphs"]
    found = [json.loads((tmp_path / n / "evaluation.json").read_text())["loss"] for n in ("captured", "plain")]
    assert found[0] == pytest.approx(found[1], rel=0.1)


@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_deterministic_runs_and_a_killed_one_end_in_the_same_bytes(tmp_path, spawn, precision):
    changes = {"deterministic": True, "precision": precision}
    for name in ("one", "two"):
        train(QUICK, on_gpu(tmp_path / name, **changes))
    process = spawn(QUICK, on_gpu(tmp_path / "killed", **changes))
    wait_for_step(tmp_path / "killed", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    train(QUICK, on_gpu(tmp_path / "killed", precision=precision))
    assert execution(tmp_path / "killed")["deterministic"]
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert digests(tmp_path / "one") == digests(tmp_path / "killed")


def test_a_deterministic_run_does_not_depend_on_the_card_s_other_work(tmp_path):
    """Nor on how little of its memory is free, which decides what workspace an algorithm may take."""
    wide = dataclasses.replace(QUICK, model="wrn10_4", epochs=1)
    train(wide, on_gpu(tmp_path / "alone", deterministic=True))
    torch.cuda.empty_cache()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "busy\n"
            train(wide, on_gpu(tmp_path / "beside", deterministic=True))
        finally:
            other.kill()
    assert digests(tmp_path / "alone") == digests(tmp_path / "beside")


def test_an_operator_without_a_deterministic_form_is_refused_before_the_first_step(tmp_path):
    """AlexNet's pool makes 6 x 6 of a 2 x 2 map here, which no plain pool does."""
    small = dataclasses.replace(QUICK, model="torchvision:alexnet", data=dataclasses.replace(QUICK.data, image_px=96))
    with pytest.raises(UsageError, match=r"no deterministic adaptive_avg_pool2d_backward_cuda"):
        train(small, on_gpu(tmp_path, deterministic=True))
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


class Reads(nn.Module):
    """A network that asks the device for a number in every forward pass."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images):
        maps = self.conv(images)
        return self.head(maps.mean((2, 3)) * (1.0 if maps.abs().max().item() > 1e-6 else 2.0))


def test_a_network_that_reads_the_device_trains_uncaptured_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(MODELS, "reads", lambda num_classes, in_channels=3: Reads(num_classes))
    monkeypatch.setitem(sys.modules["imnet.models.registry"]._OPTIONS, "reads", ())
    run = dataclasses.replace(QUICK, model="reads", epochs=1)
    train(run, on_gpu(tmp_path / "auto"))
    assert "not captured after all: the step waits for the device" in capsys.readouterr().out
    assert not execution(tmp_path / "auto")["cuda_graphs"]
    with pytest.raises(UsageError, match="waits for the device"):
        train(run, on_gpu(tmp_path / "asked", cuda_graphs=True))
