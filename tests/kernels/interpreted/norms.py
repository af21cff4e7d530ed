"""batch_norm and add_batch_norm in Triton, and the networks that call them."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import step_of
from imnet_kernels import add_batch_norm, batch_norm, tier

NORMS = "batch_norm=triton"


def test_no_large_mean_cancels_in_a_variance():
    """With a deviation of 1 about a mean of 1,000, a sum of squares in fp32 would keep only two digits of it."""
    from imnet_kernels.batch_norm import _triton

    x = torch.randn(40, 16, 9, 9, generator=torch.Generator().manual_seed(0)) + 1000.0
    x = x.contiguous(memory_format=torch.channels_last)
    ones, zeros = torch.ones(16), torch.zeros(16)
    _, mean, inverse, _ = _triton.forward(x, ones, zeros, zeros.clone(), ones.clone(), None, 0.1, 0.0, False)
    exact = x.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(mean.double(), exact.mean(1), rtol=1e-6, atol=0.0)
    torch.testing.assert_close(inverse.double(), 1 / exact.std(1, correction=0), rtol=2e-5, atol=0.0)


@pytest.mark.parametrize(
    ("channels", "dtype"), [(7, torch.float16), (24, torch.bfloat16), (80, torch.float32)], ids=str
)
def test_a_sum_is_normed_as_if_it_had_been_added_before(dtype, channels):
    """Statistics, result and gradients are, to the bit, those of the returned sum, which is rounded to its dtype."""
    drawn = torch.randn(2, 9, channels, 13, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, addend = (m.contiguous(memory_format=torch.channels_last).requires_grad_() for m in drawn)
    weight, bias = (torch.linspace(-1, 2, channels).requires_grad_() for _ in range(2))
    running = [[torch.zeros(channels), torch.ones(channels)] for _ in range(2)]
    with tier.using(NORMS):
        total, y = add_batch_norm(x, addend, weight, bias, *running[0], relu=True)
        plain = total.detach().requires_grad_()
        want = batch_norm(plain, weight, bias, *running[1], relu=True)
        assert torch.equal(y, want)
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(*running, strict=True))
        grad, leaves = want.detach().flip(0).contiguous(memory_format=torch.channels_last), (weight, bias)
        theirs = torch.autograd.grad(want, (plain, *leaves), grad)
        mine = torch.autograd.grad(y, (x, addend, *leaves), grad, retain_graph=True)
        kept = torch.autograd.grad((y, total), (x, addend), (grad, 100 * grad), retain_graph=True)
        alone = torch.autograd.grad(total, (x, addend, *leaves), grad)
    assert all(torch.equal(m, t) for m, t in zip(mine, (theirs[0], *theirs), strict=True))
    assert torch.equal(kept[0], kept[1])
    both = theirs[0].double() + 100 * grad.double()
    assert (kept[0].double() - both).abs().max() <= 2 * torch.finfo(dtype).eps * both.abs().max()
    assert torch.equal(alone[0], grad)
    assert torch.equal(alone[1], grad)
    assert not any(t.any() for t in alone[2:])


@pytest.mark.parametrize("kept", [False, True])
def test_a_sum_that_only_the_norm_reads_has_no_zeros_for_a_gradient(kept, monkeypatch):
    from imnet_kernels.batch_norm import _triton

    backward, seen = _triton.backward, []
    monkeypatch.setattr(_triton, "backward", lambda *a: seen.append(a[-1]) or backward(*a))
    x, four = torch.randn(2, 4, 3, 3).contiguous(memory_format=torch.channels_last), [torch.ones(4) for _ in range(4)]
    with tier.using(NORMS):
        total, y = add_batch_norm(x.requires_grad_(), x.detach(), *four)
        (y.sum() + total.sum() if kept else y.sum()).backward()
    assert [grad is not None for grad in seen] == [kept]


@pytest.mark.parametrize("other", [torch.zeros(2, 4, 3, 2), torch.zeros(2, 4, 3, 3, dtype=torch.float16)])
@pytest.mark.parametrize("spec", ["reference", NORMS])
def test_what_cannot_be_added_is_refused(other, spec):
    four = [torch.ones(4) for _ in range(4)]
    with tier.using(spec), pytest.raises(ValueError, match=r"addend is .*; allowed torch.float32 \(2, 4, 3, 3\)"):
        add_batch_norm(torch.zeros(2, 4, 3, 3), other, *four)


def _blocks():
    """Returns blocks that call the norm in every way: pre-activation, branches without ReLU, residuals, projections."""
    from torchvision.models import resnet

    from imnet.models.fused_resnet import fuse_norms
    from imnet.models.shake_shake import ShakeBlock, activated
    from imnet.models.wrn import PreActBlock

    class Shake(ShakeBlock):
        def forward(self, x):
            return super().forward(activated(x), (torch.tensor([0.3]), torch.tensor([0.6]))).x

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
    for spec in ("reference", NORMS):
        net.load_state_dict(start)
        with tier.using(spec):
            grads = torch.autograd.grad((net(images) + 1).square().sum(), list(net.parameters()))
        found[spec] = [*grads, *(b.clone().float() for b in net.buffers())]
    for got, want in zip(found[NORMS], found["reference"], strict=True):
        assert (got - want).norm() <= 2e-5 * want.norm() + 1e-7
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert all(int(norm.num_batches_tracked) == 1 for norm in norms)


def _networks():
    from imnet.models.wrn import LasagneWideResNet, WideResNet

    # "wrn" has skips that are the sum itself or a projection of the activated sum; "lasagne" projects the sum.
    return {"wrn": lambda: WideResNet(12, 1, 5, groups=2), "lasagne": lambda: LasagneWideResNet(12, 1, 5)}


@pytest.fixture
def additions(monkeypatch):
    """A list that gets an entry for every addition that a norm of a network does."""
    from imnet.models import layers

    calls = []
    monkeypatch.setattr(layers, "add_batch_norm", lambda *a, **k: calls.append(0) or add_batch_norm(*a, **k))
    return calls


@pytest.mark.parametrize("name", _networks())
def test_a_step_of_a_network_that_leaves_its_additions_to_its_norms_is_the_step(name, additions):
    found = {}
    for spec in ("reference", NORMS):
        torch.manual_seed(0)
        net = _networks()[name]().to(memory_format=torch.channels_last)
        step, batch = step_of(net)
        with tier.using(spec):
            loss = step([batch], 6, 0, 0.1)[0]
            logits = net.eval()(batch[0])
        assert len(additions) == (0 if spec == "reference" else len(net.blocks))
        found[spec] = [loss, logits.detach(), *(t.clone().float() for t in net.state_dict().values())]
    for got, want in zip(*found.values(), strict=True):
        assert (got - want).norm() <= 2e-4 * want.norm() + 1e-6


@pytest.mark.parametrize("name", _networks())
def test_such_a_network_in_bf16_is_as_near_to_fp32_as_the_reference(name, additions):
    torch.manual_seed(0)
    net, grads = _networks()[name]().to(memory_format=torch.channels_last), {}
    for precision, spec in (("fp32", "reference"), ("bf16", "reference"), ("bf16", NORMS)):
        step, (images, labels) = step_of(net, precision)
        with tier.using(spec):
            loss = step.loss(net, images, labels)
            found = torch.autograd.grad(loss, list(net.parameters()))
        grads[precision, spec] = torch.cat([g.flatten().double() for g in found])
    assert len(additions) == len(net.blocks)
    exact, eager, ours = grads.values()
    assert (ours - exact).norm() <= 1.5 * (eager - exact).norm()


@pytest.mark.slow
def test_such_a_network_compiles_as_one_graph(additions):
    torch._dynamo.reset()
    torch.manual_seed(0)
    net = _networks()["wrn"]().to(memory_format=torch.channels_last).train()
    images, found = step_of(net)[1][0], []
    start = copy.deepcopy(net.state_dict())
    with tier.using(NORMS):
        for forward in (net, torch.compile(net, fullgraph=True, backend="aot_eager")):
            net.load_state_dict(start)
            found.append(torch.autograd.grad(forward(images).square().sum(), list(net.parameters())))
    assert len(additions) == 2 * len(net.blocks)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [1, 3])
def test_a_sum_that_is_not_finite_is_named_where_it_arises(number):
    """Both summands are finite and their sum overflows: the user must be told the block that adds them."""
    from imnet.watch import first_bad_layer

    net = _networks()["wrn"]().to(memory_format=torch.channels_last)
    step, batch = step_of(net)
    huge = torch.finfo(torch.float32).max * 0.9

    def one_huge(tensor):
        return torch.where(torch.arange(tensor.numel()).view_as(tensor) == 0, huge, tensor)

    assert net.blocks[number].projection is None
    net.blocks[number].register_forward_pre_hook(lambda m, args: one_huge(args[0]))
    net.blocks[number].conv2.register_forward_hook(lambda m, i, o: one_huge(o))
    with tier.using(NORMS):
        assert first_bad_layer(net, [batch], step.loss) == f"output of blocks.{number}"
