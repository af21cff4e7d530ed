"""augment as one Triton launch: one program per image, or per part of an image's rows if the batch is small.

The grid is (B, parts). Every program draws its image's choices, reads the uint8 store (N, H, W, C) at the cropped and
flipped positions and writes its rows of out, (B, H, W, C) in memory. Elements of a row are pixels times channels.
"""

# ruff: noqa: N803, RET505  (Triton: constants are written as constants, a branch that is not taken must be an else)

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tritonlib import Build, below, on_own_device, philox, signed32
from .reference import FLIPS, Spec, empty_batch

# All five were chosen from the SASS of sm_90 on 2026-11-26, not measured.
STORE_BYTES = 16
"""The most bytes that a thread writes in one store; the elements of a store share the arithmetic of their row."""
ROWS, COLUMNS = 16, 64
"""The largest tile of one iteration: 32 loads in flight per thread. 64 columns, because common row lengths are
multiples of 64."""
SPARE = 1.15
"""The largest factor by which the tiles may exceed the image."""
WARPS = 1
"""Warps per program. Every thread draws its image's choices and computes its columns once, so fewer threads repeat
less of that work."""
PROGRAMS = 2048
"""The least number of programs to aim for: a smaller batch splits its images by rows, into parts of at least a tile."""


@triton.jit
def _choices(
    sample, seed_low, seed_high, epoch, threshold, PAD: tl.constexpr, HFLIP: tl.constexpr, CUTOUT: tl.constexpr,
    FIRST_Y: tl.constexpr, NUM_Y: tl.constexpr, FIRST_X: tl.constexpr, NUM_X: tl.constexpr
):  # fmt: skip
    """An image's crop offsets (oy, ox), -PAD .. PAD, flip (0 or 1) and the cutout box's start (y0, x0), all int32."""
    oy = tl.full((), -PAD, tl.int32)
    ox = tl.full((), -PAD, tl.int32)
    flip = tl.full((), 0, tl.int32)
    y0 = tl.full((), 0, tl.int32)
    x0 = tl.full((), 0, tl.int32)
    if PAD > 0 or HFLIP == 1:
        r0, r1, r2, _ = philox(sample, seed_low, seed_high, epoch, 0)
        oy += below(r0, 2 * PAD + 1)
        ox += below(r1, 2 * PAD + 1)
        if HFLIP == 1:
            flip = (r2.to(tl.int64) < threshold).to(tl.int32)
    if HFLIP == 2:
        phase, _, _, _ = philox(sample, seed_low, seed_high, epoch * 0, 2)
        flip = ((phase.to(tl.int64) + epoch) & 1).to(tl.int32)
    if CUTOUT > 0:
        r0, r1, _, _ = philox(sample, seed_low, seed_high, epoch, 1)
        y0 = below(r0, NUM_Y) + FIRST_Y
        x0 = below(r1, NUM_X) + FIRST_X
    return oy, ox, flip, y0, x0


@triton.jit
def _reflect(i, SIZE: tl.constexpr):
    i = tl.abs(i)
    return tl.where(i < SIZE, i, 2 * (SIZE - 1) - i)


@triton.jit
def _outside(i, first, SIZE: tl.constexpr, SHIFT: tl.constexpr):
    """-1 where i is not in first .. first + SIZE - 1, else 0, from the sign bit instead of two comparisons.

    SHIFT is 30 for rows and 29 for columns, which is equivalent for numbers this small. With equal shifts, or with 31,
    the compiler combines the masks of rows and columns before shifting: once per element instead of once per row and
    column, and in predicate registers, of which there are only 7.
    """
    return ((i - first) | (first + SIZE - 1 - i)) >> SHIFT


@triton.jit
def _clamped(i, SIZE: tl.constexpr):
    """i limited to 0 .. SIZE - 1, so that the load is valid; in zero padding the loaded pixel is masked afterwards."""
    return tl.minimum(tl.maximum(i, 0), SIZE - 1)


@triton.jit
def _masked(value, bits):
    """The fp32 value where ``bits`` is -1, and 0 where it is 0."""
    return (value.to(tl.int32, bitcast=True) & bits).to(tl.float32, bitcast=True)


@triton.jit
def _of_channel(values_ptr, c, C: tl.constexpr):
    """values[c], selected from C scalar loads: a load for every column would cost more."""
    found = tl.load(values_ptr)
    for k in tl.static_range(1, C):
        found = tl.where(c == k, tl.load(values_ptr + k), found)
    return found


@triton.jit
def _normalised(source, scale, shift, keep, PADDED: tl.constexpr):
    """pixel * scale + shift in two roundings; ``shift`` holds numbers, or pointers into the shift (H, W, C).

    Zero padding is the pixel value 0 with a mean per channel, and the normalised value 0 with a mean image.
    """
    # The bits of the float 2^23 + pixel, minus 2^23: exact, and four times faster than the conversion instruction.
    value = (tl.load(source).to(tl.int32) | 0x4B000000).to(tl.float32, bitcast=True) - 8388608.0
    if shift.dtype.is_ptr():
        value = value * scale + tl.load(shift)
        return _masked(value, keep) if PADDED else value
    else:
        return (_masked(value, keep) if PADDED else value) * scale + shift


@triton.jit(do_not_specialize=["num_stored", "seed_low", "seed_high", "epoch", "threshold", "rows_each"])
def augment_kernel(
    store_ptr, ids_ptr, sample_ids_ptr, scale_ptr, shift_ptr, out_ptr, num_stored, seed_low, seed_high, epoch,
    threshold, rows_each, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PAD: tl.constexpr, REFLECT: tl.constexpr,
    HFLIP: tl.constexpr, CUTOUT: tl.constexpr, FIRST_Y: tl.constexpr, NUM_Y: tl.constexpr, FIRST_X: tl.constexpr,
    NUM_X: tl.constexpr, PER_PIXEL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, CHUNKS: tl.constexpr,
    WIDTH: tl.constexpr
):  # fmt: skip
    """Program (image, part) makes ``rows_each`` rows of one image in tiles of (ROWS, COLUMNS) elements.

    Column indices, scale and shift are computed once per chunk of COLUMNS, row indices once per row of a tile.
    """
    row = tl.program_id(0)
    image = tl.load(ids_ptr + row)
    sample = tl.load(sample_ids_ptr + row)
    oy, ox, flip, y0, x0 = _choices(
        sample, seed_low, seed_high, epoch, threshold, PAD, HFLIP, CUTOUT, FIRST_Y, NUM_Y, FIRST_X, NUM_X
    )
    # For a bad id the scale is NaN and padding and cutout are off, so that all of the image is NaN: a kernel in a
    # captured graph cannot raise an error.
    known = (image >= 0) & (image < num_stored)
    source = store_ptr + tl.where(known, image, 0) * (H * W * C)
    out = out_ptr + row.to(tl.int64) * (H * W * C)
    y0 = tl.where(known, y0, H)
    bad = tl.where(known, 0, -1)
    step = tl.where(flip > 0, -1, 1)
    left = tl.where(flip > 0, W - 1, 0) + ox
    first = tl.program_id(1) * rows_each
    for chunk in range(CHUNKS):
        e = chunk * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        x = e // C
        c = e - x * C
        sx = left + x * step
        at_x = _clamped((_reflect(sx, W) if REFLECT else sx) * C + c, W * C)
        scale = tl.where(known, _of_channel(scale_ptr, c, C), float("nan"))
        shift_x = scale if PER_PIXEL else _of_channel(shift_ptr, c, C)
        keep_x = tl.where(known, ~_outside(sx, 0, W, 29), -1)
        for y_first in range(first, tl.minimum(first + rows_each, H), ROWS):
            y = y_first + tl.arange(0, ROWS)[:, None]
            sy = y + oy
            at_y = _clamped(_reflect(sy, H) if REFLECT else sy, H) * (W * C)
            keep = (~_outside(sy, 0, H, 30) | bad) & keep_x
            # The hints make the loads use the layout of the stores. They do not widen loads, which lack an alignment.
            pixel = tl.max_contiguous(source + at_y + at_x, [1, WIDTH])
            shift = tl.max_contiguous(shift_ptr + at_y + at_x, [1, WIDTH]) if PER_PIXEL else shift_x
            value = _normalised(pixel, scale, shift, keep, PAD > 0 and not REFLECT)
            if CUTOUT > 0:
                value = _masked(value, _outside(y, y0, CUTOUT, 30) | _outside(x, x0, CUTOUT, 29))
            at = out + y * (W * C) + tl.max_contiguous(e, [1, WIDTH])
            value = value.to(out_ptr.dtype.element_ty)
            if H % ROWS == 0 and W * C == CHUNKS * COLUMNS:
                tl.store(at, value)
            else:
                tl.store(at, value, mask=(y < H) & (e < W * C))


def _tile(count: int, largest: int) -> int:
    """The largest power of two up to `largest` whose multiple that covers `count` exceeds it by at most SPARE."""
    sizes = [1 << k for k in range(largest.bit_length())]
    return max(s for s in sizes if triton.cdiv(count, s) * s <= SPARE * count)


@lru_cache(maxsize=64)
def _constants(spec: Spec, shape: tuple[int, int, int], per_pixel: bool, itemsize: int) -> dict[str, object]:
    height, width, channels = shape
    (first_y, num_y), (first_x, num_x) = spec.box_range(height), spec.box_range(width)
    box = {"FIRST_Y": first_y, "NUM_Y": num_y, "FIRST_X": first_x, "NUM_X": num_x}
    flips, reflects = FLIPS[spec.hflip], spec.pad_mode == "reflect"
    crop = {"PAD": spec.pad_px, "REFLECT": reflects, "HFLIP": flips, "CUTOUT": spec.cutout_px}
    sizes = {"H": height, "W": width, "C": channels, "PER_PIXEL": per_pixel}
    # The width of a store divides the length of a row, so that no store covers two rows.
    elements = width * channels
    # A tile of one element fails to compile in Triton 3.6.
    columns = max(2, _tile(elements, COLUMNS))
    tile = {"ROWS": _tile(height, ROWS), "COLUMNS": columns, "CHUNKS": triton.cdiv(elements, columns)}
    tile["WIDTH"] = math.gcd(elements, columns, STORE_BYTES // itemsize)
    return {**sizes, **crop, **box, **tile}


@on_own_device
def augment(
    store: Tensor,
    ids: Tensor,
    sample_ids: Tensor,
    scale: Tensor,
    shift: Tensor,
    spec: Spec,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """See reference.augment. On CUDA an id out of range gives an image of NaN."""
    num_stored, height, width, channels = store.shape
    ids, sample_ids, shift = ids.contiguous(), sample_ids.contiguous(), shift.contiguous()
    out = empty_batch(store, ids, dtype) if out is None else out
    constants = _constants(spec, (height, width, channels), shift.dim() == 3, dtype.itemsize)
    if num_stored == 0:
        return out.fill_(float("nan"))  # every id is bad, and the kernel would read image 0 instead
    if ids.numel():
        num_tiles = triton.cdiv(height, constants["ROWS"])
        parts = min(num_tiles, max(1, PROGRAMS // ids.numel()))
        rows_each = triton.cdiv(num_tiles, parts) * constants["ROWS"]
        seed = (signed32(spec.seed), signed32(spec.seed >> 32), signed32(spec.epoch))
        arguments = (store, ids, sample_ids, scale, shift, out, num_stored, *seed, spec.flip_threshold, rows_each)
        # No fused multiply-add: the reference rounds after the multiply and after the add.
        grid = (ids.numel(), triton.cdiv(height, rows_each))
        augment_kernel[grid](*arguments, **constants, enable_fp_fusion=False, num_warps=WARPS)
    return out


def builds() -> list[Build]:
    """The kernels that the recipes use, to compile without a GPU."""
    pointers = {"store_ptr": "*u8", "ids_ptr": "*i64", "sample_ids_ptr": "*i64"}
    pointers |= {"scale_ptr": "*fp32", "shift_ptr": "*fp32"}
    scalars = {"num_stored": "i32", "seed_low": "i32", "seed_high": "i32", "epoch": "i32", "threshold": "i64"}
    scalars["rows_each"] = "i32"
    imagenet = Spec(0, 0, 4, "zero", "random", 0.5, 16, False)
    fashion = Spec(0, 0, 4, "reflect", "alternating", 0.5, 16, True)
    variants = [("imagenet64", imagenet, (64, 64, 3), False), ("fashion", fashion, (28, 28, 1), False)]
    variants.append(("mean_image", imagenet._replace(cutout_px=0), (64, 64, 3), True))
    found = []
    for name, spec, shape, per_pixel in variants:
        for out in ("*fp32", "*bf16", "*fp16"):
            constants = _constants(spec, shape, per_pixel, 4 if out == "*fp32" else 2)
            signature = {**pointers, **scalars, "out_ptr": out}
            found.append(Build(f"augment {name} {out}", augment_kernel, signature, constants, WARPS, fp_fusion=False))
    return found
