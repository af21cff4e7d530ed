"""What is known of a GPU by its name and numbers, and GPUs that torch counts, but has no code for."""

import argparse
import dataclasses
import types

import pytest
import torch

from imnet import defaults, device, predict
from imnet.data import pipelines
from imnet.errors import DataError, DeviceError
from imnet.run_options import RunOptions
from imnet.start import check_machine

WHEEL = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"]


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((6, 1), WHEEL, False),  # GTX 1080 Ti
        ((7, 5), WHEEL, True),
        ((8, 9), WHEEL, True),
        ((9, 0), WHEEL, True),
        ((10, 3), WHEEL, True),
        ((11, 0), WHEEL, False),
        ((12, 1), WHEEL, True),
        ((13, 0), WHEEL, False),
        ((13, 0), [*WHEEL, "compute_120"], True),
        ((8, 0), ["sm_86"], False),
        ((8, 0), ["compute_86"], False),
        ((9, 0), ["sm_90a"], True),
        ((9, 4), ["gfx942"], True),
        ((9, 0), [], True),
    ],
)
def test_which_gpus_code_runs_on(capability, built_for, runs):
    assert device.has_code(capability, built_for) == runs


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA H200 MIG 1g.18gb", None),
        ("NVIDIA H100 PCIe", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA A100-SXM4-40GB", None),
    ],
)
def test_only_the_very_cards_that_were_measured_are_not_timed_again(name, card):
    """A seventh of an H200 was taken for a whole one, and its runs for seven times too short to pay for kernels."""
    assert defaults.known_rates(name) == defaults.RATES.get(card)


@pytest.fixture
def card(monkeypatch):
    """A GPU of a given compute capability. No machine of ours has such ones, so torch's answers are replaced."""

    def found(capability, name):
        monkeypatch.setattr(device, "num_gpus", lambda: 1)
        monkeypatch.setattr("torch.cuda.set_device", lambda index: None)
        monkeypatch.setattr("torch.cuda.get_arch_list", lambda: WHEEL)
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda index: capability)
        monkeypatch.setattr("torch.cuda.get_device_name", lambda index: name)

    return found


def test_a_gpu_without_code_is_refused_in_one_line(card):
    card((6, 1), "NVIDIA GeForce GTX 1080 Ti")
    with pytest.raises(DeviceError, match=r"no code, NVIDIA GeForce GTX 1080 Ti \(sm_61\); allowed: sm_75.*device cpu"):
        device.resolve(RunOptions())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_on_a_gpu_gives_its_caller_the_settings_back(card, precision):
    """A notebook that computes in fp32 would go on in TF32. test_gpu_step.py has the same on a GPU."""
    card((9, 0), "NVIDIA H100")
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    own, before = precision == "fp32", device.GpuSettings.now()
    try:
        matmul.allow_tf32 = cudnn.allow_tf32 = cudnn.benchmark = own
        place = dataclasses.replace(device.resolve(RunOptions(precision=precision)), device=torch.device("cpu"))
        with device.undisturbed(place):
            assert matmul.allow_tf32 == cudnn.allow_tf32 == (not own)
            assert cudnn.benchmark
        assert matmul.allow_tf32 == cudnn.allow_tf32 == cudnn.benchmark == own
    finally:
        before.restore()


def test_pictures_are_classified_in_fp32_on_a_gpu_too(card, monkeypatch):
    """As on a CPU, and as the classifier says: in TF32 a product keeps 10 bits of the mantissa."""
    card((9, 0), "NVIDIA H100")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    seen, before = [], device.GpuSettings.now()
    model = types.SimpleNamespace(
        to=lambda place: seen.append((place.type, torch.backends.cudnn.allow_tf32)), stream=lambda *_: iter(())
    )
    monkeypatch.setattr(predict, "_model", lambda _: model)
    words = {"model": None, "pictures": ["a.png"], "top": 1, "batch_size": 1, "csv": False, "json": False}
    try:
        with pytest.raises(DataError, match="no picture there"):
            predict.run(argparse.Namespace(**words, device="auto"))
    finally:
        before.restore()
    assert seen == [("cuda", False)]


def test_a_launch_of_more_processes_than_gpus_is_told_what_to_start(card):
    """As of torchrun, or of a script for srun that gives each task one GPU and LOCAL_RANK=$SLURM_LOCALID."""
    card((9, 0), "NVIDIA H100")
    with pytest.raises(DeviceError, match="got LOCAL_RANK=3, found 1 usable GPU; start one process for each GPU here"):
        device.resolve(RunOptions(), local_rank=3)


def test_gpus_of_a_launch_are_those_of_all_its_machines(card, monkeypatch):
    """--gpus 16 says no more than that there are 16 ranks; this machine has the GPUs of eight of them."""
    card((9, 0), "NVIDIA H100")
    monkeypatch.setattr(device, "num_gpus", lambda: 8)
    launch = {"RANK": 15, "LOCAL_RANK": 7, "WORLD_SIZE": 16, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    options, before = RunOptions(gpus=16, precision="bf16"), device.GpuSettings.now()
    try:
        check_machine(options)
        assert device.resolve(options, local_rank=7).device == torch.device("cuda", 7)
        with pytest.raises(DeviceError, match="got LOCAL_RANK=8, found 8 usable GPUs"):
            device.resolve(options, local_rank=8)
    finally:
        before.restore()


def test_memory_that_torch_keeps_unused_is_free_for_the_images_of_a_run(monkeypatch):
    """test_gpu_runs.py has the same on a GPU. In numbers: 40 GiB are free, and torch has 30, of which it uses 10."""
    for name, gib in {"mem_get_info": (40, 80), "memory_reserved": 30, "memory_allocated": 10}.items():
        monkeypatch.setattr(f"torch.cuda.{name}", lambda _, gib=gib: gib)
    assert pipelines.free_bytes(torch.device("cuda", 0)) == 60
