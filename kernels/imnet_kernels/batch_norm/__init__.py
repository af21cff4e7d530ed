"""Batch norm of a training step with what follows it: ReLU, and the residual of a post-activation block.

Why a family: torch's channels_last kernels reach a fifth of an H200's bandwidth for the statistics and a third for the
rest, and ReLU and addition are passes of their own. Together they took a third of a captured step of WRN-36-5 and more
than half of ResNet-50's. Under torch.compile the traced reference is fused, too: see tier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from . import reference

__all__ = ["batch_norm"]


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
    wanted = (x.shape, x.dtype, x.device)
    if residual is not None and (residual.shape, residual.dtype, residual.device) != wanted:
        got = f"{residual.dtype} {tuple(residual.shape)} on {residual.device}"
        raise ValueError(f"residual is {got}; allowed {x.dtype} {tuple(x.shape)} on {x.device}, like x; convert it")
    if tier.choose("batch_norm", x.device.type) == "reference" or not _fits(x, weight, bias, running_mean, running_var):
        return reference.batch_norm(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)
    return BatchNorm.apply(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)


def _fits(x: Tensor, *channels: Tensor) -> bool:
    """Whether a kernel reads it as rows of channels; one value a channel is torch's to refuse."""
    rows = x.numel() // max(x.shape[1], 1) if x.dim() == 4 else 0
    halves = (torch.float32, torch.bfloat16, torch.float16)
    last = rows > 1 and x.dtype in halves and x.is_contiguous(memory_format=torch.channels_last)
    return last and all(t.dtype == torch.float32 and t.is_contiguous() for t in channels)


class BatchNorm(torch.autograd.Function):
    """The two ops below as one function; the running statistics get no gradient."""

    @staticmethod
    def forward(ctx, x, weight, bias, running_mean, running_var, residual, momentum, eps, relu):
        y, mean, inverse = forward_op(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)
        # Where something was added, only the result tells what ReLU let through.
        kept = y if relu and residual is not None else None
        ctx.save_for_backward(x, weight, bias, mean, inverse, kept)
        ctx.relu, ctx.adds = relu, residual is not None
        return y

    @staticmethod
    def backward(ctx, grad):  # pyright: ignore[reportIncompatibleMethodOverride]
        x, weight, bias, mean, inverse, y = ctx.saved_tensors
        d_x, d_weight, d_bias, d_residual = backward_op(grad, x, weight, bias, mean, inverse, y, ctx.relu)
        if ctx.adds and y is None:
            d_residual = grad
        return d_x, d_weight, d_bias, None, None, d_residual if ctx.adds else None, None, None, None


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
) -> tuple[Tensor, Tensor, Tensor]:
    """(y like x, the batch's mean (C,), 1 / sqrt(var + eps) (C,)), both fp32; the running statistics are moved."""
    run = tier.implementation("batch_norm", x.device.type).forward
    return run(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu)


@forward_op.register_fake
def _(x, weight, bias, running_mean, running_var, residual, momentum, eps, relu):
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)


@torch.library.custom_op("imnet::batch_norm_backward", mutates_args=())
def backward_op(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, y: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(d_x like x, d_weight, d_bias, d_residual); the last is empty unless the result ``y`` is given."""
    return tier.implementation("batch_norm", x.device.type).backward(grad, x, weight, bias, mean, inverse, y, relu)


@backward_op.register_fake
def _(grad, x, weight, bias, mean, inverse, y, relu):
    added = torch.empty_like(x) if y is not None else x.new_empty(0)
    return torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight), added
