"""Checkpoints are written while training goes on; a failed write still stops the run."""

import dataclasses
import json
import os
import threading
import time

import pytest

from imnet.errors import IOFailure
from imnet.start import train

from .conftest import options
from .test_resume import digests


def writing():
    return threading.current_thread().name.startswith("checkpoint")


def newest_step(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return max(json.loads(line)["step"] for line in lines)


@pytest.fixture
def short(tiny):
    return dataclasses.replace(tiny, epochs=3)


def test_steps_go_on_while_a_checkpoint_is_written_and_it_holds_those_before(short, tmp_path, monkeypatch):
    """The first checkpoint's files are held back until a later step is logged, and must equal those of a plain run."""
    train(short, options(tmp_path / "plain", log_every_steps=1, keep="3"))
    folder, fsync, deadline, behind = tmp_path / "slow", os.fsync, time.monotonic() + 60, []

    def slow(fd):
        while writing() and not behind:
            saved = next((folder / "checkpoints").glob("*.tmp")).name
            if newest_step(folder) > int(saved[5:13]):
                behind.append(saved)
            assert time.monotonic() < deadline, "no step while the checkpoint was written"
            time.sleep(0.002)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    train(short, options(folder, log_every_steps=1, keep="3"))
    assert behind == ["step-00000008.tmp"]
    for path in sorted((tmp_path / "plain/checkpoints").glob("*/*.safetensors")):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "plain")).read_bytes(), path


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_checkpoint_that_cannot_be_written_stops_the_run(short, tmp_path, monkeypatch, epoch):
    """The first or the last checkpoint may fail; once there is room, the same command ends in the same weights."""
    train(short, options(tmp_path / "whole"))
    folder, fsync = tmp_path / "full", os.fsync

    def full(fd):
        if writing() and list((folder / "checkpoints").glob("step-*.tmp")) and epoch_being_saved(folder) == epoch:
            raise OSError(28, "No space left on device")
        fsync(fd)

    def epoch_being_saved(folder):
        states = (folder / "checkpoints").glob("step-*.tmp/state.json")
        return max((json.loads(path.read_text())["epoch"] for path in states), default=0)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(IOFailure, match=r"checkpoint not written: No space left on device"):
        train(short, options(folder))
    monkeypatch.undo()
    assert json.loads((folder / "run.json").read_text())["status"] == "running"
    assert len(list((folder / "checkpoints").iterdir())) == min(epoch - 1, 2)
    train(short, options(folder))
    assert digests(folder) == digests(tmp_path / "whole")


def test_a_run_on_a_cpu_asks_nothing_of_a_gpu_when_it_saves(short, tmp_path, monkeypatch):
    """CUDA is initialised by then, for run.json tells the names of the GPUs. There is none here, or it may be busy."""

    def asked():
        raise RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable")

    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.current_stream", asked)
    train(short, options(tmp_path / "run"))
    assert list((tmp_path / "run" / "checkpoints").glob("step-*"))
