"""What happens around the recording of a step: where it fails, and when it is destroyed.

A CPU records nothing, so ``_record`` is replaced where a test needs a recording; all around it is the run's own code.
"""

import contextlib
import dataclasses

import pytest
import torch

from imnet import trainer
from imnet.capture import CapturedStep, NotCapturableError, on_stream, repeatable
from imnet.errors import IOFailure
from imnet.start import train
from imnet.step import TrainStep

from .conftest import TINY, options
from .test_step import batch, make_step

PLAIN = dataclasses.replace(TINY, ema_decay=None)


class Waits(torch.autograd.Function):
    """The identity, whose backward pass waits for the device, in the words that torch has for this on a GPU."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        raise RuntimeError("called a synchronizing CUDA operation")


def recorded_beside_nothing(captured):
    with repeatable():
        captured.step.compute(captured.static, captured.num_images)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_that_cannot_be_recorded_leaves_no_gradient(precision, monkeypatch):
    """The layers behind the one that waits have their gradients by then, which the first step would take for its own.
    In bf16 they are those of the copies of the weights."""
    monkeypatch.setattr(CapturedStep, "_record", recorded_beside_nothing)
    found = []
    for waits in (False, True):
        step = make_step(PLAIN, precision)
        if waits:
            hook = step.net.get_submodule("blocks.0").register_forward_hook(lambda block, given, y: Waits.apply(y))
            with pytest.raises(NotCapturableError, match="waits for the device"):
                CapturedStep(step).capture([batch(0)], 8)
            hook.remove()
        step([batch(1)], 8, 0, 0.05)
        found.append(step.net.state_dict())
    for name, value in found[0].items():
        assert torch.equal(value, found[1][name]), name


class Recording:
    """Stands for a CUDA graph, which a CPU cannot record."""

    def __init__(self):
        self.resets = 0

    def reset(self):
        self.resets += 1


@pytest.mark.parametrize("fails", [False, True], ids=["complete", "failed"])
def test_a_run_s_recording_is_destroyed_when_the_run_ends(fails, tmp_path, monkeypatch):
    """Before the process group, which NCCL does not close as long as a graph holds one of its collectives."""
    made, warm_up = [], TrainStep.warm_up

    def captures(self, batches, num_images):
        warm_up(self, batches, num_images)
        made.append(Recording())
        self.graph = CapturedStep(self)
        self.graph.graph, self.graph.static, self.graph.num_images = made[-1], [], 0  # fits no batch

    def full(*_):
        raise IOFailure("no room", file=tmp_path)

    monkeypatch.setattr(TrainStep, "warm_up", captures)
    if fails:
        monkeypatch.setattr(trainer.runfolder.RunFolder, "check_room", full)
        with pytest.raises(IOFailure):
            train(dataclasses.replace(TINY, epochs=1), options(tmp_path / "run"))
    else:
        train(dataclasses.replace(TINY, epochs=1), options(tmp_path / "run"))
    assert [recording.resets for recording in made] == [1]


def test_steps_go_on_without_a_recording_that_was_destroyed():
    step, plain = make_step(TINY), make_step(TINY)
    step.graph = CapturedStep(step)
    step.graph.static, step.graph.num_images, step.graph.graph = [batch(0)], 8, Recording()  # pyright: ignore[reportAttributeAccessIssue]
    assert step.graph.fits([batch(1)], 8)
    step.release()
    step.release()
    assert not step.graph.fits([batch(1)], 8)
    for one in (step, plain):
        one([batch(1)], 8, 0, 0.05)
    for mine, theirs in zip(step.net.parameters(), plain.net.parameters(), strict=True):
        assert torch.equal(mine, theirs)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("fails", [False, True])
def test_work_on_another_stream_is_in_turn(fails):
    """Before it comes what the current stream has to do, after it what that stream gets next, even after an error."""
    x, seen, stream = torch.zeros(1, device="cuda"), torch.zeros(1, device="cuda"), torch.cuda.Stream()
    torch.cuda._sleep(100_000_000)
    x.fill_(1.0)
    with contextlib.suppress(KeyError), on_stream(stream):
        seen.copy_(x)
        torch.cuda._sleep(100_000_000)
        x.fill_(2.0)
        if fails:
            raise KeyError
    after = x.clone()
    assert (float(seen), float(after)) == (1.0, 2.0)


class Late(torch.nn.Module):
    """Changes its running statistics late, and then reads a number back from the device."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.head = torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.Linear(8, 4)

    def forward(self, images):
        maps = self.conv(images)
        torch.cuda._sleep(100_000_000)
        maps = self.norm(maps)
        return self.head(maps.mean((2, 3)) * (1.0 if maps.abs().max().item() > 1e-6 else 2.0))


@pytest.mark.gpu
@needs_gpu
def test_what_is_put_back_stays_after_a_step_that_cannot_be_recorded():
    from imnet.device import Place
    from imnet.launch import World

    net, place = Late().cuda().to(memory_format=torch.channels_last), Place(torch.device("cuda", 0), "fp32", "test")
    before, (images, labels) = {name: value.clone() for name, value in net.state_dict().items()}, batch(0)
    step = TrainStep(net, PLAIN, place, World(), compile=False, graphs=True, backend="auto")
    with pytest.raises(NotCapturableError, match="waits for the device"):
        step.warm_up([(images.cuda(), labels.cuda())], 8)
    torch.cuda.synchronize()
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in net.parameters())
