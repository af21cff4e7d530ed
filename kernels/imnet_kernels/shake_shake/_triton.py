"""shake_shake in Triton: one launch each way, the batch norm form's sums per image and then over the batch in order."""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import hostlib
from ..tritonlib import Build
from . import reference

BLOCK = 1024
PIXELS, CHANNELS = 32, 32  # the batch norm form's tile


@triton.jit
def combine_kernel(x1_ptr, x2_ptr, residual_ptr, alpha_ptr, out_ptr, n, per_image, BLOCK: tl.constexpr):
    """n elements an image; per_image 1 or 0: the coefficient's stride."""
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
    image = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = e < n
    at = image.to(tl.int64) * n + e
    b = tl.load(beta_ptr + image * per_image)
    g = tl.load(grad_ptr + at, mask=live).to(tl.float32)
    tl.store(d1_ptr + at, (b * g).to(d1_ptr.dtype.element_ty), mask=live)
    tl.store(d2_ptr + at, ((1 - b) * g).to(d2_ptr.dtype.element_ty), mask=live)


@triton.jit
def combine_bn_kernel(
    x1_ptr, x2_ptr, residual_ptr, scale1_ptr, shift1_ptr, scale2_ptr, shift2_ptr, alpha_ptr, out_ptr, n, channels,
    plane, per_image, LAST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    image = tl.program_id(0)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = e < n
    c = e % channels if LAST else e // plane
    at = image.to(tl.int64) * n + e
    a = tl.load(alpha_ptr + image * per_image)
    b1 = tl.load(x1_ptr + at, mask=live).to(tl.float32) * tl.load(scale1_ptr + c, mask=live)
    b2 = tl.load(x2_ptr + at, mask=live).to(tl.float32) * tl.load(scale2_ptr + c, mask=live)
    b1 += tl.load(shift1_ptr + c, mask=live)
    b2 += tl.load(shift2_ptr + c, mask=live)
    y = tl.load(residual_ptr + at, mask=live).to(tl.float32) + a * b1 + (1 - a) * b2
    tl.store(out_ptr + at, y.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def combine_bn_backward_kernel(
    grad_ptr, x1_ptr, x2_ptr, scale1_ptr, scale2_ptr, beta_ptr, d1_ptr, d2_ptr, sums_ptr, channels, plane, per_image,
    LAST: tl.constexpr, PIXELS: tl.constexpr, CHANNELS: tl.constexpr
):  # fmt: skip
    """One image and block of channels: sums (B, 3, C) of g, g x1, g x2 over the plane."""
    image = tl.program_id(0)
    c = tl.program_id(1) * CHANNELS + tl.arange(0, CHANNELS)
    known = c < channels
    b = tl.load(beta_ptr + image * per_image)
    w1 = b * tl.load(scale1_ptr + c, mask=known, other=0.0)
    w2 = (1 - b) * tl.load(scale2_ptr + c, mask=known, other=0.0)
    sum0 = tl.zeros((CHANNELS,), tl.float32)
    sum1 = tl.zeros((CHANNELS,), tl.float32)
    sum2 = tl.zeros((CHANNELS,), tl.float32)
    first = image.to(tl.int64) * channels * plane
    for start in range(0, plane, PIXELS):
        p = start + tl.arange(0, PIXELS)
        live = (p[:, None] < plane) & known[None, :]
        if LAST:
            at = first + p[:, None] * channels + c[None, :]
        else:
            at = first + c[None, :] * plane + p[:, None]
        g = tl.load(grad_ptr + at, mask=live, other=0.0).to(tl.float32)
        sum0 += tl.sum(g, 0)
        sum1 += tl.sum(g * tl.load(x1_ptr + at, mask=live, other=0.0).to(tl.float32), 0)
        sum2 += tl.sum(g * tl.load(x2_ptr + at, mask=live, other=0.0).to(tl.float32), 0)
        tl.store(d1_ptr + at, (g * w1[None, :]).to(d1_ptr.dtype.element_ty), mask=live)
        tl.store(d2_ptr + at, (g * w2[None, :]).to(d2_ptr.dtype.element_ty), mask=live)
    row = sums_ptr + image * 3 * channels + c
    tl.store(row, sum0, mask=known)
    tl.store(row + channels, sum1, mask=known)
    tl.store(row + 2 * channels, sum2, mask=known)


def _dense(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    return [t.contiguous(memory_format=hostlib.memory_format(like)) for t in tensors]


def _sizes(x: Tensor, coefficient: Tensor) -> tuple[int, tuple[int, int], int]:
    """Elements an image, the grid, the coefficient's stride."""
    n = x.numel() // x.shape[0]
    return n, (x.shape[0], triton.cdiv(n, BLOCK)), int(coefficient.numel() > 1)


def combine(x1: Tensor, x2: Tensor, residual: Tensor, alpha: Tensor) -> Tensor:
    """See reference.combine; fp64 goes there."""
    if x1.dtype == torch.float64:
        return reference.combine(x1, x2, residual, alpha)
    x1, x2, residual = _dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    if out.numel():
        n, grid, per_image = _sizes(x1, alpha)
        combine_kernel[grid](x1, x2, residual, alpha.contiguous(), out, n, per_image, BLOCK=BLOCK)
    return out


def combine_backward(grad: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """See reference.combine_backward; fp64 goes there."""
    if grad.dtype == torch.float64:
        return reference.combine_backward(grad, beta)
    (grad,) = _dense(grad, grad)
    d1, d2 = torch.empty_like(grad), torch.empty_like(grad)
    if grad.numel():
        n, grid, per_image = _sizes(grad, beta)
        combine_backward_kernel[grid](grad, beta.contiguous(), d1, d2, n, per_image, BLOCK=BLOCK)
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
    """See reference.combine_bn; fp64 goes there."""
    vectors = [v.contiguous() for v in (scale1, shift1, scale2, shift2)]
    if x1.dtype == torch.float64:
        return reference.combine_bn(x1, x2, residual, *vectors, alpha)
    last = hostlib.memory_format(x1) == torch.channels_last
    x1, x2, residual = _dense(x1, x1, x2, residual)
    out = torch.empty_like(x1)
    if out.numel():
        n, grid, per_image = _sizes(x1, alpha)
        sizes = (n, x1.shape[1], x1.shape[2] * x1.shape[3], per_image)
        combine_bn_kernel[grid](x1, x2, residual, *vectors, alpha.contiguous(), out, *sizes, LAST=last, BLOCK=BLOCK)
    return out


def combine_bn_backward(
    grad: Tensor, x1: Tensor, x2: Tensor, scale1: Tensor, scale2: Tensor, beta: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See reference.combine_bn_backward; fp64 goes there."""
    if x1.dtype == torch.float64:
        return reference.combine_bn_backward(grad, x1, x2, scale1, scale2, beta)
    last = hostlib.memory_format(x1) == torch.channels_last
    grad, x1, x2 = _dense(x1, grad, x1, x2)
    d1, d2 = torch.empty_like(x1), torch.empty_like(x2)
    batch, channels, height, width = x1.shape
    sums = torch.zeros((batch, 3, channels), dtype=torch.float32, device=x1.device)
    if x1.numel():
        sizes = (channels, height * width, int(beta.numel() > 1))
        combine_bn_backward_kernel[(batch, triton.cdiv(channels, CHANNELS))](
            grad, x1, x2, scale1.contiguous(), scale2.contiguous(), beta.contiguous(), d1, d2, sums, *sizes,
            LAST=last, PIXELS=PIXELS, CHANNELS=CHANNELS
        )  # fmt: skip
    b = beta.view(-1, 1)
    g, gx1, gx2 = sums.unbind(1)
    return d1, d2, (b * gx1).sum(0), (b * g).sum(0), ((1 - b) * gx2).sum(0), ((1 - b) * g).sum(0)


def builds() -> list[Build]:
    """bf16 and fp32 of every kernel, to compile without a GPU."""
    found = []
    for t in ("*bf16", "*fp32"):
        data = dict.fromkeys(("x1_ptr", "x2_ptr", "residual_ptr", "out_ptr", "grad_ptr", "d1_ptr", "d2_ptr"), t)
        vectors = ("alpha_ptr", "beta_ptr", "scale1_ptr", "shift1_ptr", "scale2_ptr", "shift2_ptr", "sums_ptr")
        data |= dict.fromkeys(vectors, "*fp32") | dict.fromkeys(("n", "channels", "plane", "per_image"), "i32")
        tile = {"PIXELS": PIXELS, "CHANNELS": CHANNELS, "LAST": True}
        for kernel, constants in (
            (combine_kernel, {"BLOCK": BLOCK}),
            (combine_backward_kernel, {"BLOCK": BLOCK}),
            (combine_bn_kernel, {"BLOCK": BLOCK, "LAST": True}),
            (combine_bn_backward_kernel, tile),
        ):
            signature = {k: v for k, v in data.items() if k in kernel.arg_names}
            found.append(Build(f"{kernel.__name__} {t}", kernel, signature, constants))
    return found
