"""--sync-bn without other ranks: which norms and which batch sizes it accepts."""

import copy

import pytest
import torch
import torch.distributed as dist
from torch import nn

from imnet.data.order import Order
from imnet.device import Place
from imnet.errors import UsageError
from imnet.fits import _check_equal, _shards
from imnet.parallel import synchronise_norms


class Fused(nn.BatchNorm2d):
    """A subclass such as timm's norms with an activation inside, which a replacement would lose."""


def test_sync_bn_refuses_a_norm_with_an_arithmetic_of_its_own():
    with pytest.raises(UsageError, match="Fused, which is not torch's own BatchNorm"):
        synchronise_norms(nn.Sequential(Fused(3)), Place(torch.device("cpu"), "fp32", "test"))


def test_sync_bn_is_torchs_on_a_gpu_and_keeps_parameters():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    before = dict(net.named_parameters())
    synchronise_norms(net, Place(torch.device("cuda"), "fp32", "test"))
    assert isinstance(net[1], nn.SyncBatchNorm)
    assert all(p is before[name] for name, p in net.named_parameters())


@pytest.fixture
def only_rank():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("kind", "shape"), [
    (nn.BatchNorm1d, (6, 3)), (nn.BatchNorm1d, (6, 3, 5)), (nn.BatchNorm2d, (6, 3, 5, 4)),
    (nn.BatchNorm3d, (2, 3, 5, 4, 2)),
])  # fmt: skip
@pytest.mark.parametrize(
    "options",
    [{}, {"affine": False}, {"momentum": None}, {"momentum": 0.3, "eps": 0.1}, {"track_running_stats": False}],
)
def test_on_one_rank_it_is_torchs_own_norm(kind, shape, options, only_rank):
    """With a mean far from 0, of which the square would cancel in fp32."""
    g = torch.Generator().manual_seed(0)
    theirs = kind(3, **options)
    for p in theirs.parameters():
        nn.init.uniform_(p, 0.5, 2, generator=g)
    ours = copy.deepcopy(theirs)
    synchronise_norms(ours, Place(torch.device("cpu"), "fp32", "test"))
    for number in range(3):
        x = torch.randn(shape, generator=g) * (number + 1) + 300
        out, gradient = [], torch.randn(shape, generator=g)
        for norm in (ours, theirs):
            given = x.clone().requires_grad_()
            found = norm(given)
            found.backward(gradient)
            out.append({"out": found.detach(), "gradient": given.grad, **norm.state_dict()})
            out[-1] |= {f"gradient of {name}": p.grad for name, p in norm.named_parameters()}
        torch.testing.assert_close(*out, rtol=1e-4, atol=1e-4)
    ours.eval(), theirs.eval()
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-4)
    ours.train(), theirs.train()
    torch.testing.assert_close(ours(x.bfloat16()), theirs(x.bfloat16()), rtol=0.02, atol=0.02)  # dtypes too


@pytest.mark.parametrize(("images", "most", "fits"), [(9, 4, 5), (9, 3, None), (9, None, None), (8, 3, None)])
def test_sync_bn_wants_equal_numbers_of_passes(images, most, fits):
    order = Order(images, images, 0)
    if fits is None:
        _check_equal(_shards(order, 2), most)
        return
    with pytest.raises(UsageError, match=f"take --micro-batch-images {fits}"):
        _check_equal(_shards(order, 2), most)
