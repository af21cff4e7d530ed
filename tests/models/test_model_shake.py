"""Shake-Shake's coefficients: how they are drawn, what the options do, and that a restored generator repeats them."""

import pytest
import torch

from imnet.errors import UsageError
from imnet.models import build
from imnet.models.shake_shake import ShakeShake26


def network(**options):
    torch.manual_seed(0)
    return ShakeShake26(4, 4, 5, **options)


def drawn(images_count, **options):
    pairs = network(**options).coefficients(torch.zeros(images_count, 3, 8, 8))
    return torch.stack([a for a, _ in pairs]), torch.stack([b for _, b in pairs])


def test_coefficients_are_uniform_and_those_of_backward_independent():
    alpha, beta = drawn(4000)
    assert alpha.shape == beta.shape == (12, 4000)
    assert alpha.dtype == torch.float32
    for values in (alpha, beta):
        assert values.mean().item() == pytest.approx(0.5, abs=0.005)
        assert values.var().item() == pytest.approx(1 / 12, abs=0.002)
    rows = torch.cat([alpha, beta])
    correlation = torch.corrcoef(rows) - torch.eye(24)
    assert correlation.abs().max() < 0.08  # 5 sigma of 4000 samples


def test_levels_and_kinds():
    assert drawn(7, shake_level="batch")[0].shape == (12, 1)
    alpha, beta = drawn(7, shake_forward="even")
    assert (alpha == 0.5).all()
    assert beta.unique().numel() == 84
    alpha, beta = drawn(7, shake_backward="keep")
    assert torch.equal(alpha, beta)
    assert (drawn(7, shake_backward="even")[1] == 0.5).all()
    assert torch.equal(drawn(7)[0], drawn(7, shake_backward="keep")[0])  # the option does not change the random stream


@pytest.mark.parametrize("option", ["shake_forward", "shake_backward", "shake_level"])
def test_unknown_kind_is_refused(option):
    with pytest.raises(UsageError, match=f"{option}='keeep'; allowed: "):
        build("shake_shake26_2x32d", 10, **{option: "keeep"})


def test_one_random_call_per_step_and_a_restored_generator_repeats_it():
    model, images = network().train(), torch.randn(3, 3, 8, 8)
    state = torch.get_rng_state()
    first = model(images)
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    torch.rand(2, 12, 3)
    assert torch.equal(after, torch.get_rng_state())
    torch.set_rng_state(state)
    assert torch.equal(first, model(images))
    assert not torch.equal(first, model(images))


def test_evaluation_is_deterministic_and_draws_nothing():
    model, images = network().eval(), torch.randn(3, 3, 8, 8)
    state = torch.get_rng_state()
    assert torch.equal(model(images), model(images))
    assert torch.equal(state, torch.get_rng_state())


def test_even_training_is_evaluation_with_batch_statistics():
    model, images = network(shake_forward="even", shake_backward="even").train(), torch.randn(3, 3, 8, 8)
    shaken = model(images)
    model.coefficients = lambda images: [None] * 12
    torch.testing.assert_close(shaken, model(images))
