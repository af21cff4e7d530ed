"""shake_shake on the CPU through imnet_kernels._host; fp64 goes to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import hostlib
from . import reference


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine."""
    if x1.dtype not in hostlib.CODES:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = hostlib.dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    _shake(False, (x1, x2, residual, out), alpha.contiguous(), x1)
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    if grad.dtype not in hostlib.CODES:
        return reference.combine_backward(grad, beta)
    (grad,) = hostlib.dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    _shake(True, (grad, d1, d2, None), beta.contiguous(), grad)
    return d1, d2


def _shake(backward: bool, tensors: tuple[Tensor | None, ...], coefficient: Tensor, like: Tensor) -> None:
    if like.numel() == 0:
        return
    addresses = [hostlib.address(t) for t in tensors]
    batch, image_elements = like.shape[0], like.numel() // like.shape[0]
    count, code = coefficient.numel(), hostlib.CODES[like.dtype]
    hostlib.module().shake(
        backward, *addresses, batch, image_elements, coefficient.data_ptr(), count, code, hostlib.threads()
    )
