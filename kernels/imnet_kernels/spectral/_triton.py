"""spectral as one Triton launch: a program per block of output elements makes every band from one read of its
phases."""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import math
from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tritonlib import Build
from . import reference


@triton.jit
def _write(
    acc, bands_ptr, scale_ptr, shift_ptr, out_ptr, e, c, total, C: tl.constexpr, ROWS: tl.constexpr,
    NORMALISE: tl.constexpr
):  # fmt: skip
    """acc (ROWS, BLOCK): row i is output band bands[i], -1 for padding."""
    band = tl.load(bands_ptr + tl.arange(0, ROWS))
    live = (band[:, None] >= 0) & (e[None, :] < total)
    if NORMALISE:
        at = band[:, None] * C + c[None, :]
        acc = acc * tl.load(scale_ptr + at, mask=live, other=0.0) + tl.load(shift_ptr + at, mask=live, other=0.0)
    where = band[:, None].to(tl.int64) * total + e[None, :]
    tl.store(out_ptr + where, acc.to(out_ptr.dtype.element_ty), mask=live)


@triton.jit
def spectral_kernel(
    images_ptr, even_ptr, odd_ptr, even_bands_ptr, odd_bands_ptr, scale_ptr, shift_ptr, out_ptr, total,
    stride_b, stride_c, stride_h, stride_w, OH, OW,
    R: tl.constexpr, C: tl.constexpr, EVEN: tl.constexpr, ODD: tl.constexpr, LAST: tl.constexpr,
    NORMALISE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Even bands see sums of mirrored phases, odd bands differences: half the products."""
    e = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    live = e < total
    if LAST:
        c = e % C
        w = (e // C) % OW
        h = (e // C // OW) % OH
        b = e // C // OW // OH
    else:
        w = e % OW
        h = (e // OW) % OH
        c = (e // OW // OH) % C
        b = e // OW // OH // C
    base = images_ptr + b * stride_b + c * stride_c + h * R * stride_h + w * R * stride_w
    acc_even = tl.zeros((EVEN, BLOCK), tl.float32)
    acc_odd = tl.zeros((ODD, BLOCK), tl.float32)
    for p in tl.static_range(R * R // 2):
        first = tl.load(base + (p // R) * stride_h + (p % R) * stride_w, mask=live, other=0).to(tl.float32)
        second = tl.load(
            base + ((R * R - 1 - p) // R) * stride_h + ((R * R - 1 - p) % R) * stride_w, mask=live, other=0
        ).to(tl.float32)
        acc_even += tl.load(even_ptr + p * EVEN + tl.arange(0, EVEN))[:, None] * (first + second)[None, :]
        acc_odd += tl.load(odd_ptr + p * ODD + tl.arange(0, ODD))[:, None] * (first - second)[None, :]
    _write(acc_even, even_bands_ptr, scale_ptr, shift_ptr, out_ptr, e, c, total, C, EVEN, NORMALISE)
    _write(acc_odd, odd_bands_ptr, scale_ptr, shift_ptr, out_ptr, e, c, total, C, ODD, NORMALISE)


@lru_cache(maxsize=64)
def _tables(r: int, bands: tuple[int, ...], device: torch.device) -> tuple[tuple[Tensor, ...], tuple[int, int]]:
    """Coefficients (s / 2, rows) and output positions (rows,) of even and odd bands; rows padded to powers of 2."""
    s, coefficients, positions, sizes = r * r, [], [], []
    for parity in (0, 1):
        members = [(i, k) for i, k in enumerate(bands) if k % 2 == parity]
        rows = triton.next_power_of_2(max(len(members), 1))
        table = torch.zeros((s // 2, rows), dtype=torch.float64)
        where = torch.full((rows,), -1, dtype=torch.int32)
        for row, (i, k) in enumerate(members):
            where[row] = i
            turns = [(k * (2 * p + 1) % (4 * s)) / (2 * s) for p in range(s // 2)]
            table[:, row] = 2.0 * (math.pi * torch.tensor(turns, dtype=torch.float64)).cos()
        coefficients.append(table.float().to(device))
        positions.append(where.to(device))
        sizes.append(rows)
    return (*coefficients, *positions), (sizes[0], sizes[1])


def _shape_constants(r: int, rows: tuple[int, int]) -> dict[str, int]:
    """BLOCK keeps both accumulators in registers: 32 x 64 floats over 128 threads for s = 36."""
    return {"R": r, "EVEN": rows[0], "ODD": rows[1], "BLOCK": {2: 256, 4: 128, 6: 64}[r]}


def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral; fp64 goes there."""
    if torch.float64 in (images.dtype, dtype):
        return reference.spectral(images, r, bands, scale, shift, dtype)
    out = reference.empty_like_bands(images, len(bands), r, dtype)
    if out.numel() == 0:
        return out
    tables, rows = _tables(r, bands, images.device)
    _, channels, height, width = images.shape
    total = out.numel() // len(bands)
    constants = _shape_constants(r, rows)
    spare = tables[0]
    spectral_kernel[(triton.cdiv(total, constants["BLOCK"]),)](
        images, *tables, spare if scale is None else scale.contiguous(), spare if shift is None else shift.contiguous(),
        out, total, *images.stride(), height // r, width // r, C=channels,
        LAST=reference.is_channels_last(images), NORMALISE=scale is not None, **constants
    )  # fmt: skip
    return out


def builds() -> list[Build]:
    """The systems' variants, to compile without a GPU."""
    pointers = {"even_ptr": "*fp32", "odd_ptr": "*fp32", "even_bands_ptr": "*i32", "odd_bands_ptr": "*i32"}
    pointers |= {"scale_ptr": "*fp32", "shift_ptr": "*fp32", "images_ptr": "*u8"}
    scalars = dict.fromkeys(("total", "stride_b", "stride_c", "stride_h", "stride_w", "OH", "OW"), "i32")
    found = []
    for r in (2, 4, 6):
        rows = triton.next_power_of_2(r * r // 2)
        constants = {**_shape_constants(r, (rows, rows)), "C": 3, "NORMALISE": True}
        for last, out in ((True, "*bf16"), (False, "*fp32")):
            signature = {**pointers, **scalars, "out_ptr": out}
            found.append(Build(f"spectral s={r * r} {out}", spectral_kernel, signature, {**constants, "LAST": last}))
    return found
