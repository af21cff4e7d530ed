"""How ranks agree on a gradient, and on BatchNorm's statistics where the recipe asks for those of all ranks.

DistributedDataParallel with the recipe's communication options; torch's SyncBatchNorm on GPUs, ``AllRanksNorm`` here.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from imnet.device import Place
from imnet.errors import UsageError
from imnet.launch import World
from imnet.recipe import Comm

# torch 2.15 gave the argument another name; ours is looked up in the signature, so that both versions are served.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if _NEW_NAME else "broadcast_buffers"


def parallel(net: nn.Module, comm: Comm, place: Place, world: World) -> nn.Module:
    """``net`` wrapped so that gradients are averaged over the ranks as ``comm`` says; itself where it is alone."""
    if not world.reduces:
        return net
    options: dict[str, Any] = {
        "process_group": world.group,
        "device_ids": [place.device.index] if place.device.type == "cuda" else None,
        # As a list: a single size would take torch's small first bucket away.
        "bucket_cap_mb_list": [min(comm.first_bucket_mb, comm.bucket_mb), comm.bucket_mb],
        "gradient_as_bucket_view": comm.gradient_as_bucket_view,
        "static_graph": comm.static_graph,
        _BUFFERS: comm.broadcast_buffers,
    }
    wrapped = DistributedDataParallel(net, **options)
    if comm.gradient_dtype == "bf16":
        wrapped.register_comm_hook(None, bf16_compress_hook)
    return wrapped


_PLAIN = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def has_batch_norm(net: nn.Module) -> bool:
    """Whether an image's result in training depends on the images beside it."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def synchronise_norms(net: nn.Module, place: Place, group: Any = None) -> None:
    """Let every BatchNorm of ``net`` take its training statistics over the ranks of ``group`` (None: all); weights and
    names stay.

    Raises UsageError for a norm with an arithmetic of its own (timm fuses activations into some).
    """
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    odd = next((m for m in norms if type(m) not in _PLAIN), None)
    if odd is not None:
        what = f"got --sync-bn for a network with {type(odd).__name__}, which is not torch's own BatchNorm"
        raise UsageError(what, hint="leave --sync-bn out, or choose another network")
    if place.device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(net, group)
        return
    for norm in norms:
        # The same parameters and buffers under the same names: only what is computed differs.
        norm.__class__ = AllRanksNorm
        norm.group = group


class AllRanksNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm over all ranks on any backend: mean and variance of all their images; in evaluation as torch's.

    Ranks may hold different numbers of images, but must make the same number of passes.
    """

    group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Any: what it stands in for has checked."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> the same, of this rank's images."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *([1] * (x.dim() - 2))]
        here = x.new_full((1,), x.numel() / x.shape[1])
        # Two sums, one after the other: E[x^2] - E[x]^2 would cancel where the mean is large.
        total, count = _AllReduce.apply(torch.cat([x.sum(dims), here]), self.group).split([x.shape[1], 1])
        mean = total / count
        centred = x - mean.view(shape)
        variance = _AllReduce.apply(centred.square().sum(dims), self.group) / count
        self._remember(mean.detach(), variance.detach(), count.detach())
        scale = torch.rsqrt(variance + self.eps)
        if self.affine:
            scale = scale * self.weight
        result = centred * scale.view(shape)
        return (result + self.bias.view(shape) if self.affine else result).to(input.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: Tensor) -> None:
        """Move the running statistics; the variance that is remembered is the unbiased one."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


class _AllReduce(torch.autograd.Function):
    """Sum over the ranks; so is its gradient, since every rank's loss depends on every rank's summand."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group, total = group, tensor.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None
