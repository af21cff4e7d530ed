"""The contract's rows for the Triton tier on CPU tensors; run by test_triton.py with TRITON_INTERPRET=1."""

from __future__ import annotations

import copy

import pytest
import torch
from imnet_kernels import tier
from imnet_kernels.family import families

ROWS = [
    pytest.param(family, case, dtype, id=f"{family.name}-{case.name}-{dtype}")
    for family in families()
    for case in family.contract
    if not case.real  # the interpreter runs element loops in numpy
    for dtype in family.tolerance
]


@pytest.mark.parametrize(("family", "case", "dtype"), ROWS)
def test_triton_agrees_with_the_reference(family, case, dtype):
    assert tier.missing("triton", "cpu") is None
    family.check(case, dtype, "triton")


def test_an_id_out_of_range_reads_nothing(monkeypatch):
    from imnet_kernels import augment as public
    from imnet_kernels.augment import _triton
    from imnet_kernels.augment.reference import Spec

    store = torch.ones(2, 4, 4, 3, dtype=torch.uint8)
    ones, ids = torch.ones(3), torch.tensor([1, 2, -1])
    out = _triton.augment(store, ids, ids, ones, ones, Spec(0, 0), torch.float32)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()
    with pytest.raises(ValueError, match="ids span"):
        public(store, ids, seed=0, epoch=0, mean=0.0, std=1.0)


def test_no_large_mean_cancels_in_a_variance():
    """Deviation 1 about a mean of 1,000: a sum of squares in fp32 would keep two digits of it."""
    from imnet_kernels.batch_norm import _triton

    x = torch.randn(40, 16, 9, 9, generator=torch.Generator().manual_seed(0)) + 1000.0
    x = x.contiguous(memory_format=torch.channels_last)
    ones, zeros = torch.ones(16), torch.zeros(16)
    _, mean, inverse = _triton.forward(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 0.0, False)
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(inverse.double(), 1 / exact.std(1, correction=0), rtol=2e-5, atol=0.0)


def _blocks():
    """Every way in which networks call it: pre-activation, branches without ReLU, residuals, projections."""
    from torchvision.models import resnet

    from imnet.models.fused_resnet import fuse_norms
    from imnet.models.shake_shake import ShakeBlock
    from imnet.models.wrn import PreActBlock

    class Shake(ShakeBlock):
        def forward(self, x):
            return super().forward(x, (torch.tensor([0.3]), torch.tensor([0.6])))

    theirs = torch.nn.Sequential(
        resnet.BasicBlock(8, 16, 2, torch.nn.Sequential(resnet.conv1x1(8, 16, 2), torch.nn.BatchNorm2d(16))),
        resnet.Bottleneck(16, 4),
    )
    fuse_norms(theirs)
    return [PreActBlock(8, 16, 2), Shake(8, 16, 2), theirs]


@pytest.mark.parametrize("index", range(3), ids=("pre-activation", "shake-shake", "torchvision"))
def test_blocks_give_the_same_gradients_with_it(index):
    torch.manual_seed(0)
    net = _blocks()[index].to(memory_format=torch.channels_last).train()
    images = torch.randn(4, 8, 8, 8).contiguous(memory_format=torch.channels_last)
    start, found = copy.deepcopy(net.state_dict()), {}
    for spec in ("reference", "batch_norm=triton"):
        net.load_state_dict(start)
        with tier.using(spec):
            grads = torch.autograd.grad((net(images) + 1).square().sum(), list(net.parameters()))
        found[spec] = [*grads, *(b.clone().float() for b in net.buffers())]
    for got, want in zip(found["batch_norm=triton"], found["reference"], strict=True):
        assert (got - want).norm() <= 2e-5 * want.norm() + 1e-7
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)
