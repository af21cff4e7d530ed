"""The end of a Shake-Shake block in training: the last batch norms of its two branches, their random mix with the
residual, and the ReLU that the next block begins with.

Why a family: as separate passes in bf16 these move 24 bytes per element forward and 44 backward, where 14 and 24
suffice. Under torch.compile the traced reference runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from ..batch_norm import Norm, rows_of_channels
from ..calls import unobserved
from ..shake_shake import Coefficient, check_branches, coefficient
from . import reference

__all__ = ["shake_batch_norm"]


def shake_batch_norm(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    norm1: Norm,
    norm2: Norm,
    alpha: Coefficient,
    beta: Coefficient,
    *,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return (y, relu(y), relu(y)) for y = residual + alpha norm1(x1) + (1 - alpha) norm2(x2); all like x1.

    The gradient uses beta instead of alpha. relu(y) is returned twice, for two readers, so that their gradients are
    added inside the backward kernel. x1, x2, residual and the coefficients are as in :func:`shake_shake`, the norms as
    in :func:`batch_norm`, with the batch's statistics. The faster tiers serve channels_last fp32, bf16 and fp16;
    anything else, and calls under torch.compile or a dispatch mode, run the reference. Raises as those two functions.
    """
    check_branches(x1, x2, residual)
    a, b = coefficient("alpha", alpha, x1), coefficient("beta", beta, x1)
    maps = x1, x2, residual
    fits = all(rows_of_channels(m, *norm1, *norm2) for m in maps) and unobserved()
    if tier.choose("shake_batch_norm", x1.device.type) == "reference" or not fits:
        return reference.shake_batch_norm(*maps, norm1, norm2, a, b, momentum, eps)
    return ShakeBatchNorm.apply(*maps, *norm1, *norm2, a, b, momentum, eps)  # pyright: ignore[reportReturnType]


class ShakeBatchNorm(torch.autograd.Function):
    """A tier's forward and backward as one differentiable function; statistics and coefficients get no gradient."""

    @staticmethod
    def forward(ctx, x1, x2, residual, *others):
        chosen = tier.implementation("shake_batch_norm", x1.device.type)
        norm1, norm2, (alpha, beta, momentum, eps) = Norm(*others[:4]), Norm(*others[4:8]), others[8:]
        y, activated, *found = chosen.forward(x1, x2, residual, norm1, norm2, alpha, momentum, eps)
        ctx.save_for_backward(activated, x1, x2, norm1.weight, norm2.weight, beta, *found)
        ctx.run_backward = chosen.backward  # the tier may change before
        # If nothing reads a result, its gradient is None, and no zeros are written and added for it.
        ctx.set_materialize_grads(False)
        return y, activated, activated.detach()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad, *grads_activated):  # pyright: ignore[reportIncompatibleMethodOverride]
        known = ctx.saved_tensors
        grads = [g for g in grads_activated if g is not None]
        d_x1, d_x2, d_residual, *d_norms = ctx.run_backward(grad, grads, *known)
        d_weight1, d_bias1, d_weight2, d_bias2 = d_norms
        none = (None, None)
        return d_x1, d_x2, d_residual, d_weight1, d_bias1, *none, d_weight2, d_bias2, *none, *none, *none
