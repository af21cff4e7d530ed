"""batch_norm's Triton kernels over rows of channels; see _triton.py for how a map becomes rows and the launch grids.

Maps are (rows, pitch * VECTOR) in fp32, bf16 or fp16; all arithmetic is fp32. Programs (i, j) of kernels over maps take
the i-th part of the rows and the j-th block of COLUMNS values. ``live``, ``wide`` and ``here`` mask what exists.
"""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import triton
import triton.language as tl

SIZES = ["rows", "pitch", "channels", "fold", "rows_a_program", "programs"]
"""Arguments that Triton must not specialise on: every network would compile kernels of its own, without gain, since
VECTOR already states the alignment."""


@triton.jit
def load(base_ptr, offsets, live):
    return tl.load(base_ptr + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def written(base_ptr, offsets, value, live):
    """Store ``value`` and return the stored value, rounded to the map's dtype, as fp32."""
    rounded = value.to(base_ptr.dtype.element_ty)
    tl.store(base_ptr + offsets, rounded, mask=live)
    return rounded.to(tl.float32)


@triton.jit
def columns(
    mean_ptr, inverse_ptr, weight_ptr, bias_ptr, pitch, channels,
    COLUMNS: tl.constexpr, VECTOR: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """A program's columns of a row, the mask of those that exist, their channels, and each channel's mean, scale
    (weight / deviation) and bias as (1, COLUMNS)."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < pitch * VECTOR
    # Columns of a group belong to consecutive channels; the hint lets a thread load its eight values at once.
    channel = tl.max_contiguous(tl.multiple_of(column % channels, GROUP), GROUP)
    scale = load(inverse_ptr, channel, wide) * load(weight_ptr, channel, wide)
    mean, bias = load(mean_ptr, channel, wide), load(bias_ptr, channel, wide)
    return column, wide, channel, mean[None, :], scale[None, :], bias[None, :]


@triton.jit(do_not_specialize=SIZES)
def statistics_kernel(
    x_ptr, addend_ptr, sum_ptr, partial_ptr, rows, pitch, rows_a_program,
    ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """x (rows, pitch * VECTOR) -> partial (programs, 2, pitch * VECTOR) fp32: mean and sum of squared deviations.

    With ADDS, x + addend is written to sum, and the statistics are those of the rounded sum, which the later passes
    read. Every position of a tile keeps the mean and squared deviations of its rows (Welford's method, four rows at a
    time by Chan's rule), which avoids cancellation for a large mean; at the end the rows of a tile are joined.
    """
    channels = pitch * VECTOR
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    live = (column < channels)[None, :]
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    step = ROWS * pitch * VECTOR
    at = first.to(tl.int64) * pitch * VECTOR
    x_ptr, addend_ptr, sum_ptr = x_ptr + at, addend_ptr + at, sum_ptr + at
    mean = tl.zeros((ROWS, COLUMNS), tl.float32)
    squares = tl.zeros((ROWS, COLUMNS), tl.float32)
    fours = count // (4 * ROWS)
    for i in range(fours):
        a = load(x_ptr, offsets, live)
        b = load(x_ptr + step, offsets, live)
        c = load(x_ptr + 2 * step, offsets, live)
        d = load(x_ptr + 3 * step, offsets, live)
        if ADDS:
            # All loads come before the first store, because a load waits for the stores before it in the program.
            e = load(addend_ptr, offsets, live)
            f = load(addend_ptr + step, offsets, live)
            g = load(addend_ptr + 2 * step, offsets, live)
            h = load(addend_ptr + 3 * step, offsets, live)
            a = written(sum_ptr, offsets, a + e, live)
            b = written(sum_ptr + step, offsets, b + f, live)
            c = written(sum_ptr + 2 * step, offsets, c + g, live)
            d = written(sum_ptr + 3 * step, offsets, d + h, live)
            addend_ptr += 4 * step
            sum_ptr += 4 * step
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
        if ADDS:
            x = written(sum_ptr, offsets, x + load(addend_ptr, offsets, live & here), live & here)
            addend_ptr += step
            sum_ptr += step
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
    """The two partial results (MOST, JOIN_COLUMNS) by (program, fold) and channel, the program of each row (MOST,), and
    the mask of the entries that exist."""
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
    """partial -> mean and 1 / sqrt(var + eps) of the batch, (channels,) fp32; updates the running statistics.

    A program joins JOIN_COLUMNS channels over all programs of statistics_kernel and folds, at most MOST parts.
    """
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
    """y = relu(norm(x) + residual) of DEPTH tiles of ROWS rows; residual only with ADDS, ReLU only with RELU."""
    inner = tl.arange(0, ROWS)
    column, wide, _, mean, scale, bias = columns(
        mean_ptr, inverse_ptr, weight_ptr, bias_ptr, pitch, channels, COLUMNS, VECTOR, GROUP
    )
    first = tl.program_id(0) * ROWS * DEPTH
    at = first.to(tl.int64) * pitch * VECTOR
    offsets = inner[:, None] * pitch * VECTOR + column[None, :]
    for _ in tl.static_range(DEPTH):
        live = (first + inner < rows)[:, None] & wide[None, :]
        y = (load(x_ptr + at, offsets, live) - mean) * scale + bias
        if ADDS:
            y += load(residual_ptr + at, offsets, live)
        if RELU:
            y = tl.where(y < 0.0, 0.0, y)  # keeps NaN, so that a diverged run is noticed
        tl.store(y_ptr + at + offsets, y.to(y_ptr.dtype.element_ty), mask=live)
        first += ROWS
        at += ROWS * pitch * VECTOR


@triton.jit
def passed(grad, x, mean, scale, bias, RELU: tl.constexpr):
    """The gradient where ReLU passed the value, else 0; the value is recomputed exactly as in the forward pass."""
    return tl.where((x - mean) * scale + bias > 0.0, grad, 0.0) if RELU else grad


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    grad_ptr, x_ptr, y_ptr, passed_ptr, partial_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, rows, pitch, channels,
    rows_a_program, RELU: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr, GROUP: tl.constexpr
):  # fmt: skip
    """partial (programs, 2, pitch * VECTOR) fp32: sums of g and of g (x - mean), where g is the gradient behind ReLU.

    With ADDS (a residual and ReLU), ReLU's mask is y > 0, and g, the residual's gradient, is written to ``passed``.
    """
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column, wide, _, mean, scale, bias = columns(
        mean_ptr, inverse_ptr, weight_ptr, bias_ptr, pitch, channels, COLUMNS, VECTOR, GROUP
    )
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
    """partial -> d_weight, d_bias (channels,); means (2, channels): the mean of g, and that of g times the normalised
    x, divided by the standard deviation. A program joins JOIN_COLUMNS channels."""
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
    grad_ptr, x_ptr, grad_sum_ptr, d_x_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, means_ptr, rows, pitch,
    channels, RELU: tl.constexpr, ADDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr,
    GROUP: tl.constexpr, DEPTH: tl.constexpr
):  # fmt: skip
    """d_x of DEPTH tiles of ROWS rows; with ADDS, plus the gradient of the sum's other readers before rounding."""
    inner = tl.arange(0, ROWS)
    column, wide, channel, mean, scale, bias = columns(
        mean_ptr, inverse_ptr, weight_ptr, bias_ptr, pitch, channels, COLUMNS, VECTOR, GROUP
    )
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
        if ADDS:
            d_x += load(grad_sum_ptr + at, offsets, live)
        tl.store(d_x_ptr + at + offsets, d_x.to(d_x_ptr.dtype.element_ty), mask=live)
        first += ROWS
        at += ROWS * pitch * VECTOR
