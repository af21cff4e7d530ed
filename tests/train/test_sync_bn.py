"""--sync-bn without other ranks: which norms and which batch sizes it accepts."""

import pytest
import torch
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


@pytest.mark.parametrize(("images", "most", "fits"), [(9, 4, 5), (9, 3, None), (9, None, None), (8, 3, None)])
def test_sync_bn_wants_equal_numbers_of_passes(images, most, fits):
    order = Order(images, images, 0)
    if fits is None:
        _check_equal(_shards(order, 2), most)
        return
    with pytest.raises(UsageError, match=f"take --micro-batch-images {fits}"):
        _check_equal(_shards(order, 2), most)
