"""shake_batch_norm in Triton: forward batch_norm's statistics of both branches, then one pass over all maps; backward
two passes with batch_norm's joins between them. Without atomics, so that equal inputs give equal bits.

The kernels read rows of channels as batch_norm's do, of both branches at once. A (folded) row belongs to one image,
which has ``rows_an_image`` rows; ``per_image`` is the coefficients' stride: 1 for one per image, 0 for one per batch.
"""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..batch_norm import Norm
from ..batch_norm import _triton as norms
from ..batch_norm._triton_kernels import SIZES as NORM_SIZES
from ..batch_norm._triton_kernels import columns, load, statistics_kernel, written
from ..tritonlib import Build, on_own_device

ROWS, DEPTH = 16, 4
"""Rows per tile, and tiles per program of a pass without sums. Chosen by register use, so that two programs share a
multiprocessor; no other numbers were timed on a GPU."""
LAST = torch.channels_last
SIZES = [*NORM_SIZES, "rows_an_image", "per_image"]


@triton.jit
def share_of(coefficient_ptr, row, rows, rows_an_image, per_image):
    """(ROWS, 1) fp32: for each row the coefficient of its image."""
    return tl.load(coefficient_ptr + row // rows_an_image * per_image, mask=row < rows, other=0.0)[:, None]


@triton.jit(do_not_specialize=SIZES)
def mix_kernel(
    x1_ptr, x2_ptr, residual_ptr, y_ptr, activated_ptr, mean1_ptr, inverse1_ptr, weight1_ptr, bias1_ptr, mean2_ptr,
    inverse2_ptr, weight2_ptr, bias2_ptr, alpha_ptr, rows, pitch, channels, rows_an_image, per_image,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """y = residual + alpha norm1(x1) + (1 - alpha) norm2(x2) and activated = relu(y), of DEPTH tiles of ROWS rows."""
    column, wide, _, mean1, scale1, bias1 = columns(
        mean1_ptr, inverse1_ptr, weight1_ptr, bias1_ptr, pitch, channels, COLUMNS, VECTOR, GROUP
    )
    _, _, _, mean2, scale2, bias2 = columns(
        mean2_ptr, inverse2_ptr, weight2_ptr, bias2_ptr, pitch, channels, COLUMNS, VECTOR, GROUP
    )
    row = tl.program_id(0) * ROWS * DEPTH + tl.arange(0, ROWS)
    at = (tl.program_id(0) * ROWS * DEPTH).to(tl.int64) * pitch * VECTOR
    offsets = tl.arange(0, ROWS)[:, None] * pitch * VECTOR + column[None, :]
    for _ in tl.static_range(DEPTH):
        live = (row < rows)[:, None] & wide[None, :]
        a = share_of(alpha_ptr, row, rows, rows_an_image, per_image)
        y1 = (load(x1_ptr + at, offsets, live) - mean1) * scale1 + bias1
        y2 = (load(x2_ptr + at, offsets, live) - mean2) * scale2 + bias2
        y = load(residual_ptr + at, offsets, live) + a * y1 + (1 - a) * y2
        tl.store(y_ptr + at + offsets, y.to(y_ptr.dtype.element_ty), mask=live)
        y = tl.where(y < 0.0, 0.0, y)  # keeps NaN, so that a diverged run is noticed
        tl.store(activated_ptr + at + offsets, y.to(y_ptr.dtype.element_ty), mask=live)
        row += ROWS
        at += ROWS * pitch * VECTOR


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    grad_ptr, grad1_ptr, grad2_ptr, activated_ptr, x1_ptr, x2_ptr, d_residual_ptr, partial1_ptr, partial2_ptr,
    mean1_ptr, mean2_ptr, beta_ptr, rows, pitch, channels, rows_a_program, rows_an_image, per_image,
    OWN: tl.constexpr, READERS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    GROUP: tl.constexpr
):  # fmt: skip
    """Writes d_residual, which is y's total gradient g, and two partials (programs, 2, pitch * VECTOR) fp32: sums of
    beta g and of beta g (x1 - mean1) for branch 1, and the same with 1 - beta and x2 for branch 2.

    g is y's own gradient (if OWN), plus, where ReLU passed y, the gradients of relu(y)'s READERS (0, 1 or 2).
    """
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    mean1, mean2 = load(mean1_ptr, channel, wide)[None, :], load(mean2_ptr, channel, wide)[None, :]
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    at = first.to(tl.int64) * pitch * VECTOR
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    sums1 = tl.zeros((ROWS, COLUMNS), tl.float32)
    products1 = tl.zeros((ROWS, COLUMNS), tl.float32)
    products2 = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, ROWS):
        live = (inner < count - start)[:, None] & wide[None, :]
        b = share_of(beta_ptr, first + start + inner, rows, rows_an_image, per_image)
        x1 = load(x1_ptr + at, offsets, live)
        x2 = load(x2_ptr + at, offsets, live)
        g = tl.zeros((ROWS, COLUMNS), tl.float32)
        if READERS > 0:
            g = load(grad1_ptr + at, offsets, live)
            if READERS > 1:
                g += load(grad2_ptr + at, offsets, live)
            g = tl.where(load(activated_ptr + at, offsets, live) > 0.0, g, 0.0)
        if OWN:
            g += load(grad_ptr + at, offsets, live)
        g = written(d_residual_ptr + at, offsets, g, live)
        g1 = b * g
        sums += g
        sums1 += g1
        products1 += g1 * (x1 - mean1)
        products2 += (g - g1) * (x2 - mean2)
        at += ROWS * pitch * VECTOR
    summed1 = tl.sum(sums1, 0)
    place = tl.program_id(0) * 2 * pitch * VECTOR + column
    tl.store(partial1_ptr + place, summed1, mask=wide)
    tl.store(partial1_ptr + place + pitch * VECTOR, tl.sum(products1, 0), mask=wide)
    tl.store(partial2_ptr + place, tl.sum(sums, 0) - summed1, mask=wide)
    tl.store(partial2_ptr + place + pitch * VECTOR, tl.sum(products2, 0), mask=wide)


@triton.jit
def scale_of(inverse_ptr, weight_ptr, channel, wide):
    """(1, COLUMNS) fp32: each channel's weight / deviation."""
    return (load(inverse_ptr, channel, wide) * load(weight_ptr, channel, wide))[None, :]


@triton.jit
def means_of(means_ptr, channel, wide, channels):
    """Each channel's mean gradient and slope, (1, COLUMNS) fp32, as join_sums_kernel writes them."""
    return load(means_ptr, channel, wide)[None, :], load(means_ptr + channels, channel, wide)[None, :]


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    g_ptr, x1_ptr, x2_ptr, d_x1_ptr, d_x2_ptr, mean1_ptr, inverse1_ptr, weight1_ptr, means1_ptr, mean2_ptr,
    inverse2_ptr, weight2_ptr, means2_ptr, beta_ptr, rows, pitch, channels, rows_an_image, per_image,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """d_x1 and d_x2 of DEPTH tiles of ROWS rows, from y's gradient g; as batch_norm's gradient_kernel per branch."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    mean1, mean2 = load(mean1_ptr, channel, wide)[None, :], load(mean2_ptr, channel, wide)[None, :]
    scale1 = scale_of(inverse1_ptr, weight1_ptr, channel, wide)
    scale2 = scale_of(inverse2_ptr, weight2_ptr, channel, wide)
    mean_grad1, slope1 = means_of(means1_ptr, channel, wide, channels)
    mean_grad2, slope2 = means_of(means2_ptr, channel, wide, channels)
    row = tl.program_id(0) * ROWS * DEPTH + tl.arange(0, ROWS)
    at = (tl.program_id(0) * ROWS * DEPTH).to(tl.int64) * pitch * VECTOR
    offsets = tl.arange(0, ROWS)[:, None] * pitch * VECTOR + column[None, :]
    for _ in tl.static_range(DEPTH):
        live = (row < rows)[:, None] & wide[None, :]
        b = share_of(beta_ptr, row, rows, rows_an_image, per_image)
        g = load(g_ptr + at, offsets, live)
        x1 = load(x1_ptr + at, offsets, live)
        x2 = load(x2_ptr + at, offsets, live)
        d_x1 = scale1 * (b * g - mean_grad1 - (x1 - mean1) * slope1)
        d_x2 = scale2 * ((1 - b) * g - mean_grad2 - (x2 - mean2) * slope2)
        tl.store(d_x1_ptr + at + offsets, d_x1.to(d_x1_ptr.dtype.element_ty), mask=live)
        tl.store(d_x2_ptr + at + offsets, d_x2.to(d_x2_ptr.dtype.element_ty), mask=live)
        row += ROWS
        at += ROWS * pitch * VECTOR


class _Shared:
    """The launch grids and tiles of the maps, with no folded row across two images, and the coefficients' layout."""

    def __init__(self, x: Tensor, coefficient: Tensor):
        self.plan = norms.Plan(x, by_image=True, pass_rows=DEPTH * ROWS)
        rows, pitch, channels = self.plan.rows, self.plan.pitch, self.plan.channels
        self.sizes = rows, pitch, channels
        self.images = rows // x.shape[0], int(coefficient.numel() > 1)
        self.constants: dict[str, Any] = self.plan.tile | {"GROUP": self.plan.group, "ROWS": ROWS}


@on_own_device
def forward(
    x1: Tensor, x2: Tensor, residual: Tensor, norm1: Norm, norm2: Norm, alpha: Tensor, momentum: float, eps: float
) -> tuple[Tensor, ...]:
    """Return (y, relu(y), mean1, inverse1, mean2, inverse2); the inverses are 1 / sqrt(var + eps)."""
    shared, y, activated = _Shared(x1, alpha), torch.empty_like(x1), torch.empty_like(x1)
    plan, found = shared.plan, []
    for x, norm in ((x1, norm1), (x2, norm2)):
        statistics_kernel[plan.reduce](
            x, x, x, plan.partial, plan.rows, plan.pitch, plan.rows_a_program, ADDS=False, **plan.tile
        )
        found += plan.joined_statistics(norm.running_mean, norm.running_var, momentum, eps)
    mix_kernel[plan.whole](
        x1, x2, residual, y, activated, *found[:2], norm1.weight, norm1.bias, *found[2:], norm2.weight, norm2.bias,
        alpha.contiguous(), *shared.sizes, *shared.images, DEPTH=DEPTH, **shared.constants,
    )  # fmt: skip
    return y, activated, *found


@on_own_device
def backward(
    grad: Tensor | None, grads: Sequence[Tensor], activated: Tensor, x1: Tensor, x2: Tensor, weight1: Tensor,
    weight2: Tensor, beta: Tensor, *found: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return (d_x1, d_x2, d_residual, d_weight1, d_bias1, d_weight2, d_bias2); ``grad`` is y's own gradient, ``grads``
    those of relu(y), and ``found`` the statistics that ``forward`` returned."""
    shared, beta = _Shared(x1, beta), beta.contiguous()
    plan, (mean1, inverse1, mean2, inverse2) = shared.plan, found
    d_x1, d_x2, g = (torch.empty_like(x1) for _ in range(3))
    own = x1 if grad is None else grad.contiguous(memory_format=LAST)
    one, two = ([t.contiguous(memory_format=LAST) for t in grads] + [x1, x1])[:2]
    partials = plan.partial, torch.empty_like(plan.partial)
    reduce_kernel[plan.reduce](
        own, one, two, activated, x1, x2, g, *partials, mean1, mean2, beta, *shared.sizes, plan.rows_a_program,
        *shared.images, OWN=grad is not None, READERS=len(grads), **shared.constants,
    )  # fmt: skip
    *d_norm1, means1 = plan.joined_sums(partials[0], inverse1)
    *d_norm2, means2 = plan.joined_sums(partials[1], inverse2)
    gradient_kernel[plan.whole](
        g, x1, x2, d_x1, d_x2, mean1, inverse1, weight1, means1, mean2, inverse2, weight2, means2, beta,
        *shared.sizes, *shared.images, DEPTH=DEPTH, **shared.constants,
    )  # fmt: skip
    return d_x1, d_x2, g, *d_norm1, *d_norm2


def builds() -> list[Build]:
    """The kernels of 2x96d's first stage in bf16 and fp32, to compile without a GPU."""
    return [build for data in ("*bf16", "*fp32") for build in _builds(data)]


def _builds(data: str) -> Iterator[Build]:
    tile = {"ROWS": ROWS, "COLUMNS": norms.COLUMNS, "VECTOR": 8, "GROUP": 8, "DEPTH": DEPTH}
    maps = ("grad", "grad1", "grad2", "g", "activated", "x1", "x2", "residual", "y", "d_residual", "d_x1", "d_x2")
    for kernel in (mix_kernel, reduce_kernel, gradient_kernel):
        constants = {k: v for k, v in (tile | {"OWN": True, "READERS": 2}).items() if k in kernel.arg_names}
        pointers = (name for name in kernel.arg_names if name.endswith("_ptr"))
        types = {name: data if name.removesuffix("_ptr") in maps else "*fp32" for name in pointers}
        types |= {name: "i32" for name in SIZES if name in kernel.arg_names}
        yield Build(f"shake {kernel.__name__} {data}", kernel, types, constants, num_warps=norms.WARPS)
