"""shake_shake through the CUDA library; fp64 goes to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cudalib, hostlib
from . import reference


def _dense(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [t.contiguous(memory_format=hostlib.memory_format(like)) for t in tensors]


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine."""
    if x1.dtype == torch.float64:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = _dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    cudalib.ops().shake(x1, x2, residual, alpha.contiguous(), out)
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    if grad.dtype == torch.float64:
        return reference.combine_backward(grad, beta)
    (grad,) = _dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    cudalib.ops().shake_backward(grad, beta.contiguous(), d1, d2)
    return d1, d2


def combine_bn(
    x1: Tensor,
    x2: Tensor,
    residual: Tensor,
    scale1: Tensor,
    shift1: Tensor,
    scale2: Tensor,
    shift2: Tensor,
    alpha: Tensor,
) -> Tensor:
    """See reference.combine_bn."""
    vectors = [v.contiguous() for v in (scale1, shift1, scale2, shift2)]
    if x1.dtype == torch.float64:
        return reference.combine_bn(x1, x2, residual, *vectors, alpha)  # pyright: ignore[reportCallIssue]
    x1, x2, residual = _dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    cudalib.ops().shake_bn(x1, x2, residual, *vectors, alpha.contiguous(), out)
    return out


def combine_bn_backward(
    grad: Tensor, x1: Tensor, x2: Tensor, scale1: Tensor, scale2: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See reference.combine_bn_backward; the kernel sums per image, the batch is summed here in order."""
    if x1.dtype == torch.float64:
        return reference.combine_bn_backward(grad, x1, x2, scale1, scale2, beta)
    grad, x1, x2 = _dense(x1, grad, x1, x2)
    d1, d2 = torch.empty_like(x1), torch.empty_like(x2)
    sums = torch.zeros((x1.shape[0], 3, x1.shape[1]), dtype=torch.float32, device=x1.device)
    scales = scale1.contiguous(), scale2.contiguous()
    cudalib.ops().shake_bn_backward(grad, x1, x2, *scales, beta.contiguous(), d1, d2, sums)
    b = beta.view(-1, 1)
    g, gx1, gx2 = sums.unbind(1)
    return d1, d2, (b * gx1).sum(0), (b * g).sum(0), ((1 - b) * gx2).sum(0), ((1 - b) * g).sum(0)
