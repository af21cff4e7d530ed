"""shake_shake through the CUDA library; fp64 goes to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from . import reference


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine."""
    if x1.dtype == torch.float64:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = native.dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    native.cuda().shake(x1, x2, residual, alpha.contiguous(), out)
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    if grad.dtype == torch.float64:
        return reference.combine_backward(grad, beta)
    (grad,) = native.dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    native.cuda().shake_backward(grad, beta.contiguous(), d1, d2)
    return d1, d2
