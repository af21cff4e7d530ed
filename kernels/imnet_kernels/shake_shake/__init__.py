"""The mix that ends a Shake-Shake block: two branches and the residual in one pass, with other coefficients backward.

Why a family: eager PyTorch moves 20 to 34 bytes per element where 8 suffice. Under torch.compile the traced reference
is as good: see tier.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from . import reference

__all__ = ["shake_shake"]

Coefficient = Tensor | float


def shake_shake(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Coefficient, beta: Coefficient) -> Tensor:
    """Return residual + alpha x1 + (1 - alpha) x2, like x1; its gradient uses beta instead of alpha.

    x1, x2, residual (B, C, H, W) have one shape, dtype and device. alpha, beta: a number, or a tensor of floats with B
    entries (per image) or one (per batch), any shape. They are used in fp32 and never promote the other tensors.
    Evaluation uses alpha = 0.5. Raises TypeError or ValueError for anything else.
    """
    check_branches(x1, x2, residual)
    a, b = coefficient("alpha", alpha, x1), coefficient("beta", beta, x1)
    if tier.choose("shake_shake", x1.device.type) == "reference":
        return reference.Combine.apply(x1, x2, residual, a, b)
    return shake_op(x1, x2, residual, a, b)


def check_branches(x1: Tensor, x2: Tensor, residual: Tensor) -> None:
    if x1.dim() != 4 or not x1.is_floating_point():
        raise TypeError(f"x1 is {x1.dtype} {tuple(x1.shape)}; allowed floating point (B, C, H, W); convert it")
    for name, tensor in (("x2", x2), ("residual", residual)):
        if tensor.shape != x1.shape or tensor.dtype != x1.dtype or tensor.device != x1.device:
            got = f"{tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            wanted = f"{x1.dtype} {tuple(x1.shape)} on {x1.device}"
            raise ValueError(f"{name} is {got}; allowed {wanted}, like x1; convert it")


def coefficient(name: str, value: Coefficient, like: Tensor) -> Tensor:
    """Check alpha or beta and return it as (B,) or (1,) fp32 on like's device (a tensor as fp64 if ``like`` is)."""
    if not isinstance(value, Tensor):
        return torch.full((1,), float(value), dtype=torch.float32, device=like.device)
    if value.numel() not in (1, like.shape[0]) or not value.is_floating_point() or value.device != like.device:
        got = f"{value.dtype} {tuple(value.shape)} on {value.device}"
        raise ValueError(f"{name} is {got}; allowed 1 or {like.shape[0]} floats on {like.device}; draw that many")
    return value.detach().reshape(-1).to(reference.compute_dtype(like))


@torch.library.custom_op("imnet::shake_shake", mutates_args=())
def shake_op(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """See reference.combine; beta is used only by the gradient."""
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
