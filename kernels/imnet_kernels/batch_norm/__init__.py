"""Batch norm of a training step with what stands beside it: the addition that ends a pre-activation block before it,
ReLU and the residual of a post-activation block behind it.

Why a family: torch's channels_last kernels reach a fifth of an H200's bandwidth for the statistics and a third for the
rest, and ReLU and addition are passes of their own. Together they took a third of a captured step of WRN-36-5 and more
than half of ResNet-50's. Under torch.compile the traced reference is fused, too: see tier.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tier
from . import reference

__all__ = ["Norm", "add_batch_norm", "batch_norm"]


class Norm(NamedTuple):
    """A batch norm's tensors, (C,) fp32 each; the running statistics are moved in place and get no gradient."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
    residual: Tensor | None = None,
) -> Tensor:
    """relu(norm(x) + residual) with the batch's statistics, which the running ones are moved towards; like x.

    x, residual (B, C, H, W), one dtype; weight, bias, running_mean, running_var (C,) fp32. The faster tiers take
    channels_last fp32, bf16 and fp16; everything else is torch's own. Raises ValueError for one value a channel.
    """
    if residual is not None:
        _check_like("residual", residual, x)
    if not _fits(x, weight, bias, running_mean, running_var):
        return reference.batch_norm(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)
    return BatchNorm.apply(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)


def add_batch_norm(
    x: Tensor,
    addend: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
    relu: bool = False,
) -> tuple[Tensor, Tensor]:
    """(x + addend, relu(norm(x + addend))): :func:`batch_norm` of a sum that others may read too; both like x.

    addend is like x. The statistics are those of the sum as it is returned, rounded to its dtype.
    """
    _check_like("addend", addend, x)
    if not _fits(x, weight, bias, running_mean, running_var):
        total = x + addend
        return total, reference.batch_norm(total, weight, bias, running_mean, running_var, None, momentum, eps, relu)
    return BatchNorm.apply(x, weight, bias, running_mean, running_var, None, momentum, eps, relu, addend)


def _check_like(name: str, tensor: Tensor, x: Tensor) -> None:
    if (tensor.shape, tensor.dtype, tensor.device) != (x.shape, x.dtype, x.device):
        got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
        raise ValueError(f"{name} is {got}; allowed {x.dtype} {tuple(x.shape)} on {x.device}, like x; convert it")


def _fits(x: Tensor, *channels: Tensor) -> bool:
    """Whether a faster tier is chosen and reads it."""
    return tier.choose("batch_norm", x.device.type) != "reference" and rows_of_channels(x, *channels)


def rows_of_channels(x: Tensor, *channels: Tensor) -> bool:
    """Whether kernels read it as rows of channels with fp32 numbers each; one value a channel is torch's to refuse."""
    rows = x.numel() // max(x.shape[1], 1) if x.dim() == 4 else 0
    halves = (torch.float32, torch.bfloat16, torch.float16)
    last = rows > 1 and x.dtype in halves and x.is_contiguous(memory_format=torch.channels_last)
    return last and all(t.dtype == torch.float32 and t.is_contiguous() for t in channels)


class BatchNorm(torch.autograd.Function):
    """The two ops below as one function: y, or (x + addend, y); the running statistics get no gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, residual, momentum, eps, relu, addend=None):
        channels = (weight, bias, running_mean, running_var)
        y, mean, inverse, total = forward_op(x, *channels, residual, momentum, eps, relu, addend)
        # Where something was added, only the result tells what ReLU let through.
        kept = y if relu and residual is not None else None
        ctx.save_for_backward(x if addend is None else total, weight, bias, mean, inverse, kept)
        ctx.relu, ctx.adds, ctx.sums = relu, residual is not None, addend is not None
        # A sum that nobody else reads has no gradient of its own, and no zeros are written and added for it.
        ctx.set_materialize_grads(False)
        return y if addend is None else (total, y)

    @staticmethod
    def backward(ctx, *grads):
        grad, grad_sum = grads[-1], grads[0] if ctx.sums else None
        x, weight, bias, mean, inverse, y = ctx.saved_tensors
        grad = torch.zeros_like(x) if grad is None else grad
        known = (x, weight, bias, mean, inverse)
        d_x, d_weight, d_bias, d_residual = backward_op(grad, *known, y, ctx.relu, grad_sum)
        if ctx.adds and y is None:
            d_residual = grad
        d_added = (d_residual if ctx.adds else None, None, None, None, d_x if ctx.sums else None)
        return d_x, d_weight, d_bias, None, None, *d_added


@torch.library.custom_op("imnet::batch_norm", mutates_args=("running_mean", "running_var"))
def forward_op(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
    addend: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(y, the batch's mean (C,), 1 / sqrt(var + eps) (C,), x + addend); the running statistics are moved.

    y and the sum, which is empty without an addend, are like x; the numbers of a channel are fp32.
    """
    run = tier.implementation("batch_norm", x.device.type).forward
    return run(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu, addend)


@forward_op.register_fake
def _(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu, addend=None):
    total = x.new_empty(0) if addend is None else torch.empty_like(x)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), total


@torch.library.custom_op("imnet::batch_norm_backward", mutates_args=())
def backward_op(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    inverse: Tensor,
    y: Tensor | None,
    relu: bool,
    grad_sum: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(d_x like x, d_weight, d_bias, d_residual); the last is empty unless the result ``y`` is given.

    ``grad_sum`` is what reached x, a sum, by other ways than the norm, to be part of d_x.
    """
    run = tier.implementation("batch_norm", x.device.type).backward
    return run(grad, x, weight, bias, mean, inverse, y, relu, grad_sum)


@backward_op.register_fake
def _(grad, x, weight, bias, mean, inverse, y, relu, grad_sum=None):
    added = torch.empty_like(x) if y is not None else x.new_empty(0)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), added
