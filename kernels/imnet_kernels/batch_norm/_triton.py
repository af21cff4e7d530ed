"""batch_norm in Triton over channels_last maps, seen as rows of channels: three launches each way, without atomics.

Statistics are reduced in two stages, so that the same numbers give the same bits: every program reduces its rows to one
row of partial results, and a small kernel joins these. Neighbouring rows are read as one where that makes a row a whole
number of blocks: 80 channels are 8 rows of 640, and no lane idles.
"""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tritonlib import Build

ROWS, COLUMNS, WARPS = 32, 128, 8
"""A program holds 32 rows of 128 values, 16 a thread. Of 9 settings on an H200 (2026-11-26: 2,048 to 8,192 values, 4 to
16 warps, 1 to 4 deep, 2 to 8 programs) the one with the least time over five maps of the systems' networks."""
DEPTH = 4
"""Tiles a program takes: those of the statistics are loaded before the first is used."""
PROGRAMS_PER_SM = 2
"""Of the kernels that reduce: as many as their registers let run at once."""
MOST_PARTS, JOINED = 1024, 8192
"""Partial results of a channel, and values of either kind that a joining program holds."""
SIZES = ["rows", "pitch", "channels", "fold", "rows_a_program", "programs"]
"""Not specialised: every network would compile its own kernels, for nothing, since VECTOR tells what is aligned."""


@triton.jit
def load(base_ptr, offsets, live):
    return tl.load(base_ptr + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    x_ptr, partial_ptr, rows, pitch, rows_a_program,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """x (rows, pitch * VECTOR) -> partial (programs, 2, pitch * VECTOR) fp32: mean, sum of squares about it.

    Every place of a tile keeps the mean and the squares of the rows it has seen (Welford, four rows at a time, by
    Chan's rule), so that no large mean cancels; at the end the places of a channel are joined.
    """
    channels = pitch * VECTOR
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    live = (column < channels)[None, :]
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    step = ROWS * pitch * VECTOR
    x_ptr += first.to(tl.int64) * pitch * VECTOR
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    fours = count // (4 * ROWS)
    for i in range(fours):
        a = load(x_ptr, offsets, live)
        b = load(x_ptr + step, offsets, live)
        c = load(x_ptr + 2 * step, offsets, live)
        d = load(x_ptr + 3 * step, offsets, live)
        x_ptr += 4 * step
        middle = ((a + b) + (c + d)) * 0.25
        a, b, c, d = a - middle, b - middle, c - middle, d - middle
        share = 1.0 / (i + 1)
        off = middle - mean
        mean += off * share
        squares += (a * a + b * b) + (c * c + d * d) + off * off * (4.0 * i * share)
    seen = tl.zeros((ROWS, 1), tl.float32) + 4.0 * fours
    for start in range(4 * ROWS * fours, count, ROWS):
        here = (inner < count - start)[:, None]
        x = load(x_ptr, offsets, live & here)
        x_ptr += step
        seen += tl.where(here, 1.0, 0.0)
        off = tl.where(here, x - mean, 0.0)
        mean += off / tl.maximum(seen, 1.0)
        squares += tl.where(here, off * (x - mean), 0.0)
    joined = tl.sum(mean * seen, 0) / count
    off = mean - joined[None, :]
    partial_ptr += tl.program_id(0) * 2 * channels + column
    tl.store(partial_ptr, joined, mask=column < channels)
    tl.store(partial_ptr + channels, tl.sum(squares + off * off * seen, 0), mask=column < channels)


@triton.jit
def parts(partial_ptr, channels, fold, programs, MOST: tl.constexpr, JOIN_COLUMNS: tl.constexpr):
    """(both partial results (MOST, JOIN_COLUMNS) of every program and fold, which program that is, which are real)."""
    column = tl.program_id(0) * JOIN_COLUMNS + tl.arange(0, JOIN_COLUMNS)
    part = tl.arange(0, MOST)
    program = part // fold
    at = (program * 2 * fold + part % fold) * channels
    at = at[:, None] + column[None, :]
    live = (part < programs * fold)[:, None] & (column < channels)[None, :]
    return load(partial_ptr, at, live), load(partial_ptr + fold * channels, at, live), program, live


@triton.jit(do_not_specialize=SIZES)
def join_statistics_kernel(
    partial_ptr, mean_ptr, inverse_ptr, running_mean_ptr, running_var_ptr, rows, channels, fold, rows_a_program,
    programs, momentum, eps, MOST: tl.constexpr, JOIN_COLUMNS: tl.constexpr
):  # fmt: skip
    """partial -> mean and 1 / sqrt(var + eps) of the batch; the running statistics move by ``momentum``."""
    column = tl.program_id(0) * JOIN_COLUMNS + tl.arange(0, JOIN_COLUMNS)
    wide = column < channels
    means, squares, program, live = parts(partial_ptr, channels, fold, programs, MOST, JOIN_COLUMNS)
    count = tl.minimum(rows_a_program, rows - program * rows_a_program).to(tl.float32)[:, None]
    values = (rows * fold).to(tl.float32)
    mean = tl.sum(means * count, 0) / values
    off = means - mean[None, :]
    summed = tl.sum(tl.where(live, squares + off * off * count, 0.0), 0)
    tl.store(mean_ptr + column, mean, mask=wide)
    tl.store(inverse_ptr + column, 1.0 / tl.sqrt_rn(summed / values + eps), mask=wide)
    old_mean = load(running_mean_ptr, column, wide)
    old_var = load(running_var_ptr, column, wide)
    tl.store(running_mean_ptr + column, old_mean * (1 - momentum) + mean * momentum, mask=wide)
    tl.store(running_var_ptr + column, old_var * (1 - momentum) + summed / (values - 1) * momentum, mask=wide)


@triton.jit(do_not_specialize=SIZES)
def normalise_kernel(
    x_ptr, residual_ptr, y_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, rows, pitch, channels,
    RELU: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    GROUP: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    # Channels stand side by side in groups, which is what lets a thread load its eight at once.
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    mean = load(mean_ptr, channel, wide)[None, :]
    scale = (load(inverse_ptr, channel, wide) * load(weight_ptr, channel, wide))[None, :]
    bias = load(bias_ptr, channel, wide)[None, :]
    first = tl.program_id(0) * ROWS * DEPTH
    at = first.to(tl.int64) * pitch * VECTOR
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    for _ in tl.static_range(DEPTH):
        live = (first + inner < rows)[:, None] & wide[None, :]
        y = (load(x_ptr + at, offsets, live) - mean) * scale + bias
        if ADDS:
            y += load(residual_ptr + at, offsets, live)
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # NaN stays, so that a run that diverged shows it
        tl.store(y_ptr + at + offsets, y.to(y_ptr.dtype.element_ty), mask=live)
        first += ROWS
        at += ROWS * pitch * VECTOR


@triton.jit
def passed(grad, x, mean, scale, bias, RELU: tl.constexpr):
    """The gradient where ReLU let the value through, which is computed as the forward pass did."""
    return tl.where((x - mean) * scale + bias > 0.0, grad, 0.0) if RELU else grad


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    grad_ptr, x_ptr, y_ptr, passed_ptr, partial_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, rows, pitch, channels,
    rows_a_program, RELU: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """partial (programs, 2, pitch * VECTOR): sums of g and of g (x - mean), g the gradient that ReLU let through.

    With a residual, ReLU's mask is that of the result y, and g, which is the residual's gradient, is written.
    """
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    # Channels stand side by side in groups, which is what lets a thread load its eight at once.
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    mean = load(mean_ptr, channel, wide)[None, :]
    scale = (load(inverse_ptr, channel, wide) * load(weight_ptr, channel, wide))[None, :]
    bias = load(bias_ptr, channel, wide)[None, :]
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    at = first.to(tl.int64) * pitch * VECTOR
    sums = tl.zeros((ROWS, COLUMNS), tl.float32)
    products = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, count, 2 * ROWS):
        near = (inner < count - start)[:, None] & wide[None, :]
        far = (inner < count - start - ROWS)[:, None] & wide[None, :]
        ahead = at + ROWS * pitch * VECTOR
        g0 = load(grad_ptr + at, offsets, near)
        x0 = load(x_ptr + at, offsets, near)
        g1 = load(grad_ptr + ahead, offsets, far)
        x1 = load(x_ptr + ahead, offsets, far)
        if ADDS:
            g0 = tl.where(load(y_ptr + at, offsets, near) > 0.0, g0, 0.0)
            g1 = tl.where(load(y_ptr + ahead, offsets, far) > 0.0, g1, 0.0)
            tl.store(passed_ptr + at + offsets, g0.to(passed_ptr.dtype.element_ty), mask=near)
            tl.store(passed_ptr + ahead + offsets, g1.to(passed_ptr.dtype.element_ty), mask=far)
        else:
            g0 = passed(g0, x0, mean, scale, bias, RELU)
            g1 = passed(g1, x1, mean, scale, bias, RELU)
        sums += g0 + g1
        products += g0 * (x0 - mean) + g1 * (x1 - mean)
        at += 2 * ROWS * pitch * VECTOR
    partial_ptr += tl.program_id(0) * 2 * pitch * VECTOR + column
    tl.store(partial_ptr, tl.sum(sums, 0), mask=wide)
    tl.store(partial_ptr + pitch * VECTOR, tl.sum(products, 0), mask=wide)


@triton.jit(do_not_specialize=SIZES)
def join_sums_kernel(
    partial_ptr, inverse_ptr, d_weight_ptr, d_bias_ptr, means_ptr, rows, channels, fold, programs,
    MOST: tl.constexpr, JOIN_COLUMNS: tl.constexpr
):  # fmt: skip
    """partial -> d_weight, d_bias; means (2, channels): of g, and of g times x's normal form, over the deviation."""
    column = tl.program_id(0) * JOIN_COLUMNS + tl.arange(0, JOIN_COLUMNS)
    wide = column < channels
    sums, products, _, _ = parts(partial_ptr, channels, fold, programs, MOST, JOIN_COLUMNS)
    values = (rows * fold).to(tl.float32)
    summed = tl.sum(sums, 0)
    inverse = load(inverse_ptr, column, wide)
    d_weight = tl.sum(products, 0) * inverse
    tl.store(d_weight_ptr + column, d_weight, mask=wide)
    tl.store(d_bias_ptr + column, summed, mask=wide)
    tl.store(means_ptr + column, summed / values, mask=wide)
    tl.store(means_ptr + channels + column, d_weight * inverse / values, mask=wide)


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    grad_ptr, x_ptr, d_x_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, means_ptr, rows, pitch, channels,
    RELU: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr,
    DEPTH: tl.constexpr
):  # fmt: skip
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    # Channels stand side by side in groups, which is what lets a thread load its eight at once.
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    mean = load(mean_ptr, channel, wide)[None, :]
    scale = (load(inverse_ptr, channel, wide) * load(weight_ptr, channel, wide))[None, :]
    bias = load(bias_ptr, channel, wide)[None, :]
    mean_grad = load(means_ptr, channel, wide)[None, :]
    slope = load(means_ptr + channels, channel, wide)[None, :]
    first = tl.program_id(0) * ROWS * DEPTH
    at = first.to(tl.int64) * pitch * VECTOR
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    for _ in tl.static_range(DEPTH):
        live = (first + inner < rows)[:, None] & wide[None, :]
        x = load(x_ptr + at, offsets, live)
        g = passed(load(grad_ptr + at, offsets, live), x, mean, scale, bias, RELU)
        d_x = scale * (g - mean_grad - (x - mean) * slope)
        tl.store(d_x_ptr + at + offsets, d_x.to(d_x_ptr.dtype.element_ty), mask=live)
        first += ROWS
        at += ROWS * pitch * VECTOR


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


class _Plan:
    """How a map (B, C, H, W) is shared out: ``fold`` of its B H W rows of C channels are read as one."""

    def __init__(self, x: Tensor):
        self.channels = x.shape[1]
        rows = x.numel() // self.channels
        self.fold = math.gcd(rows, COLUMNS // math.gcd(self.channels, COLUMNS))
        self.rows, width = rows // self.fold, self.channels * self.fold
        vector = math.gcd(width, 8)
        self.tile: dict[str, Any] = {"ROWS": ROWS, "COLUMNS": COLUMNS, "VECTOR": vector, "num_warps": WARPS}
        self.group = math.gcd(self.channels, 8)
        self.pitch = width // vector
        blocks = triton.cdiv(width, COLUMNS)
        wanted = max(1, min(PROGRAMS_PER_SM * _multiprocessors(x.device) // blocks, MOST_PARTS // self.fold))
        self.rows_a_program = DEPTH * ROWS * triton.cdiv(triton.cdiv(self.rows, wanted), DEPTH * ROWS)
        self.programs = triton.cdiv(self.rows, self.rows_a_program)
        most = triton.next_power_of_2(self.programs * self.fold)
        columns = max(1, min(16, JOINED // most))
        self.reduce = (self.programs, blocks)
        self.whole = (triton.cdiv(self.rows, DEPTH * ROWS), blocks)
        self.join = (triton.cdiv(self.channels, columns),)
        self.most = {"MOST": most, "JOIN_COLUMNS": columns, "num_warps": WARPS}
        self.partial = torch.empty((self.programs, 2, width), dtype=torch.float32, device=x.device)


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    residual: Tensor | None,
    momentum: float,
    eps: float,
    relu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """See forward_op of the package."""
    plan, y = _Plan(x), torch.empty_like(x)
    mean, inverse = torch.empty_like(weight), torch.empty_like(weight)
    added = y if residual is None else residual.contiguous(memory_format=torch.channels_last)
    statistics_kernel[plan.reduce](x, plan.partial, plan.rows, plan.pitch, plan.rows_a_program, **plan.tile)
    join_statistics_kernel[plan.join](
        plan.partial, mean, inverse, running_mean, running_var, plan.rows, plan.channels, plan.fold,
        plan.rows_a_program, plan.programs, momentum, eps, **plan.most,
    )  # fmt: skip
    normalise_kernel[plan.whole](
        x, added, y, mean, inverse, weight, bias, plan.rows, plan.pitch, plan.channels,
        RELU=relu, ADDS=residual is not None, GROUP=plan.group, DEPTH=DEPTH, **plan.tile,
    )  # fmt: skip
    return y, mean, inverse


def backward(
    grad: Tensor, x: Tensor, weight: Tensor, bias: Tensor, mean: Tensor, inverse: Tensor, y: Tensor | None, relu: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See backward_op of the package."""
    plan, d_x = _Plan(x), torch.empty_like(x)
    grad = grad.contiguous(memory_format=torch.channels_last)
    d_weight, d_bias = torch.empty_like(weight), torch.empty_like(weight)
    means = torch.empty((2, plan.channels), dtype=torch.float32, device=x.device)
    adds, size = y is not None, (plan.rows, plan.pitch, plan.channels)
    let_through = torch.empty_like(x) if adds else x.new_empty(0)
    known = (mean, inverse, weight, bias)
    reduce_kernel[plan.reduce](
        grad, x, x if y is None else y, let_through, plan.partial, *known, *size, plan.rows_a_program,
        RELU=relu, ADDS=adds, GROUP=plan.group, **plan.tile,
    )  # fmt: skip
    join_sums_kernel[plan.join](
        plan.partial, inverse, d_weight, d_bias, means, plan.rows, plan.channels, plan.fold, plan.programs,
        **plan.most,
    )  # fmt: skip
    source = let_through if adds else grad
    gradient_kernel[plan.whole](
        source, x, d_x, *known, means, *size,
        RELU=relu and not adds, GROUP=plan.group, DEPTH=DEPTH, **plan.tile,
    )  # fmt: skip
    return d_x, d_weight, d_bias, let_through


def builds() -> list[Build]:
    """What WRN-36-5's first stage takes in bf16 and fp32, and every other form in bf16, to compile without a GPU."""
    return list(_builds())


def _builds() -> Iterator[Build]:
    for data in ("*bf16", "*fp32"):
        types = dict.fromkeys(("x_ptr", "residual_ptr", "y_ptr", "grad_ptr", "passed_ptr", "d_x_ptr"), data)
        names = ("mean", "inverse", "weight", "bias", "running_mean", "running_var", "d_weight", "d_bias", "means")
        types |= dict.fromkeys((f"{name}_ptr" for name in (*names, "partial")), "*fp32")
        types |= dict.fromkeys(("rows", "pitch", "channels", "fold", "rows_a_program", "programs"), "i32")
        types |= {"momentum": "fp32", "eps": "fp32"}
        tile = {"ROWS": ROWS, "COLUMNS": COLUMNS, "VECTOR": 8, "GROUP": 8, "DEPTH": DEPTH}
        tile |= {"MOST": MOST_PARTS, "JOIN_COLUMNS": JOINED // MOST_PARTS}
        half = data == "*bf16"
        for adds in (False, True) if half else (False,):
            for kernel in (statistics_kernel, join_statistics_kernel, normalise_kernel, reduce_kernel, join_sums_kernel,
                           gradient_kernel):  # fmt: skip
                constants = {k: v for k, v in (tile | {"RELU": True, "ADDS": adds}).items() if k in kernel.arg_names}
                if (adds and "ADDS" not in constants) or (not half and "MOST" in constants):
                    continue  # the same kernel again
                signature = {k: v for k, v in types.items() if k in kernel.arg_names}
                name = f"{kernel.__name__} {data}{' adds' if adds else ''}"
                yield Build(name, kernel, signature, constants, num_warps=WARPS)
