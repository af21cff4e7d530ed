"""SGD and EMA in one pass equal torch.optim.SGD and AveragedModel, also when resumed, skipping steps or scaled."""

import copy
import dataclasses

import pytest
import torch
from imnet_kernels import tier
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from imnet import models, optim
from imnet.device import Place
from imnet.launch import World
from imnet.recipe import SGD
from imnet.step import TrainStep

from .conftest import TINY

RECIPES = {
    "heavy ball": SGD(lr=0.1, momentum=0.9, weight_decay=5e-4),
    "nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3, decay_norms=False),
    "plain": SGD(lr=0.1, momentum=0.0, weight_decay=5e-4),
}


def make_step(backend, recipe=TINY, precision="fp32"):
    torch.manual_seed(0)
    net = models.build("wrn10_1", 4).to(memory_format=torch.channels_last)
    place = Place(torch.device("cpu"), precision, "test")
    step = TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend=backend)
    step.add_ema(copy.deepcopy(net), 0.9)
    assert step.ema is not None
    return step, step.ema.averaged


def batch(seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, 3, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 4, (8,), generator=g)


def both(step, averaged):
    return [*step.net.state_dict().values(), *averaged.state_dict().values()]


@pytest.mark.parametrize("kernels", ["reference", "host"])
@pytest.mark.parametrize("kind", RECIPES)
def test_steps_equal_torchs_sgd_and_average(kind, kernels):
    missing = tier.missing(kernels, "cpu")
    if missing:
        pytest.skip(missing)
    ours = models.build("wrn10_1", 4).to(memory_format=torch.channels_last)
    theirs = copy.deepcopy(ours)
    averaged = AveragedModel(theirs, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    averaged.update_parameters(theirs)  # the first call copies the weights
    merged, plain = optim.build(ours, RECIPES[kind], "imnet"), optim.build(theirs, RECIPES[kind], "torch")
    ema = optim.Ema(ours, copy.deepcopy(ours), 0.9)
    ema.merge(merged)
    generator = torch.Generator().manual_seed(1)
    for step in range(4):
        for group, other in zip(merged.param_groups, plain.param_groups, strict=True):
            group["lr"] = other["lr"] = 0.1 / (step + 1)
        for index, (p, q) in enumerate(zip(ours.parameters(), theirs.parameters(), strict=True)):
            grad = torch.randn(p.shape, generator=generator)
            # One weight has no gradient, as in a branch that was not taken; torch wants the weight's memory layout.
            p.grad, q.grad = (None, None) if index == 3 else (grad, torch.empty_like(q).copy_(grad))
        with tier.using(kernels):
            merged.step()
        ema.update()
        plain.step()
        averaged.update_parameters(theirs)
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    for a, b in zip(ema.averaged.state_dict().values(), averaged.module.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert optim.state_tensors(merged).keys() >= optim.state_tensors(plain).keys()


@pytest.mark.parametrize("clip", [None, 0.05])
def test_training_equals_the_torch_backend(clip):
    recipe = dataclasses.replace(TINY, optim=RECIPES["nesterov"], grad_clip=clip)
    steps = [make_step(backend, recipe) for backend in ("imnet", "torch")]
    for i in range(3):
        for step, _ in steps:
            step([batch(i)], 8, i, 0.05)
    for a, b in zip(both(*steps[0]), both(*steps[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def test_a_resumed_step_ends_bit_for_bit():
    whole, first, resumed = (make_step("imnet") for _ in range(3))
    for i in range(4):
        whole[0]([batch(i)], 8, i, 0.05)
    for i in range(2):
        first[0]([batch(i)], 8, i, 0.05)
    found = first[0].tensors()
    resumed[0].load_tensors({k: {n: v.clone().contiguous() for n, v in t.items()} for k, t in found.items()})
    for i in range(2, 4):
        resumed[0]([batch(i)], 8, i, 0.05)
    for a, b in zip(both(*whole), both(*resumed), strict=True):
        assert torch.equal(a, b)


def test_a_skipped_step_moves_the_average_as_the_torch_backend_does():
    steps = [make_step(backend) for backend in ("imnet", "torch")]
    for step, _ in steps:
        step([batch(0)], 8, 0, 0.05)
    before = [p.clone() for p in steps[0][0].net.parameters()]
    for step, _ in steps:
        images, labels = batch(1)
        _, bad = step([(images.index_fill(0, torch.tensor([2]), float("inf")), labels)], 8, 1, 0.05)
        assert bad
    for a, b in zip(before, steps[0][0].net.parameters(), strict=True):
        assert torch.equal(a, b)
    averages = [dict(averaged.named_parameters()) for _, averaged in steps]
    for name, value in averages[0].items():
        torch.testing.assert_close(value, averages[1][name], msg=name)


def test_a_loss_scale_is_taken_off_and_its_overflow_skipped():
    steps = [make_step(backend, precision="fp16") for backend in ("imnet", "torch")]
    for step, _ in steps:
        step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        for i in range(4):
            step([batch(i)], 8, i, 0.05)
    assert steps[0][0].scaler.get_scale() == steps[1][0].scaler.get_scale() < 2.0**22
    for a, b in zip(both(*steps[0]), both(*steps[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-3)


def test_auto_merges_large_weights_only():
    sgd = SGD(lr=0.1)
    host = tier.choose("sgd_ema", "cpu") == "host"
    large = torch.nn.Linear(512, 512)
    assert isinstance(optim.build(large, sgd), optim.MergedSGD) is host
    assert not isinstance(optim.build(large, sgd, "torch"), optim.MergedSGD)
    assert not isinstance(optim.build(models.build("wrn10_1", 4), sgd), optim.MergedSGD)


def test_without_an_average_it_is_torchs_step_bit_for_bit():
    weights = []
    for backend in ("imnet", "torch"):
        torch.manual_seed(1)
        net = torch.nn.Linear(64, 33)
        optimizer = optim.build(net, RECIPES["nesterov"], backend)
        for _ in range(2):
            net(torch.randn(5, 64)).square().sum().backward()
            optimizer.step()
        weights.append(net.weight)
    assert torch.equal(*weights)
