"""dense_stage's Triton kernels over rows of channels; see _triton.py for their purpose and the launch grids.

A row of the stage's map has ``pitch * VECTOR`` channels, of which a layer reads the first ``groups * VECTOR``. The
1x1 convolution's weights are ``matrix`` (INNER, groups * VECTOR), held in a tile of WIDTH rows, the next power of two
(at least 16). Maps and matrix are fp32, bf16 or fp16; statistics and sums are fp32.
"""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import os

import triton
import triton.language as tl

from ..batch_norm._triton_kernels import load

SIZES = ["rows", "pitch", "groups", "rows_a_program", "at", "source_pitch", "target_pitch", "new_groups"]
"""Arguments that Triton must not specialise on: every layer would compile kernels of its own, without gain, since
VECTOR already states the alignment."""


INTERPRETED = tl.constexpr(os.environ.get("TRITON_INTERPRET") == "1")


@triton.jit
def product(a, b, summed):
    """summed + a @ b in fp32. For Triton's interpreter the operands are widened to fp32, which is exact, because it
    would multiply the bit patterns of bf16."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, summed, input_precision="ieee")


@triton.jit
def numbers(mean_ptr, inverse_ptr, weight_ptr, bias_ptr, column, wide):
    """Each channel's mean, scale (weight / deviation) and bias, (1, columns) fp32."""
    scale = load(inverse_ptr, column, wide) * load(weight_ptr, column, wide)
    return load(mean_ptr, column, wide)[None, :], scale[None, :], load(bias_ptr, column, wide)[None, :]


@triton.jit
def tile_of(matrix_ptr, column, wide, groups, INNER: tl.constexpr, WIDTH: tl.constexpr, VECTOR: tl.constexpr):
    """(WIDTH, columns) of the 1x1 convolution's weights, with zeros beyond INNER and beyond the channels."""
    out = tl.arange(0, WIDTH)
    live = (out < INNER)[:, None] & wide[None, :]
    return tl.load(matrix_ptr + out[:, None] * groups * VECTOR + column[None, :], mask=live, other=0.0)


@triton.jit
def seen_more(mean, squares, seen, x, here, number):
    """(mean, squared deviations, number of rows) so far, joined with those of a tile x of ``number`` rows by Chan's
    rule, which avoids the cancellation of a large mean."""
    middle = tl.sum(tl.where(here, x, 0.0), 0) / number
    off = tl.where(here, x - middle[None, :], 0.0)
    away = middle - mean
    share = number / (seen + number)
    return mean + away * share, squares + tl.sum(off * off, 0) + away * away * seen * share, seen + number


@triton.jit(do_not_specialize=SIZES)
def append_kernel(
    source_ptr, features_ptr, partial_ptr, rows, source_pitch, pitch, at, groups, rows_a_program,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """Copy ``groups * VECTOR`` columns of source into the map from column ``at * VECTOR``.

    Writes partial (programs, 2, columns) fp32: mean and squared deviations of each program's rows.
    """
    channels = groups * VECTOR
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner = tl.arange(0, ROWS)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide = column < channels
    source_ptr += first.to(tl.int64) * source_pitch * VECTOR
    features_ptr += first.to(tl.int64) * pitch * VECTOR + at * VECTOR
    mean = tl.zeros((COLUMNS,), tl.float32)
    squares = tl.zeros((COLUMNS,), tl.float32)
    seen = 0.0
    for start in range(0, count, ROWS):
        here = (inner < count - start)[:, None]
        x = tl.load(source_ptr + inner[:, None] * source_pitch * VECTOR + column[None, :], mask=here & wide[None, :])
        tl.store(features_ptr + inner[:, None] * pitch * VECTOR + column[None, :], x, mask=here & wide[None, :])
        number = tl.minimum(ROWS, count - start).to(tl.float32)
        mean, squares, seen = seen_more(mean, squares, seen, x.to(tl.float32), here, number)
        source_ptr += ROWS * source_pitch * VECTOR
        features_ptr += ROWS * pitch * VECTOR
    partial_ptr += tl.program_id(0) * 2 * channels + column
    tl.store(partial_ptr, mean, mask=wide)
    tl.store(partial_ptr + channels, squares, mask=wide)


@triton.jit(do_not_specialize=SIZES)
def project_kernel(
    x_ptr, h_ptr, partial_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, matrix_ptr, rows, pitch, groups,
    rows_a_program, INNER: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr
):  # fmt: skip
    """h (rows, INNER) = relu(norm(x)) @ matrix.T; partial (programs, 2, INNER) fp32 of h, as in append_kernel."""
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner, out = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    real = out < INNER
    x_ptr += first.to(tl.int64) * pitch * VECTOR
    h_ptr += first.to(tl.int64) * INNER
    mean = tl.zeros((WIDTH,), tl.float32)
    squares = tl.zeros((WIDTH,), tl.float32)
    seen = 0.0
    for start in range(0, count, ROWS):
        here = (inner < count - start)[:, None]
        summed = tl.zeros((ROWS, WIDTH), tl.float32)
        for k in tl.range(0, groups * VECTOR, COLUMNS, num_stages=2):
            column = k + tl.arange(0, COLUMNS)
            wide = column < groups * VECTOR
            middle, scale, bias = numbers(mean_ptr, inverse_ptr, weight_ptr, bias_ptr, column, wide)
            x = load(x_ptr, inner[:, None] * pitch * VECTOR + column[None, :], here & wide[None, :])
            y = (x - middle) * scale + bias
            y = tl.where(y < 0.0, 0.0, y).to(h_ptr.dtype.element_ty)  # keeps NaN, so that a diverged run is noticed
            w = tile_of(matrix_ptr, column, wide, groups, INNER, WIDTH, VECTOR)
            summed = product(y, tl.trans(w), summed)
        h = summed.to(h_ptr.dtype.element_ty)
        tl.store(h_ptr + inner[:, None] * INNER + out[None, :], h, mask=here & real[None, :])
        number = tl.minimum(ROWS, count - start).to(tl.float32)
        mean, squares, seen = seen_more(mean, squares, seen, h.to(tl.float32), here, number)
        x_ptr += ROWS * pitch * VECTOR
        h_ptr += ROWS * INNER
    partial_ptr += tl.program_id(0) * 2 * INNER + out
    tl.store(partial_ptr, mean, mask=real)
    tl.store(partial_ptr + INNER, squares, mask=real)


@triton.jit(do_not_specialize=SIZES)
def reduce_kernel(
    d_h_ptr, x_ptr, partial_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, matrix_ptr, rows, pitch, groups,
    rows_a_program, INNER: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    VECTOR: tl.constexpr
):  # fmt: skip
    """partial (programs, 2 + INNER, groups * VECTOR) fp32: sums of g, of g (x - mean), and of d_h times relu(norm(x)).

    g = d_h @ matrix where ReLU passed the value, else 0. The last INNER rows are the gradient of the matrix.
    """
    channels = groups * VECTOR
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner, out = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide, real = column < channels, out < INNER
    mean, scale, bias = numbers(mean_ptr, inverse_ptr, weight_ptr, bias_ptr, column, wide)
    w = tile_of(matrix_ptr, column, wide, groups, INNER, WIDTH, VECTOR)
    x_ptr += first.to(tl.int64) * pitch * VECTOR
    d_h_ptr += first.to(tl.int64) * INNER
    sums = tl.zeros((COLUMNS,), tl.float32)
    products = tl.zeros((COLUMNS,), tl.float32)
    d_matrix = tl.zeros((COLUMNS, WIDTH), tl.float32)
    for start in range(0, count, ROWS):
        here = (inner < count - start)[:, None]
        x = load(x_ptr, inner[:, None] * pitch * VECTOR + column[None, :], here & wide[None, :])
        d_h = tl.load(d_h_ptr + inner[:, None] * INNER + out[None, :], mask=here & real[None, :], other=0.0)
        y = (x - mean) * scale + bias
        g = product(d_h, w, tl.zeros((ROWS, COLUMNS), tl.float32))
        g = tl.where(y > 0.0, g, 0.0)
        y = tl.where(y < 0.0, 0.0, y).to(d_h.dtype)
        d_matrix = product(tl.trans(y), d_h, d_matrix)
        sums += tl.sum(g, 0)
        products += tl.sum(g * (x - mean), 0)
        x_ptr += ROWS * pitch * VECTOR
        d_h_ptr += ROWS * INNER
    partial_ptr += tl.program_id(0) * (2 + INNER) * channels + column
    tl.store(partial_ptr, sums, mask=wide)
    tl.store(partial_ptr + channels, products, mask=wide)
    rest = partial_ptr[:, None] + (2 + out)[None, :] * channels
    tl.store(rest, d_matrix, mask=wide[:, None] & real[None, :])


@triton.jit(do_not_specialize=SIZES)
def gradient_kernel(
    d_h_ptr, x_ptr, source_ptr, target_ptr, new_ptr, mean_ptr, inverse_ptr, weight_ptr, bias_ptr, matrix_ptr, sums_ptr,
    rows, pitch, target_pitch, groups, new_groups, rows_a_program, NEW_PITCH: tl.constexpr, INNER: tl.constexpr,
    WIDTH: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, VECTOR: tl.constexpr
):  # fmt: skip
    """target = source + the gradient of x through this layer; the last ``new_groups * VECTOR`` columns also go to new.

    ``sums`` are reduce_kernel's over all rows. ``new`` (rows, NEW_PITCH) receives the now complete gradient of the
    features that the layer before this one added.
    """
    channels = groups * VECTOR
    first = tl.program_id(0) * rows_a_program
    count = tl.minimum(rows_a_program, rows - first)
    inner, out = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    wide, real = column < channels, out < INNER
    mean, scale, bias = numbers(mean_ptr, inverse_ptr, weight_ptr, bias_ptr, column, wide)
    w = tile_of(matrix_ptr, column, wide, groups, INNER, WIDTH, VECTOR)
    inverse = load(inverse_ptr, column, wide)
    mean_grad = (load(sums_ptr, column, wide) / rows)[None, :]
    slope = (load(sums_ptr + channels, column, wide) * inverse * inverse / rows)[None, :]
    fresh = column - (groups - new_groups) * VECTOR
    lately = wide & (fresh >= 0)
    x_ptr += first.to(tl.int64) * pitch * VECTOR
    source_ptr += first.to(tl.int64) * pitch * VECTOR
    target_ptr += first.to(tl.int64) * target_pitch * VECTOR
    d_h_ptr += first.to(tl.int64) * INNER
    new_ptr += first.to(tl.int64) * NEW_PITCH
    for start in tl.range(0, count, ROWS, num_stages=2):
        here = (inner < count - start)[:, None]
        offsets, live = inner[:, None] * pitch * VECTOR + column[None, :], here & wide[None, :]
        x = load(x_ptr, offsets, live)
        d_x = load(source_ptr, offsets, live)
        d_h = tl.load(d_h_ptr + inner[:, None] * INNER + out[None, :], mask=here & real[None, :], other=0.0)
        g = product(d_h, w, tl.zeros((ROWS, COLUMNS), tl.float32))
        g = tl.where((x - mean) * scale + bias > 0.0, g, 0.0)
        d_x = (d_x + scale * (g - mean_grad - (x - mean) * slope)).to(target_ptr.dtype.element_ty)
        tl.store(target_ptr + inner[:, None] * target_pitch * VECTOR + column[None, :], d_x, mask=live)
        tl.store(new_ptr + inner[:, None] * NEW_PITCH + fresh[None, :], d_x, mask=here & lately[None, :])
        x_ptr += ROWS * pitch * VECTOR
        source_ptr += ROWS * pitch * VECTOR
        target_ptr += ROWS * target_pitch * VECTOR
        d_h_ptr += ROWS * INNER
        new_ptr += ROWS * NEW_PITCH
