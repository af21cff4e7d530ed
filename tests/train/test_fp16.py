"""fp16 and its loss scale, on the CPU: an overflow skips the step and halves the scale; only a real failure stops."""

import dataclasses

import torch

from imnet import models
from imnet.device import Place
from imnet.launch import World
from imnet.step import TrainStep

from .conftest import TINY


def make_step():
    torch.manual_seed(0)
    net = models.build("wrn10_1", 4).to(memory_format=torch.channels_last)
    recipe = dataclasses.replace(TINY, ema_decay=None)
    place = Place(torch.device("cpu"), "fp16", "test")
    return TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="auto")


def batch():
    g = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(0, 4, (8,), generator=g)


def test_an_overflow_of_the_scale_is_skipped_and_does_not_stop_the_run():
    step = make_step()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    before = {k: v.clone() for k, v in step.net.named_parameters()}
    _, bad = step([batch()], 8, 0, 0.05)
    assert not bad
    assert step.scaler.get_scale() == 2.0**21
    for name, value in step.net.named_parameters():
        assert torch.equal(value, before[name]), name
    for number in range(1, 9):
        assert not step([batch()], 8, number, 0.05)[1]
    assert any(not torch.equal(v, before[k]) for k, v in step.net.named_parameters())
    assert all(v.isfinite().all() for v in step.net.parameters())


def test_a_loss_that_is_not_finite_stops():
    images, labels = batch()
    assert make_step()([(images.fill_(float("nan")), labels)], 8, 0, 0.05)[1]


def test_a_loss_that_is_not_finite_is_no_step_though_its_gradients_are():
    """A logit overflowed to minus infinity: the scaler, which sees only the gradients, would accept the step."""
    step, (images, _) = make_step(), batch()
    bias = step.net.get_parameter("head.bias")
    with torch.no_grad():
        bias[0] = -torch.inf
    before = {k: v.clone() for k, v in step.net.named_parameters()}
    assert step([(images, torch.zeros(8, dtype=torch.int64))], 8, 0, 0.05)[1]
    for name, value in step.net.named_parameters():
        assert torch.equal(value, before[name]), name


def test_a_gradient_that_overflows_at_scale_one_stops():
    step = make_step()
    step.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    step.params[0].register_hook(lambda grad: grad.fill_(float("inf")))
    assert step([batch()], 8, 0, 0.05)[1]
