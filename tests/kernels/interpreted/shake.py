"""shake_batch_norm in Triton, and a training step of Shake-Shake that uses it."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import after_a_step
from imnet_kernels import tier

SHAKE = "shake_batch_norm=triton"


@pytest.fixture
def calls(monkeypatch):
    """A list that gets the first map of every forward call of the kernels."""
    from imnet_kernels.shake_batch_norm import _triton

    seen, forward = [], _triton.forward
    monkeypatch.setattr(_triton, "forward", lambda *given: seen.append(given[0]) or forward(*given))
    return seen


def _step(spec, precision):
    """Returns state and loss after a step of a network of twelve blocks, 8 to 32 channels wide."""
    from imnet.models.shake_shake import ShakeShake26

    return after_a_step(lambda: ShakeShake26(8, 4, 5), spec, precision)


def test_the_nets_step_is_the_same_with_it(calls):
    exact, ours = _step("reference", "fp32"), _step(SHAKE, "fp32")
    assert ours.keys() == exact.keys()
    for name, theirs in exact.items():
        assert (ours[name] - theirs).float().norm() <= 2e-5 * theirs.float().norm() + 1e-6, name
    assert [x.dtype for x in calls] == 12 * [torch.float32]


def test_in_bf16_it_is_about_as_near_to_fp32_as_the_reference(calls):
    exact = _step("reference", "fp32")
    off = {}
    for spec in ("reference", SHAKE):
        half = _step(spec, "bf16")
        off[spec] = sum((half[name] - exact[name]).float().square().sum() for name in exact).sqrt()
    assert 0.0 < off[SHAKE] <= 1.5 * off["reference"]
    assert [x.dtype for x in calls] == 12 * [torch.bfloat16]


def _outputs(case, dtype=torch.bfloat16):
    from imnet_kernels.family import outputs
    from imnet_kernels.shake_batch_norm.cases import FAMILY

    with tier.using(SHAKE):
        return outputs(FAMILY.make(next(c for c in FAMILY.cases if c.name == case), dtype, "cpu"))


def test_it_gives_the_same_bits_twice():
    assert all(torch.equal(one, other) for one, other in zip(_outputs("many rows"), _outputs("many rows"), strict=True))


def test_few_programs_take_many_rows_each(monkeypatch):
    """As for a map with more tiles than MOST_PARTS partial results, where each program takes several."""
    from imnet_kernels.batch_norm import _triton
    from imnet_kernels.shake_batch_norm.cases import FAMILY

    monkeypatch.setattr(_triton, "MOST_PARTS", 8)
    FAMILY.check(next(c for c in FAMILY.cases if c.name == "many rows"), torch.float32, "triton")


def test_no_zeros_are_made_for_a_result_that_nobody_reads(monkeypatch):
    from imnet_kernels.shake_batch_norm import _triton

    backward, seen = _triton.backward, []
    monkeypatch.setattr(
        _triton,
        "backward",
        lambda own, grads, *known: seen.append((own is None, len(grads))) or backward(own, grads, *known),
    )
    for case in ("sum alone is read", "one reader behind ReLU", "other reader and sum", "two readers behind ReLU"):
        _outputs(case)
    assert seen == [(False, 0), (True, 1), (False, 1), (True, 2)]


def test_what_diverged_shows_it():
    from imnet_kernels import shake_batch_norm
    from imnet_kernels.batch_norm import Norm

    maps = [torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last) for _ in range(3)]
    maps[0][0, 3] = float("nan")
    norms = [Norm(torch.ones(8), torch.zeros(8), torch.zeros(8), torch.ones(8)) for _ in range(2)]
    with tier.using(SHAKE):
        results = shake_batch_norm(*maps, *norms, 0.5, 0.5)
    assert all(result[:, 3].isnan().all() and not result[:, 2].isnan().any() for result in results)


def _frozen(block):
    block.branch1.bn2.eval()
    return block


def _other_momentum(block):
    block.branch1.bn2.momentum = 0.3
    return block


def _no_running_statistics(block):
    block.branch2.bn2.track_running_stats = False
    return block


@pytest.mark.parametrize(
    "form", ["taken", "eval", "planar", "double", "frozen", "other momentum", "no running", "compile"]
)
def test_where_it_does_not_fit_the_block_is_torchs_own(form, calls):
    """Results, gradients and running statistics must be the reference's, whether or not the kernels take the block."""
    from imnet.models.shake_shake import ShakeBlock, activated

    torch.manual_seed(0)
    block = ShakeBlock(8, 16, 2)
    block = {"frozen": _frozen, "other momentum": _other_momentum, "no running": _no_running_statistics}.get(
        form, lambda block: block
    )(block)
    block = block.double() if form == "double" else block.eval() if form == "eval" else block
    block = block if form == "planar" else block.to(memory_format=torch.channels_last)
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64 if form == "double" else torch.float32)
    x = (x if form == "planar" else x.contiguous(memory_format=torch.channels_last)).requires_grad_()
    coefficients = None if form == "eval" else (torch.rand(3), torch.rand(3))
    run = torch.compile(block, backend="eager", fullgraph=True) if form == "compile" else block
    start, found = copy.deepcopy(block.state_dict()), []
    for spec in ("reference", SHAKE):
        block.load_state_dict(start)
        with tier.using(spec):
            y, first, second = run(activated(x), coefficients)
        loss = (y + 1).square().sum() + (2 * first).square().sum() + second.sum()
        found.append(
            [*torch.autograd.grad(loss, (x, *block.parameters())), y, *(b.clone().double() for b in block.buffers())]
        )
    assert bool(calls) == (form == "taken")
    for want, got in zip(*found, strict=True):
        assert (got - want).norm() <= 2e-5 * want.norm() + 1e-6
