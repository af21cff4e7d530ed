"""Casting all weights together trains as autocast does, to the bit, without a cast for each weight."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from imnet import dryrun, models
from imnet.device import Place
from imnet.half_weights import HalfWeights
from imnet.launch import World
from imnet.recipe import Augment, Muon
from imnet.run_options import RunOptions
from imnet.step import TrainStep
from tests.train.conftest import TINY

RECIPE = replace(TINY, grad_clip=5.0)


class Tied(nn.Module):
    """A network with two layers that share a weight, a frozen layer, and one that never runs."""

    __module__ = "imnet.models.tied"

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.second.weight = self.first.weight
        self.still, self.unused = nn.Conv2d(3, 3, 1).requires_grad_(False), nn.Conv2d(3, 3, 1)
        self.head = nn.Linear(3, 10)

    def forward(self, x):
        return self.head(self.still(self.second(self.first(x).relu())).mean((2, 3)))


def make_step(model, optim, precision):
    torch.manual_seed(0)
    net = Tied() if model == "tied" else models.build(model, 10)
    place = Place(torch.device("cpu"), precision, "test")
    recipe = replace(RECIPE, optim=optim or RECIPE.optim)
    net = net.to(memory_format=torch.channels_last)
    return TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="auto")


def batches(step):
    g = torch.Generator().manual_seed(step)
    return [(torch.randn(n, 3, 16, 16, generator=g), torch.randint(0, 10, (n,), generator=g)) for n in (5, 3)]


DEEP = ("densenet_bc100_12", "shake_shake26_2x32d")
NETS = [("wrn10_1", None), ("speednet", Muon(lr=1e-3)), ("tied", None), *((model, None) for model in DEEP)]


# Convolutions in fp16 are slow on a CPU.
@pytest.mark.parametrize(
    ("model", "optim", "precision"),
    [*((*net, "bf16") for net in NETS),
     *(pytest.param(*net, "fp16", marks=[pytest.mark.slow] if net[0] in (*DEEP, "wrn10_1") else []) for net in NETS)],
)  # fmt: skip
def test_training_is_autocasts_to_the_bit(model, optim, precision):
    ours, autocasts = make_step(model, optim, precision), make_step(model, optim, precision)
    autocasts.half_weights = HalfWeights(autocasts.net, None)
    assert ours.half_weights.layers
    assert not autocasts.half_weights.layers
    for step in range(3):
        ours_loss, _ = ours(batches(step), 8, step, 0.05)
        assert torch.equal(ours_loss, autocasts(batches(step), 8, step, 0.05)[0])
    theirs = autocasts.tensors()
    for file, tensors in ours.tensors().items():
        assert tensors.keys() == theirs[file].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == theirs[file][name].dtype, name
            assert torch.equal(tensor, theirs[file][name]), name


class Casts(TorchDispatchMode):
    """Counts the casts of single tensors with one of the given shapes, those of the weights and their gradients."""

    def __init__(self, shapes):
        super().__init__()
        self.shapes, self.count = shapes, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._to_copy.default and args[0].shape in self.shapes:
            self.count += 1
        return function(*args, **(kwargs or {}))


def test_no_weight_is_cast_alone():
    step = make_step("wrn10_1", None, "bf16")
    weights = list(step.half_weights.copies)
    shapes = {weight.shape for weight in weights}
    counts = []
    for half in (step.half_weights, HalfWeights(step.net, None)):
        step.half_weights = half
        with Casts(shapes) as casts:
            step(batches(0), 8, 0, 0.0)
        counts.append(casts.count)
    # Autocast instead casts every weight, and every gradient back, in each of the two micro-batches.
    assert counts == [0, 4 * len(weights)]


def test_layers_have_their_own_weights_again_after_an_error():
    step = make_step("wrn10_1", None, "bf16")
    before = dict(step.net.named_parameters())
    with pytest.raises(RuntimeError, match="channels"):
        step([(torch.zeros(2, 5, 16, 16), torch.zeros(2, dtype=torch.long))], 2, 0, 0.1)
    after = dict(step.net.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is parameter for name, parameter in before.items())


def test_a_frozen_weight_has_no_copy_and_no_gradient():
    step = make_step("tied", None, "bf16")
    step(batches(0), 8, 0, 0.05)
    assert list(step.half_weights.copies) == [step.net.first.weight, step.net.unused.weight, step.net.head.weight]
    assert step.net.still.weight.grad is None


def test_a_hook_still_sees_its_gradient():
    step, seen = make_step("wrn10_1", None, "bf16"), []
    step.params[0].register_hook(lambda grad: seen.append(grad.dtype))
    step.params[3].register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.dtype))
    step(batches(0), 8, 0, 0.05)
    assert seen == 4 * [torch.float32]


@pytest.mark.parametrize("case", ["fp32", "compile", "another's network"])
def test_autocast_keeps_doing_it(case):
    torch.manual_seed(0)
    place = Place(torch.device("cpu"), "fp32" if case == "fp32" else "bf16", "test")
    net = (
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        if case.endswith("network")
        else models.build("wrn10_1", 10)
    )
    step = TrainStep(net, RECIPE, place, World(), compile=case == "compile", graphs=False, backend="auto")
    assert not step.half_weights.layers


BANDS = {"bands": "all"}


@pytest.mark.parametrize(
    ("changes", "counted"),
    [
        ({}, 1),
        ({"procs": 2}, 0),
        ({"compile": True}, 0),
        (BANDS, 4),
        (BANDS | {"procs": 2}, 2),
        (BANDS | {"procs": 4}, 1),  # one rank a band, so that no gradients are averaged
        (BANDS | {"procs": 8}, 0),
    ],
)
def test_a_dry_run_counts_the_copies_and_their_gradients(changes, counted):
    wide = replace(TINY, model="wrn16_8", augment=Augment(spectral_r=2 if "bands" in changes else None))
    text = dryrun.text(wide, RunOptions(precision="bf16", device="cpu", **changes))
    found = re.search(r"(\d+\.\d+) copies in bf16", text)
    with torch.device("meta"):
        net = models.build("wrn16_8", 4)
    two_bytes_each = 2 * 2 * sum(copy.numel() for copy in HalfWeights(net, torch.bfloat16).copies.values()) / 2**30
    assert two_bytes_each > 0.03
    assert (float(found[1]) if found else 0.0) == pytest.approx(two_bytes_each * counted, abs=0.006)
