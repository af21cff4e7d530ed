"""Whole runs on a GPU: the defaults train; with --deterministic, two runs and a killed one end in the same bytes."""

import dataclasses
import json
import os
import signal
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import imnet
from imnet import recipes
from imnet.data.pipelines import free_bytes
from imnet.device import Place
from imnet.errors import UsageError
from imnet.from_recipe import build_network, build_step
from imnet.launch import World
from imnet.models.registry import _SIGNED, MODELS
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


def test_memory_that_torch_keeps_unused_is_free_for_the_images_of_a_run():
    device = torch.device("cuda", 0)
    torch.cuda.empty_cache()
    before = free_bytes(device)
    held = torch.empty(1 << 30, dtype=torch.uint8, device=device)
    assert before - free_bytes(device) > 1 << 29
    del held
    assert torch.cuda.memory_reserved(device) >= 1 << 30
    assert abs(before - free_bytes(device)) < 1 << 28


def test_a_training_from_python_gives_its_memory_back(tmp_path):
    """cuBLAS keeps some tens of MiB for its workspaces; of a batch of 2,048 images a step keeps GiBs."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before, data = torch.cuda.memory_reserved(), dataclasses.replace(QUICK.data, batch_images=2048)
    imnet.train(dataclasses.replace(QUICK, data=data), out=tmp_path, device="cuda", threads=2)
    assert torch.cuda.memory_reserved() - before < (torch.cuda.max_memory_reserved() - before) / 4


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
    """Nor does it depend on the card's free memory, which limits the workspace of the algorithms that are chosen."""
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
    """At 96 px AlexNet's adaptive pool makes a 6 x 6 map of a 2 x 2 map, which no ordinary pool can do."""
    small = dataclasses.replace(QUICK, model="torchvision:alexnet", data=dataclasses.replace(QUICK.data, image_px=96))
    with pytest.raises(UsageError, match=r"no deterministic adaptive_avg_pool2d_backward_cuda"):
        train(small, on_gpu(tmp_path, deterministic=True))
    assert not (tmp_path / "metrics.jsonl").exists() or not (tmp_path / "metrics.jsonl").read_text()


class Reads(nn.Module):
    """A network that reads a number back from the device in every forward pass, which no CUDA graph can capture."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, num_classes)

    def forward(self, images):
        maps = self.conv(images)
        return self.head(maps.mean((2, 3)) * (1.0 if maps.abs().max().item() > 1e-6 else 2.0))


def reads(num_classes, in_channels=3):
    return Reads(num_classes)


def test_a_network_that_reads_the_device_trains_uncaptured_and_says_so(tmp_path, monkeypatch, capsys):
    for names in (MODELS, _SIGNED):
        monkeypatch.setitem(names, "reads", reads)
    run = dataclasses.replace(QUICK, model="reads", epochs=1)
    train(run, on_gpu(tmp_path / "auto"))
    assert "not captured after all: the step waits for the device" in capsys.readouterr().out
    assert not execution(tmp_path / "auto")["cuda_graphs"]
    with pytest.raises(UsageError, match="waits for the device"):
        train(run, on_gpu(tmp_path / "asked", cuda_graphs=True))


@pytest.fixture
def group():
    """An NCCL group of one rank: NCCL's kernels and DistributedDataParallel's buckets on a single GPU."""
    dist.init_process_group("nccl", store=dist.HashStore(), rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("bucket_mb", [25.0, 0.05], ids=["one bucket", "many buckets"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_step_with_its_all_reduces_is_captured(group, bucket_mb, dtype):
    """Replayed steps, with one of another size in between that is not, give the same weights as without a graph."""
    comm = dataclasses.replace(QUICK.comm, bucket_mb=bucket_mb, first_bucket_mb=bucket_mb, gradient_dtype=dtype)
    recipe, place = dataclasses.replace(QUICK, comm=comm), Place(torch.device("cuda", 0), "bf16", "test")
    weights = []
    for graphs in (False, True):
        net = build_network(recipe, place)
        step = build_step(recipe, net, place, World(group=group), compile=False, graphs=graphs)
        assert isinstance(step.parallel, DistributedDataParallel)
        generator = torch.Generator("cuda").manual_seed(0)
        images = torch.randn(64, 3, 32, 32, device="cuda", generator=generator).to(place.dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        labels = torch.randint(0, 10, (64,), device="cuda", generator=generator)
        step.warm_up([(images, labels)], 64)
        for number in range(6):
            size = 40 if number == 3 else 64
            step([(images[:size], labels[:size])], size, number, 0.05)
        weights.append([p.detach().clone() for p in net.parameters()])
    for plain, captured in zip(*weights, strict=True):
        torch.testing.assert_close(captured, plain, rtol=2e-2, atol=2e-3)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_captured_as_they_do_without(tmp_path):
    for name, graphs in (("captured", True), ("plain", False)):
        train(QUICK, on_gpu(tmp_path / name, gpus=2, cuda_graphs=graphs, checkpoint_every_steps=None))
    assert execution(tmp_path / "captured")["cuda_graphs"]
    found = [json.loads((tmp_path / n / "evaluation.json").read_text())["loss"] for n in ("captured", "plain")]
    assert found[0] == pytest.approx(found[1], rel=0.1)
