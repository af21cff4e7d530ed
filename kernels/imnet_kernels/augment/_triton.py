"""augment as one Triton launch: a program per sample and block of output elements."""

# ruff: noqa: N803  (Triton constants are written as constants)

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import tritonlib
from ..tritonlib import Build, below, philox, signed32
from ._host import FLIPS
from .reference import Spec

BLOCK = 1024


@triton.jit
def _choices(
    sample, seed_low, seed_high, epoch, threshold, PAD: tl.constexpr, HFLIP: tl.constexpr, CUTOUT: tl.constexpr,
    FIRST_Y: tl.constexpr, NUM_Y: tl.constexpr, FIRST_X: tl.constexpr, NUM_X: tl.constexpr
):  # fmt: skip
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


@triton.jit(do_not_specialize=["num_stored", "seed_low", "seed_high", "epoch", "threshold"])
def augment_kernel(
    store_ptr, ids_ptr, sample_ids_ptr, scale_ptr, shift_ptr, out_ptr, num_stored, seed_low, seed_high, epoch,
    threshold, H: tl.constexpr, W: tl.constexpr, C: tl.constexpr, PAD: tl.constexpr, REFLECT: tl.constexpr, HFLIP:
    tl.constexpr, CUTOUT: tl.constexpr, FIRST_Y: tl.constexpr, NUM_Y: tl.constexpr, FIRST_X: tl.constexpr, NUM_X:
    tl.constexpr, PER_PIXEL: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0)
    image = tl.load(ids_ptr + row)
    sample = tl.load(sample_ids_ptr + row)
    oy, ox, flip, y0, x0 = _choices(
        sample, seed_low, seed_high, epoch, threshold, PAD, HFLIP, CUTOUT, FIRST_Y, NUM_Y, FIRST_X, NUM_X
    )
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    c, x, y = e % C, (e // C) % W, e // (C * W)
    # A bad id reads nothing and gives NaN: a captured graph cannot stop for it.
    known = (image >= 0) & (image < num_stored)
    live = e < tl.where(known, H * W * C, 0)
    sy = y + oy
    sx = tl.where(flip > 0, W - 1 - x, x) + ox
    inside = live
    if PAD > 0:
        if REFLECT:
            sy = _reflect(sy, H)
            sx = _reflect(sx, W)
        else:
            inside = live & (sy >= 0) & (sy < H) & (sx >= 0) & (sx < W)
    at = (sy * W + sx) * C + c
    pixel = tl.load(store_ptr + image * (H * W * C) + at, mask=inside, other=0).to(tl.float32)
    scale = tl.load(scale_ptr + c)
    if PER_PIXEL:
        shift = tl.load(shift_ptr + at, mask=inside, other=0.0)
    else:
        shift = tl.load(shift_ptr + c)
    value = pixel * scale + shift
    if CUTOUT > 0:
        erased = (y >= y0) & (y < y0 + CUTOUT) & (x >= x0) & (x < x0 + CUTOUT)
        value = tl.where(erased, 0.0, value)
    value = tl.where(known, value, float("nan"))
    tl.store(out_ptr + row.to(tl.int64) * (H * W * C) + e, value.to(out_ptr.dtype.element_ty), mask=e < H * W * C)


def _constants(spec: Spec, shape: tuple[int, int, int], per_pixel: bool) -> dict[str, object]:
    height, width, channels = shape
    (first_y, num_y), (first_x, num_x) = spec.box_range(height), spec.box_range(width)
    box = {"FIRST_Y": first_y, "NUM_Y": num_y, "FIRST_X": first_x, "NUM_X": num_x}
    flips, reflects = FLIPS[spec.hflip], spec.pad_mode == "reflect"
    crop = {"PAD": spec.pad_px, "REFLECT": reflects, "HFLIP": flips, "CUTOUT": spec.cutout_px}
    sizes = {"H": height, "W": width, "C": channels, "PER_PIXEL": per_pixel}
    return {**sizes, **crop, **box, "BLOCK": tritonlib.block_for(height * width * channels, BLOCK)}


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
    if out is None:
        out = torch.empty((ids.numel(), height, width, channels), dtype=dtype, device=store.device).permute(0, 3, 1, 2)
    constants = _constants(spec, (height, width, channels), shift.dim() == 3)
    if ids.numel():
        grid = (ids.numel(), triton.cdiv(height * width * channels, constants["BLOCK"]))
        seed = (signed32(spec.seed), signed32(spec.seed >> 32), signed32(spec.epoch))
        arguments = (store, ids, sample_ids, scale, shift, out, num_stored, *seed, spec.flip_threshold)
        # Without fusion: multiply and add are two roundings in the reference.
        augment_kernel[grid](*arguments, **constants, enable_fp_fusion=False)
    return out


def builds() -> list[Build]:
    """The recipes' variants, to compile without a GPU."""
    pointers = {"store_ptr": "*u8", "ids_ptr": "*i64", "sample_ids_ptr": "*i64"}
    pointers |= {"scale_ptr": "*fp32", "shift_ptr": "*fp32"}
    scalars = {"num_stored": "i32", "seed_low": "i32", "seed_high": "i32", "epoch": "i32", "threshold": "i64"}
    imagenet = Spec(0, 0, 4, "zero", "random", 0.5, 16, False)
    fashion = Spec(0, 0, 4, "reflect", "alternating", 0.5, 16, True)
    variants = [("imagenet64", imagenet, (64, 64, 3), False), ("fashion", fashion, (28, 28, 1), False)]
    variants.append(("mean_image", imagenet._replace(cutout_px=0), (64, 64, 3), True))
    found = []
    for name, spec, shape, per_pixel in variants:
        constants = _constants(spec, shape, per_pixel)
        for out in ("*fp32", "*bf16", "*fp16"):
            signature = {**pointers, **scalars, "out_ptr": out}
            found.append(Build(f"augment {name} {out}", augment_kernel, signature, constants, fp_fusion=False))
    return found
