"""shake_shake in Triton: one launch forward and one backward.

The grid is (B, blocks): a program takes BLOCK elements of one image, in memory order, so that it needs one coefficient.
Maps are fp32, bf16 or fp16 of one layout; arithmetic is fp32, rounded once.
"""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import native
from ..tritonlib import Build, on_own_device
from . import reference

BLOCK = 1024
"""Elements per program. Not tuned: no other size was timed on a GPU."""


@triton.jit
def combine_kernel(x1_ptr, x2_ptr, residual_ptr, alpha_ptr, out_ptr, n, per_image, BLOCK: tl.constexpr):
    """out = residual + alpha x1 + (1 - alpha) x2, of ``n`` elements per image. ``per_image`` is the coefficient's
    stride: 1 for one per image, 0 for one per batch."""
    image = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = e < n
    at = image.to(tl.int64) * n + e
    a = tl.load(alpha_ptr + image * per_image)
    x1 = tl.load(x1_ptr + at, mask=live).to(tl.float32)
    x2 = tl.load(x2_ptr + at, mask=live).to(tl.float32)
    y = tl.load(residual_ptr + at, mask=live).to(tl.float32) + a * x1 + (1 - a) * x2
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def combine_backward_kernel(grad_ptr, beta_ptr, d1_ptr, d2_ptr, n, per_image, BLOCK: tl.constexpr):
    """d1 = beta grad and d2 = (1 - beta) grad; arguments as in combine_kernel."""
    image = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = e < n
    at = image.to(tl.int64) * n + e
    b = tl.load(beta_ptr + image * per_image)
    g = tl.load(grad_ptr + at, mask=live).to(tl.float32)
    tl.store(d1_ptr + at, (b * g).to(d1_ptr.dtype.element_ty), mask=live)
    tl.store(d2_ptr + at, ((1 - b) * g).to(d2_ptr.dtype.element_ty), mask=live)


def _sizes(x: Tensor, coefficient: Tensor) -> tuple[int, tuple[int, int], int]:
    """(elements per image, the grid, the coefficient's stride)."""
    n = x.numel() // x.shape[0]
    return n, (x.shape[0], triton.cdiv(n, BLOCK)), int(coefficient.numel() > 1)


@on_own_device
def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine, which computes fp64."""
    if x1.dtype == torch.float64:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = native.dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    if out.numel():
        n, grid, per_image = _sizes(x1, alpha)
        combine_kernel[grid](x1, x2, residual, alpha.contiguous(), out, n, per_image, BLOCK=BLOCK)
    return out


@on_own_device
def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward, which computes fp64."""
    if grad.dtype == torch.float64:
        return reference.combine_backward(grad, beta)
    (grad,) = native.dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    if grad.numel():
        n, grid, per_image = _sizes(grad, beta)
        combine_backward_kernel[grid](grad, beta.contiguous(), d1, d2, n, per_image, BLOCK=BLOCK)
    return d1, d2


def builds() -> list[Build]:
    """Every kernel in bf16 and fp32, to compile without a GPU."""
    found = []
    for t in ("*bf16", "*fp32"):
        data = dict.fromkeys(("x1_ptr", "x2_ptr", "residual_ptr", "out_ptr", "grad_ptr", "d1_ptr", "d2_ptr"), t)
        data |= dict.fromkeys(("alpha_ptr", "beta_ptr"), "*fp32") | dict.fromkeys(("n", "per_image"), "i32")
        for kernel in (combine_kernel, combine_backward_kernel):
            signature = {k: v for k, v in data.items() if k in kernel.arg_names}
            found.append(Build(f"{kernel.__name__} {t}", kernel, signature, {"BLOCK": BLOCK}))
    return found
