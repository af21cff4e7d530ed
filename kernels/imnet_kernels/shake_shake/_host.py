"""shake_shake on the CPU through imnet_kernels._host; fp64 is left to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from . import reference


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine."""
    if x1.dtype not in native.CODES:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = native.dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    alpha = alpha.contiguous()
    addresses = {"x1": x1.data_ptr(), "x2": x2.data_ptr(), "residual": residual.data_ptr(), "out": out.data_ptr()}
    if out.numel():
        native.host().shake(**addresses, **_common(x1, alpha))
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    if grad.dtype not in native.CODES:
        return reference.combine_backward(grad, beta)
    (grad,) = native.dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    beta = beta.contiguous()
    addresses = {"grad": grad.data_ptr(), "d1": d1.data_ptr(), "d2": d2.data_ptr()}
    if grad.numel():
        native.host().shake_backward(**addresses, **_common(grad, beta))
    return d1, d2


def _common(like: Tensor, coefficient: Tensor) -> dict[str, int]:
    """The kernel arguments common to both directions; in an empty batch an image has 0 elements."""
    return {
        "batch": like.shape[0],
        "image_elements": like.numel() // max(like.shape[0], 1),
        "coefficient": coefficient.data_ptr(),
        "num_coefficients": coefficient.numel(),
        "dtype": native.CODES[like.dtype],
        "num_threads": torch.get_num_threads(),
    }
