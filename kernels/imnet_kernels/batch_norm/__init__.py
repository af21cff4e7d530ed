"""Batch norm in training, fused with its neighbours: the addition that ends a pre-activation block before it, or the
residual and the ReLU of a post-activation block after it.

Why a family: torch's channels_last kernels reach a fifth of an H200's bandwidth for the statistics and a third for the
rest, and ReLU and addition are passes of their own. Together they took a third of a captured step of WRN-36-5 and more
than half of ResNet-50's. Under torch.compile the traced reference is fused as well: see tier.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import tier
from . import reference

__all__ = ["Norm", "add_batch_norm", "batch_norm"]


class Norm(NamedTuple):
    """A batch norm's tensors, (C,) fp32 each; the running statistics are updated in place and get no gradient."""

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
    """Return relu(norm(x) + residual), in x's dtype and layout, with the batch's statistics; updates the running ones.

    x, residual (B, C, H, W), one dtype; weight, bias, running_mean, running_var (C,) fp32. The faster tiers serve
    channels_last fp32, bf16 and fp16; anything else is computed by torch. Raises ValueError for one value per channel.
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
    """Return (x + addend, relu(norm(x + addend))), in x's dtype and layout; see :func:`batch_norm`.

    The sum is returned because the next residual connection may read it, too. addend has x's shape, dtype and device.
    The statistics are those of the returned sum, which is rounded to x's dtype.
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
    """Whether a faster tier than the reference is chosen and can read these tensors."""
    return tier.choose("batch_norm", x.device.type) != "reference" and rows_of_channels(x, *channels)


def rows_of_channels(x: Tensor, *channels: Tensor) -> bool:
    """Whether the kernels can read x as B H W rows of C channels, with dense fp32 vectors per channel.

    False for one value per channel, which torch refuses with ValueError.
    """
    rows = x.numel() // max(x.shape[1], 1) if x.dim() == 4 else 0
    halves = (torch.float32, torch.bfloat16, torch.float16)
    last = rows > 1 and x.dtype in halves and x.is_contiguous(memory_format=torch.channels_last)
    return last and all(t.dtype == torch.float32 and t.is_contiguous() for t in channels)


class BatchNorm(torch.autograd.Function):
    """The two ops below as one differentiable function; returns y, or (x + addend, y) if there is an addend."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, residual, momentum, eps, relu, addend=None):
        channels = (weight, bias, running_mean, running_var)
        y, mean, inverse, total = forward_op(x, *channels, residual, momentum, eps, relu, addend)
        # ReLU's mask is recomputed from x in the backward pass. With a residual, which is not saved, y gives it.
        kept = y if relu and residual is not None else None
        ctx.save_for_backward(x if addend is None else total, weight, bias, mean, inverse, kept)
        ctx.relu, ctx.adds, ctx.sums = relu, residual is not None, addend is not None
        # If nothing else reads the sum, its gradient is None, and no zeros are written and added for it.
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
    """Return (y, the batch's mean (C,), 1 / sqrt(var + eps) (C,), x + addend); updates the running statistics.

    y and the sum have x's dtype and layout, the statistics are fp32. Without an addend the sum is empty.
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
    """Return (d_x like x, d_weight, d_bias, d_residual); d_residual is empty unless the result ``y`` is given.

    If x is a sum that is also read elsewhere, ``grad_sum`` is the gradient from there, which is added to d_x.
    """
    run = tier.implementation("batch_norm", x.device.type).backward
    return run(grad, x, weight, bias, mean, inverse, y, relu, grad_sum)


@backward_op.register_fake
def _(grad, x, weight, bias, mean, inverse, y, relu, grad_sum=None):
    added = torch.empty_like(x) if y is not None else x.new_empty(0)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), added
