"""AdamCPR equals its authors' package (if that is installed) and its formula, and a stopped run resumes exactly."""

import dataclasses

import pytest
import torch

from imnet import models, optim
from imnet.adamcpr import BoundedAdam
from imnet.options import parse
from imnet.recipe import AdamCPR, Constant
from imnet.recipe_json import from_dict, to_dict

from .test_resume import digests

SHAPES = ((3, 4, 3, 3), (5, 7), (6,))


def trained(make, steps, found_inf=()):
    """Returns (optimiser, weights) after ``steps``; every ``make(bounded, free)`` gets the same random numbers."""
    g = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=g)) for shape in SHAPES]
    optimizer = make(params[:2], params[2:])
    for step in range(steps):
        for p in params:
            p.grad = torch.randn(p.shape, generator=g) - 0.3 * p.detach()
        if step in found_inf:
            optimizer.found_inf = torch.ones(())  # set by imnet's training step; the authors' optimiser refuses it
        optimizer.step()
    return optimizer, [p.detach() for p in params]


def ours(bounded, free, **changes):
    values = {"lr": 0.05, "betas": (0.9, 0.99), "eps": 1e-8, "warm_start_steps": 4, "kappa_update": 1.0} | changes
    return BoundedAdam([{"params": bounded, "bounded": True}, {"params": free, "bounded": False}], **values)


@pytest.mark.filterwarnings("ignore::UserWarning:pytorch_cpr.*")
@pytest.mark.parametrize("warm_start", [1, 4, 9])
@pytest.mark.parametrize("kappa_update", [1.0, 0.3])
def test_the_steps_are_those_of_the_authors_package(warm_start, kappa_update, monkeypatch):
    theirs = pytest.importorskip("pytorch_cpr", reason="pip install pytorch-cpr")
    # torch has renamed this check, which only captured steps need; none are captured here.
    monkeypatch.setattr(theirs.AdamCPR, "_cuda_graph_capture_health_check", lambda _: None, raising=False)

    def make(bounded, free):
        groups = [{"params": bounded, "regularize": True}, {"params": free, "regularize": False}]
        kappa = {"kappa_init_method": "warm_start", "kappa_init_param": warm_start, "kappa_update": kappa_update}
        return theirs.AdamCPR(groups, lr=0.05, betas=(0.9, 0.99), **kappa)

    # No more steps: a multiplier that switches on and off amplifies a rounding error tenfold in ten steps.
    _, expected = trained(make, 12)
    _, found = trained(lambda *p: ours(*p, warm_start_steps=warm_start, kappa_update=kappa_update), 12)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6)


def test_the_pull_is_the_formula_and_what_is_spared_is_adams():
    def adam(bounded, free):
        return torch.optim.Adam([*bounded, *free], lr=0.05, betas=(0.9, 0.99))

    for steps in (4, 5, 6):
        _, plain = trained(adam, steps)
        optimizer, found = trained(ours, steps)
        torch.testing.assert_close(found[2], plain[2])
        if steps == 4:  # the bounds are taken after this step, and nothing has been pulled
            torch.testing.assert_close(found[:2], plain[:2])
            kappa = [float(p.square().sum()) for p in plain[:2]]
        if steps == 5:
            for p, mine, bound in zip(plain[:2], found[:2], kappa, strict=True):
                multiplier = max(0.0, (float(p.square().sum()) - bound) / p.numel())
                torch.testing.assert_close(mine, p - 2 * multiplier * p, rtol=1e-5, atol=1e-6)
    bounds = [float(optimizer.state[p]["kappa"]) for p in optimizer.param_groups[0]["params"]]
    assert bounds == pytest.approx(kappa)
    assert any(float(optimizer.state[p]["multiplier"]) > 0 for p in optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("bad", [0, 3, 4, 7])
def test_a_step_that_is_not_finite_changes_nothing(bad):
    """The bad step is one before the step that takes the bounds, that step itself, or one after it."""
    before, weights = trained(ours, bad)
    after, same = trained(ours, bad + 1, found_inf=(bad,))
    for a, b in zip(weights, same, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    for p, q in zip(before.param_groups[0]["params"], after.param_groups[0]["params"], strict=True):
        for name in before.state.get(p, ()):
            torch.testing.assert_close(before.state[p][name], after.state[q][name], rtol=0, atol=0, msg=name)


def test_it_is_an_optimiser_of_recipes():
    words = "--recipe imagenet64/wide_resnet50_2 --optim.kind adamcpr --lr 0.01 --optim.warm_start_steps 62".split()  # noqa: SIM905
    recipe = parse(words).recipe
    assert recipe.optim == AdamCPR(lr=0.01, beta1=0.9, beta2=0.999, eps=1e-8, warm_start_steps=62)
    assert from_dict(to_dict(recipe)) == recipe
    net = models.build("wrn10_1", 4)
    bounded, spared = optim.build(net, recipe.optim).param_groups
    assert (bounded["bounded"], spared["bounded"]) == (True, False)
    assert {g["weight_decay"] for g in (bounded, spared)} == {0.0}
    assert all(p.ndim > 1 for p in bounded["params"])
    with pytest.raises(ValueError, match="warm_start_steps = 0"):
        AdamCPR(lr=0.1, warm_start_steps=0)


def test_a_run_that_was_stopped_ends_in_the_same_bytes(tiny, tmp_path):
    """The run stops after the bounds were taken; bounds and multipliers must come back from the checkpoint."""
    from imnet.start import train

    from .conftest import options

    recipe = dataclasses.replace(tiny, optim=AdamCPR(lr=0.05, warm_start_steps=3), schedule=Constant(), epochs=2)
    train(dataclasses.replace(recipe, epochs=1), options(tmp_path / "stopped"))
    train(recipe, options(tmp_path / "stopped", allow_change=True))
    train(recipe, options(tmp_path / "whole"))
    assert digests(tmp_path / "stopped")[:2] == digests(tmp_path / "whole")[:2]
