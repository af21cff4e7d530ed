"""torch.ops.imnet.shake_*: the opaque ops behind the tiers that are not plain PyTorch; backward is itself an op."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier


@torch.library.custom_op("imnet::shake_shake", mutates_args=())
def shake_op(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """beta is used by the gradient alone."""
    return tier.implementation("shake_shake", x1.device.type).combine(x1, x2, residual, alpha)


@shake_op.register_fake
def _(x1, x2, residual, alpha, beta):
    return torch.empty_like(x1)


@torch.library.custom_op("imnet::shake_shake_backward", mutates_args=())
def shake_backward_op(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    return tier.implementation("shake_shake", grad.device.type).combine_backward(grad, beta)


@shake_backward_op.register_fake
def _(grad, beta):
    return torch.empty_like(grad), torch.empty_like(grad)


def _shake_context(ctx, inputs, output) -> None:
    ctx.save_for_backward(inputs[-1])


def _shake_gradient(ctx, grad: Tensor):
    (beta,) = ctx.saved_tensors
    return *shake_backward_op(grad, beta), grad, None, None


shake_op.register_autograd(_shake_gradient, setup_context=_shake_context)
