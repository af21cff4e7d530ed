"""The definition of Shake-Shake's mix (Gastaldi 2017): forward and backward use independent coefficients.

    y = residual + a x1 + (1 - a) x2            dx1 = b g,  dx2 = (1 - b) g,  dresidual = g

Plain ops inside an autograd.Function, so that torch.compile can trace it. Arithmetic is fp32 (fp64 for fp64 tensors),
rounded once to the dtype of the tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """``tensor.to(dtype)``, skipped if it would change nothing: when torch 2.11 traces a ``to`` that returns its own
    input inside an autograd.Function, every gradient becomes zero.
    """
    return tensor if tensor.dtype == dtype else tensor.to(dtype)


def per_image(coefficient: Tensor, like: Tensor) -> Tensor:
    """(B,) or (1,) -> (B or 1, 1, 1, 1) in the compute dtype."""
    return cast(coefficient, compute_dtype(like)).view(-1, 1, 1, 1)


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """x1, x2, residual (B, C, H, W); alpha (B,) or (1,) fp32 -> (B, C, H, W) like x1."""
    dtype, a = compute_dtype(x1), per_image(alpha, x1)
    if x1.dtype == dtype:
        # Without casts, two passes instead of five: twice as fast without a compiler. Not in place, because when torch
        # 2.11 traces an in-place operation inside an autograd.Function, every gradient becomes zero.
        return torch.lerp(x1, x2, 1 - a) + residual
    return cast(cast(residual, dtype) + a * cast(x1, dtype) + (1 - a) * cast(x2, dtype), x1.dtype)


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """grad (B, C, H, W) -> (beta grad, (1 - beta) grad)."""
    b, g = per_image(beta, grad), cast(grad, compute_dtype(grad))
    return cast(b * g, grad.dtype), cast((1 - b) * g, grad.dtype)


class Combine(torch.autograd.Function):
    """combine with combine_backward as its gradient; the coefficients get no gradient."""

    @staticmethod
    def forward(ctx, x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        ctx.save_for_backward(beta)
        return combine(x1, x2, residual, alpha)

    @staticmethod
    def backward(ctx, grad: Tensor):  # pyright: ignore[reportIncompatibleMethodOverride]
        (beta,) = ctx.saved_tensors
        return *combine_backward(grad, beta), grad, None, None
