"""Averages gradients over the ranks, by DistributedDataParallel with the recipe's communication options, and optionally
computes BatchNorm statistics over all ranks: by torch's SyncBatchNorm on GPUs, by ``AllRanksNorm`` elsewhere.
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

# torch 2.15 renamed the argument; the signature tells which name this version has.
_NEW_NAME = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_BUFFERS = "forward_sync_buffers" if _NEW_NAME else "broadcast_buffers"


def parallel(net: nn.Module, comm: Comm, place: Place, world: World) -> nn.Module:
    """``net`` wrapped to average its gradients over the ranks as ``comm`` says, or ``net`` itself if there is no other
    rank to average with."""
    if not world.reduces:
        return net
    options: dict[str, Any] = {
        "process_group": world.group,
        "device_ids": [place.device.index] if place.device.type == "cuda" else None,
        # A list, because with a single size torch would not make a small first bucket.
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
    """Whether ``net`` has a BatchNorm, i.e. in training an image's output depends on the other images of the batch."""
    return any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in net.modules())


def synchronise_norms(net: nn.Module, place: Place, group: Any = None) -> None:
    """Let every BatchNorm of ``net`` compute its training statistics over the ranks of ``group`` (None: all), with the
    same parameters and names.

    Raises UsageError for subclasses of torch's norms, which may compute more (timm fuses activations into some).
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
        # Parameters and buffers keep their names; only the forward pass differs.
        norm.__class__ = AllRanksNorm
        norm.group = group


class AllRanksNorm(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with mean and variance over the images of all ranks, on any backend; in evaluation the same as torch's.

    Ranks may have different numbers of images, but must make the same number of forward and backward passes.
    """

    group: Any = None

    def _check_input_dim(self, input: Tensor) -> None:
        """Accepts any input: one class replaces the 1d, 2d and 3d norms."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) -> (B, C, ...) for this rank's images."""
        if not self.training:
            return super().forward(input)
        x = input.float()
        dims, shape = [d for d in range(x.dim()) if d != 1], [1, -1, *([1] * (x.dim() - 2))]
        here = x.new_full((1,), x.numel() / x.shape[1])
        # Two sums in turn, since E[x^2] - E[x]^2 in one pass loses precision by cancellation if the mean is large.
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
        """Update the running statistics; the running variance takes the unbiased variance."""
        if not self.track_running_stats or self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * count / (count - 1).clamp(min=1), share)


class _AllReduce(torch.autograd.Function):
    """Sum over the ranks. Its gradient is summed too, since every rank's loss depends on every rank's input."""

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
