"""Learning rates equal those of torch's schedulers at every step, and closed forms at any moment."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from imnet.recipe import SGD, Constant, Cosine, MultiStep, OneCycle, Step

from .conftest import TINY

EPOCHS, PER_EPOCH = 8, 7
STEPS = EPOCHS * PER_EPOCH


def theirs(make, count=STEPS):
    """The learning rates of torch's scheduler at the first ``count`` steps; the base rate is 1."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule, found = make(optimizer), []
    for _ in range(count):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return np.array(found)


def ours(schedule, lr=1.0, epochs=EPOCHS, per_epoch=PER_EPOCH):
    recipe = dataclasses.replace(TINY, schedule=schedule, optim=SGD(lr=lr), epochs=epochs)
    return np.array([recipe.lr_at(step, per_epoch) for step in range(epochs * per_epoch)])


def each_epoch(make):
    return np.repeat(theirs(make, EPOCHS), PER_EPOCH)


def one_cycle(optimizer):
    """torch's cycle is one step longer, since torch reaches the last rate at the last step and imnet after it."""
    total, peak = STEPS + 1, 0.25 * STEPS
    options = {"pct_start": (peak + 1) / total, "div_factor": 5.0, "final_div_factor": 20.0}
    cycle = {"anneal_strategy": "linear", "cycle_momentum": False}
    return lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=total, **options, **cycle)


SHAPES = {
    "constant": (Constant(), lambda: np.ones(STEPS)),
    "step": (Step(every_epochs=3, gamma=0.2), lambda: each_epoch(lambda o: lr_scheduler.StepLR(o, 3, 0.2))),
    "step, defaults": (Step(), lambda: each_epoch(lambda o: lr_scheduler.StepLR(o, 30, 0.1))),
    "multistep": (
        MultiStep(milestones_epochs=(2, 5), gamma=0.1),
        lambda: each_epoch(lambda o: lr_scheduler.MultiStepLR(o, [2, 5], 0.1)),
    ),
    "cosine an epoch": (
        Cosine(final_factor=0.01, per="epoch"),
        lambda: each_epoch(lambda o: lr_scheduler.CosineAnnealingLR(o, EPOCHS, eta_min=0.01)),
    ),
    "cosine a step": (
        Cosine(final_factor=0.1),
        lambda: theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1)),
    ),
    "cosine to nothing": (Cosine(), lambda: theirs(lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS))),
    "one cycle": (OneCycle(start_factor=0.2, final_factor=0.01), lambda: theirs(one_cycle)),
}


@pytest.mark.parametrize("kind", SHAPES)
def test_every_step_has_torchs_rate(kind):
    schedule, wanted = SHAPES[kind]
    np.testing.assert_allclose(ours(schedule, lr=3.0), 3.0 * wanted(), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3, 7, 10, 25, STEPS], ids=lambda n: f"{n} steps")
@pytest.mark.parametrize("kind", SHAPES)
def test_a_warm_up_multiplies_by_torchs_linear_one(kind, steps):
    """Warm-ups from less than an epoch to the whole run; the first rate is not 0, so that no step divides by 0."""
    schedule, wanted = SHAPES[kind]
    warm = theirs(lambda o: lr_scheduler.LinearLR(o, 1e-12, 1.0, steps))
    found = ours(dataclasses.replace(schedule, warmup_epochs=steps / PER_EPOCH))
    np.testing.assert_allclose(found, warm * wanted(), rtol=1e-6, atol=1e-8)
    assert 0 < found[0] < 1e-7


@pytest.mark.parametrize("seed", range(6))
def test_moments_between_steps(seed):
    """Random times, also after the end, where the last rate stays, and random parameters of the schedules."""
    rng = np.random.default_rng(seed)
    epochs, (peak, start, final, gamma) = int(rng.integers(2, 90)), rng.uniform(0.05, 0.95, 4)
    drops = tuple(sorted(int(n) for n in rng.choice(np.arange(1, 90), 3, replace=False)))
    every, warm = int(rng.integers(1, 30)), float(rng.choice([0.0, rng.uniform(0, epochs)]))
    forms = {
        OneCycle(peak_fraction=peak, start_factor=start, final_factor=final): lambda t: np.interp(
            t / epochs, [0, peak, 1], [start, 1, final]
        ),
        Cosine(final_factor=final): lambda t: 1 - (1 - final) * math.sin(min(t / epochs, 1) * math.pi / 2) ** 2,
        Step(every_epochs=every, gamma=gamma): lambda t: math.prod([gamma] * math.floor(t / every)),
        MultiStep(milestones_epochs=drops, gamma=gamma): lambda t: math.prod(gamma for drop in drops if drop <= t),
    }
    for schedule, form in forms.items():
        warmed = dataclasses.replace(schedule, warmup_epochs=warm)
        for t in (0.0, *rng.uniform(0, 1.2 * epochs, 40), float(epochs), *drops):
            share = np.interp(t, [0, warm], [0, 1]) if warm else 1.0
            assert schedule.factor(t, epochs) == pytest.approx(form(t), rel=1e-9), (schedule, t)
            assert warmed.factor(t, epochs) == pytest.approx(share * form(t), rel=1e-6, abs=1e-7), (warmed, t)


def test_the_defaults_are_the_documented_ones():
    """The parameters of a schedule whose recipe gives none."""
    wanted = np.interp(np.arange(STEPS) / STEPS, [0, 0.25, 1], [0.1, 1, 0])
    np.testing.assert_allclose(ours(OneCycle()), wanted, rtol=1e-9)
    long = ours(MultiStep(), epochs=170, per_epoch=1)
    np.testing.assert_allclose(long, np.repeat([1, 0.2, 0.04, 0.008], [60, 60, 40, 10]), rtol=1e-9)
    np.testing.assert_allclose(ours(Step(), epochs=61, per_epoch=1)[[0, 29, 30, 59, 60]], [1, 1, 0.1, 0.1, 0.01])
