"""A training from Python leaves nothing of itself in memory: a notebook goes on in the same process."""

import gc
import os
import signal

import pytest
import torch

import imnet
from imnet import models
from imnet.data.pipelines.resident import Resident
from imnet.errors import DataError, DeviceError, Preempted
from imnet.step import TrainStep
from imnet.trainer import Trainer
from tests.use.conftest import TINY

DIVERGES = imnet.replace(TINY, optim=imnet.replace(TINY.optim, lr=1e30))
ON_CPU = {"device": "cpu", "precision": "fp32", "threads": 1}


@pytest.fixture
def left():
    """The names of the parts of trainings that are alive, without a run of Python's collector, whose time nobody knows.
    What the tests before have left is collected first, or not counted if something still holds it."""

    def parts():
        return [o for o in gc.get_objects() if type(o) in (Trainer, TrainStep, Resident)]

    gc.collect()
    gc.disable()
    others = parts()
    yield lambda: [type(o).__name__ for o in parts() if not any(o is other for other in others)]
    gc.enable()


def test_nothing_is_left_of_a_run(left, tmp_path):
    run = imnet.train(TINY, out=tmp_path, **ON_CPU)
    assert left() == []
    assert run.evaluate(device_name="cpu").num_images == 20
    assert left() == []


def interrupted(monkeypatch):
    """A Ctrl-C in the notebook, while the network is being built."""
    built = models.build
    monkeypatch.setattr(models, "build", lambda *a, **k: os.kill(os.getpid(), signal.SIGINT) or built(*a, **k))
    return TINY


def out_of_memory(monkeypatch):
    """There may be no GPU here, so the last layer raises what torch raises of one."""

    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.50 GiB.")

    monkeypatch.setattr(torch.nn.Linear, "forward", fail)
    return TINY


@pytest.mark.parametrize(
    ("case", "error"), [(lambda _: DIVERGES, DataError), (interrupted, Preempted), (out_of_memory, DeviceError)]
)
def test_nothing_is_left_of_one_whose_error_is_kept(case, error, left, tmp_path, monkeypatch):
    """As a notebook keeps it, for its debugger."""
    recipe = case(monkeypatch)
    with pytest.raises(error) as kept:
        imnet.train(recipe, out=tmp_path, **ON_CPU)
    assert left() == []
    assert kept.value.__traceback__ is not None


def failing():
    own = "kept"
    raise KeyError(own)


def trained_instead(out):
    try:
        failing()
    except KeyError:
        imnet.train(DIVERGES, out=out, **ON_CPU)


def test_an_error_of_the_callers_keeps_its_variables(tmp_path):
    """One that the caller handles by a training, which fails as well."""
    with pytest.raises(DataError) as kept:
        trained_instead(tmp_path)
    frame = kept.value.__context__.__traceback__.tb_next.tb_frame
    assert frame.f_locals == {"own": "kept"}
