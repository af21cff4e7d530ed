"""spectral as one Triton launch over (B, blocks): a program reads the r * r phases of a block of output elements of one
image once and computes all bands of these elements from them."""

# ruff: noqa: N803, N806, RET505, RUF005  (Triton: constants, branches not taken are an else, tuples grow by +)

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..tritonlib import Build, on_own_device
from . import reference

# Both were chosen from the SASS of sm_90 on 2026-11-26, not measured.
WARPS = 4
ELEMENTS = {2: 8, 4: 4, 6: 2}
"""Elements of a band per thread, by r; in bf16 they are stored as one word of 16, 8 or 4 bytes. With twice as many,
s = r * r = 16 and 36 need all 255 registers instead of 96."""


@triton.constexpr_function
def _coefficient(k, p, s):
    """2 cos(pi k (2 p + 1) / (2 s))."""
    return 2.0 * math.cos(math.pi * (k * (2 * p + 1) % (4 * s)) / (2 * s))


@triton.jit
def _load_phases(base, STRIDE_H: tl.constexpr, STRIDE_W: tl.constexpr, R: tl.constexpr):
    """The R * R phases as a tuple; bytes as int32, whose sums and differences are exact and cheap, others as fp32."""
    found = ()
    for p in tl.static_range(R * R):
        x = tl.load(base + ((p // R) * STRIDE_H + (p % R) * STRIDE_W))
        found = found + (x.to(tl.int32) if x.dtype.is_int() else x.to(tl.float32),)
    return found


@triton.jit
def _floats(x):
    """The values as fp32. For an int32 x, the bits of the float 1.5 * 2^23 + x, minus 1.5 * 2^23: exact for |x| < 2^22,
    and faster than the conversion instruction."""
    found = ()
    for p in tl.static_range(len(x)):
        if x[p].dtype == tl.int32:
            found = found + ((x[p] + 0x4B400000).to(tl.float32, bitcast=True) - 12582912.0,)
        else:
            found = found + (x[p],)
    return found


@triton.jit
def _folded(x):
    """The sums x[p] + x[-1 - p] and the differences x[p] - x[-1 - p], for p in the first half."""
    sums = ()
    differences = ()
    for p in tl.static_range(len(x) // 2):
        sums = sums + (x[p] + x[len(x) - 1 - p],)
        differences = differences + (x[p] - x[len(x) - 1 - p],)
    return sums, differences


@triton.jit
def _band(x, k: tl.constexpr, S: tl.constexpr):
    """Band k of S from the (folded) phases x."""
    value = x[0] * _coefficient(k, 0, S)
    for p in tl.static_range(1, len(x)):
        value += x[p] * _coefficient(k, p, S)
    return value


@triton.jit
def _of_band(values_ptr, i: tl.constexpr, c, STRIDES: tl.constexpr):
    """values[i, c]; a single scalar load if all channels share the value."""
    if STRIDES[1] == 0:
        return tl.load(values_ptr + i * STRIDES[0])
    else:
        return tl.load(values_ptr + (i * STRIDES[0] + c * STRIDES[1]))


@triton.jit(do_not_specialize=["batch", "stride_b"])
def spectral_kernel(
    images_ptr, scale_ptr, shift_ptr, out_ptr, batch, stride_b, STRIDE_C: tl.constexpr, STRIDE_H: tl.constexpr,
    STRIDE_W: tl.constexpr, R: tl.constexpr, C: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr, BANDS: tl.constexpr,
    LAST: tl.constexpr, NORMALISE: tl.constexpr, SCALE: tl.constexpr, SHIFT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Program (b, j) computes elements j * BLOCK onwards of every band of image b; a band has N = C * OH * OW elements,
    in memory order (OH, OW, C) with LAST, else (C, OH, OW). out is (len(BANDS), batch, N).

    By the symmetry of the cosine, odd bands need only the differences of mirrored phases and even bands only the sums;
    the sums are folded once more for k % 4 = 2 and k % 4 = 0. That saves half to three quarters of the products.
    """
    b = tl.program_id(0).to(tl.int64)
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    N: tl.constexpr = C * OH * OW
    at = tl.minimum(e, N - 1)
    if LAST:
        c = at % C
        w = at // C % OW
        h = at // (C * OW)
    else:
        w = at % OW
        h = at // OW % OH
        c = at // (OW * OH)
    base = images_ptr + b * stride_b + (c * STRIDE_C + h * (R * STRIDE_H) + w * (R * STRIDE_W))
    sums, differences = _folded(_load_phases(base, STRIDE_H, STRIDE_W, R))
    even, odd = _folded(sums)
    differences, even, odd = _floats(differences), _floats(even), _floats(odd)
    where = out_ptr + b * N + e
    for i in tl.static_range(len(BANDS)):
        if BANDS[i] % 2 == 1:
            value = _band(differences, BANDS[i], R * R)
        elif BANDS[i] % 4 == 2:
            value = _band(odd, BANDS[i], R * R)
        else:
            value = _band(even, BANDS[i], R * R)
        if NORMALISE:
            value = value * _of_band(scale_ptr, i, c, SCALE) + _of_band(shift_ptr, i, c, SHIFT)
        tl.store(where, value.to(out_ptr.dtype.element_ty), mask=e < N)
        where += batch.to(tl.int64) * N


def _constants(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None
) -> dict[str, object]:
    _, channels, height, width = images.shape
    sizes = {"R": r, "C": channels, "OH": height // r, "OW": width // r, "BANDS": bands}
    strides = dict(zip(("STRIDE_C", "STRIDE_H", "STRIDE_W"), images.stride()[1:], strict=True))
    layout = {"LAST": reference.is_channels_last(images), "NORMALISE": scale is not None}
    layout |= {name: t if t is None else t.stride() for name, t in (("SCALE", scale), ("SHIFT", shift))}
    return {**sizes, **strides, **layout, "BLOCK": WARPS * 32 * ELEMENTS[r]}


@on_own_device
def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral, which computes fp64."""
    if torch.float64 in (images.dtype, dtype):
        return reference.spectral(images, r, bands, scale, shift, dtype)
    out = reference.empty_like_bands(images, len(bands), r, dtype)
    if out.numel() == 0:
        return out
    constants = _constants(images, r, bands, scale, shift)
    batch = images.shape[0]
    grid = (batch, triton.cdiv(out.numel() // (len(bands) * batch), constants["BLOCK"]))
    # Every pointer of a launch needs an address. Without scale and shift the kernel is compiled not to read them, and
    # the output's address is passed.
    pointers = (images, *(out if t is None else t for t in (scale, shift)), out)
    spectral_kernel[grid](*pointers, batch, images.stride(0), **constants, num_warps=WARPS)
    return out


def builds() -> list[Build]:
    """The kernels that the systems use, to compile without a GPU."""
    pointers = {"scale_ptr": "*fp32", "shift_ptr": "*fp32", "images_ptr": "*u8"}
    scalars = {"batch": "i32", "stride_b": "i32"}
    found = []
    for r, side in ((2, 224), (4, 224), (6, 336)):
        for last, out in ((True, "*bf16"), (False, "*fp32")):
            layout = torch.channels_last if last else torch.contiguous_format
            images = torch.empty((2, 3, side, side), dtype=torch.uint8, device="meta", memory_format=layout)
            values = torch.empty((r * r, 3), device="meta") if last else torch.empty((r * r, 1)).expand(r * r, 3)
            constants = _constants(images, r, tuple(range(r * r)), values, values)
            signature = {**pointers, **scalars, "out_ptr": out}
            found.append(Build(f"spectral s={r * r} {out}", spectral_kernel, signature, constants, WARPS))
    return found
