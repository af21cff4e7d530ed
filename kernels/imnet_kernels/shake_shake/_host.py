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
    layout = hostlib.memory_format(x1)
    x1, x2, residual = (t.contiguous(memory_format=layout) for t in (x1, x2, residual))
    out = torch.empty_like(x1)
    _shake(False, (x1, x2, residual, out), alpha.contiguous(), x1)
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward."""
    if grad.dtype not in hostlib.CODES:
        return reference.combine_backward(grad, beta)
    grad = grad.contiguous(memory_format=hostlib.memory_format(grad))
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
    if x1.dtype not in hostlib.CODES:
        return reference.combine_bn(x1, x2, residual, scale1, shift1, scale2, shift2, alpha)
    layout = hostlib.memory_format(x1)
    x1, x2, residual = (t.contiguous(memory_format=layout) for t in (x1, x2, residual))
    out = torch.empty_like(x1)
    _shake_bn(False, (x1, x2, residual, out, None), alpha, (scale1, shift1, scale2, shift2), None)
    return out


def combine_bn_backward(
    grad: Tensor, x1: Tensor, x2: Tensor, scale1: Tensor, scale2: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See reference.combine_bn_backward."""
    if x1.dtype not in hostlib.CODES:
        return reference.combine_bn_backward(grad, x1, x2, scale1, scale2, beta)
    layout = hostlib.memory_format(x1)
    grad, x1, x2 = (t.contiguous(memory_format=layout) for t in (grad, x1, x2))
    d1, d2 = torch.empty_like(x1), torch.empty_like(x2)
    sums = torch.zeros((4, x1.shape[1]), dtype=torch.float32)
    _shake_bn(True, (x1, x2, grad, d1, d2), beta, (scale1, None, scale2, None), sums)
    # Copies: an op's outputs must not share memory.
    return d1, d2, *(row.clone() for row in sums)  # pyright: ignore[reportReturnType]


def _shake_bn(
    backward: bool,
    tensors: tuple[Tensor | None, ...],
    coefficient: Tensor,
    vectors: tuple[Tensor | None, ...],
    sums: Tensor | None,
) -> None:
    like = tensors[0]
    if like is None or like.numel() == 0:
        return
    coefficient = coefficient.contiguous()
    vectors = tuple(None if v is None else v.contiguous() for v in vectors)
    batch, channels, height, width = like.shape
    hostlib.module().shake_bn(
        backward,
        *(hostlib.address(t) for t in tensors),
        coefficient.data_ptr(),
        [hostlib.address(v) for v in vectors],
        hostlib.address(sums),
        [batch, channels, height * width, coefficient.numel()],
        hostlib.CODES[like.dtype],
        hostlib.memory_format(like) == torch.channels_last,
        hostlib.threads(),
    )
