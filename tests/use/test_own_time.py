"""The estimate of the time of a training on one's own pictures: which process measures it, and on how many images."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from imnet import device, find, own
from imnet.errors import DeviceError
from imnet.recipe import replace
from imnet.run_options import RunOptions
from tests.use.test_own import folder_of


@pytest.fixture
def estimate(tmp_path):
    """A function estimate(**options) -> images/s of the line about a folder of sixteen pictures."""
    photos = folder_of(tmp_path / "photos", size=(40, 40))
    recipe = own.recipe(photos, gpu=False, model="speednet")[0]
    recipe = replace(recipe, data=replace(recipe.data, batch_images=32), model_options={"width": 8})

    def made(**changes):
        told = own.expected(recipe, RunOptions(**({"data_dir": str(photos), "out": str(tmp_path / "run")} | changes)))
        return float(re.search(r": ([\d,]+) images/s", told)[1].replace(",", ""))

    return made


def test_all_ranks_of_a_launch_are_counted(estimate, monkeypatch):
    """torchrun says their number in its variables, not by an option."""
    monkeypatch.setattr(find, "seconds", lambda step, recipe, images, place: images / 100)
    one = estimate(device="cpu")
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 4, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in launch.items():
        monkeypatch.setenv(name, str(value))
    assert (one, estimate(device="cpu")) == (100, 400)


def test_no_more_images_are_tried_at_once_than_in_the_run(estimate, monkeypatch):
    """More of them might not fit on the GPU, and the command would end although the run fits."""
    tried = []
    monkeypatch.setattr(find, "seconds", lambda step, recipe, images, place: tried.append(images) or 1.0)
    for options in ({}, {"micro_batch_images": 8}):
        estimate(device="cpu", **options)
    assert tried == [32, 8]


def test_a_process_that_will_start_ranks_on_gpus_measures_in_another_one(estimate, monkeypatch):
    """Only this process believes in two GPUs, so that the other one says what it finds."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(device, "num_gpus", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda **_: True)
    with pytest.raises(DeviceError, match="got --gpus 2, found 0 usable GPUs"):
        estimate(gpus=2)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ends a process with its parent")
def test_the_other_process_ends_with_the_one_that_was_killed(tmp_path):
    """Else it would keep the GPU."""
    told = tmp_path / "child"
    write = f"__import__('pathlib').Path({str(told)!r}).write_text(str(__import__('os').getpid())); import time"
    script = f"from imnet import find; find.apart(exec, {write + '; time.sleep(600)'!r})"
    parent = subprocess.Popen([sys.executable, "-c", script])
    try:
        while not (told.exists() and told.read_text()) and parent.poll() is None:
            time.sleep(0.05)
    finally:
        parent.kill()
        parent.wait()
    child, deadline = Path("/proc") / told.read_text(), time.monotonic() + 60
    while running(child) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not running(child)


def running(process):
    """Whether it has not ended; one that nobody has waited for yet is a zombie."""
    try:
        return (process / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
