"""The definition of the augmentation: batched plain PyTorch, without a host sync on CUDA.

For output pixel (y, x) of a sample with crop offset (dy, dx), each uniform in 0 .. 2 * pad_px, and flip f:
    x' = W - 1 - x if f else x;    source = (y + dy - pad_px, x' + dx - pad_px)
    value = fp32(fp32(u8[source] * scale) + shift),  scale = fp32(1 / (255 std)),  shift = fp32(-mean / std)
and value = 0 inside the cutout box, which is given in output coordinates.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..philox import STREAM_CROP_FLIP, STREAM_CUTOUT, STREAM_FLIP_PHASE, philox, uniform_below

FLIPS = {"none": 0, "random": 1, "alternating": 2}
"""The kernels' codes for ``hflip``."""


class Choices(NamedTuple):
    """The random choices, (B,) int64 each; the box is [y0, y0 + cutout_px) x [x0, x0 + cutout_px) before clipping."""

    dy: Tensor
    dx: Tensor
    flip: Tensor
    y0: Tensor
    x0: Tensor


class Spec(NamedTuple):
    """The options of a call, checked and hashable: everything but the tensors, the dtype and the normalisation."""

    seed: int
    epoch: int
    pad_px: int = 0
    pad_mode: str = "zero"
    hflip: str = "none"
    hflip_p: float = 0.5
    cutout_px: int = 0
    cutout_inside: bool = False

    @property
    def flip_threshold(self) -> int:
        """0 .. 2^32; an image is mirrored if its 32-bit random word is below this."""
        return round(self.hflip_p * 2.0**32)

    def arguments(self, height_px: int, width_px: int) -> dict[str, Any]:
        """The fields of AugmentParams in csrc by name; ``box`` is box_range() of the height, then of the width."""
        return {
            "seed": self.seed,
            "epoch": self.epoch,
            "pad_px": self.pad_px,
            "reflect": int(self.pad_mode == "reflect"),
            "hflip": FLIPS[self.hflip],
            "flip_threshold": self.flip_threshold,
            "cutout_px": self.cutout_px,
            "box": [*self.box_range(height_px), *self.box_range(width_px)],
        }

    def box_range(self, size_px: int) -> tuple[int, int]:
        """(first, count): the range of the cutout box's start along an axis of size_px (as in hysts' Cutout)."""
        if self.cutout_inside:
            return 0, size_px - self.cutout_px + 1
        return -(self.cutout_px // 2), size_px + (1 if self.cutout_px % 2 == 0 else 0)


def choices(sample_ids: Tensor, height_px: int, width_px: int, spec: Spec) -> Choices:
    """Draw the choices of sample_ids (B,) int64; every tier draws the same integers."""
    keys = {"seed": spec.seed, "epoch": spec.epoch}
    zero = torch.zeros_like(sample_ids)
    dy = dx = flip = y0 = x0 = zero
    if spec.pad_px or spec.hflip == "random":
        r0, r1, r2, _ = philox(sample_ids, **keys, stream=STREAM_CROP_FLIP)
        dy, dx = uniform_below(r0, 2 * spec.pad_px + 1), uniform_below(r1, 2 * spec.pad_px + 1)
        flip = (r2 < spec.flip_threshold).long() if spec.hflip == "random" else zero
    if spec.hflip == "alternating":
        # The phase does not depend on the epoch, so that a sample is mirrored every second epoch (as in airbench).
        phase = philox(sample_ids, seed=spec.seed, epoch=0, stream=STREAM_FLIP_PHASE)[0]
        flip = (phase + spec.epoch) & 1
    if spec.cutout_px:
        r0, r1, _, _ = philox(sample_ids, **keys, stream=STREAM_CUTOUT)
        (first_y, num_y), (first_x, num_x) = spec.box_range(height_px), spec.box_range(width_px)
        y0, x0 = uniform_below(r0, num_y) + first_y, uniform_below(r1, num_x) + first_x
    return Choices(dy, dx, flip, y0, x0)


def empty_batch(store: Tensor, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised batch (B, C, H, W), channels_last, on the store's device."""
    _, height, width, channels = store.shape
    return torch.empty((ids.shape[0], height, width, channels), dtype=dtype, device=store.device).permute(0, 3, 1, 2)


def _reflect(index: Tensor, size_px: int) -> Tensor:
    return (size_px - 1) - ((size_px - 1) - index.abs()).abs()


def _box(drawn: Choices, y: Tensor, x: Tensor, size_px: int) -> Tensor:
    """(B, H, W, 1) bool: True inside the cutout box."""
    in_y = (y >= drawn.y0[:, None]) & (y < (drawn.y0 + size_px)[:, None])
    in_x = (x >= drawn.x0[:, None]) & (x < (drawn.x0 + size_px)[:, None])
    return (in_y[:, :, None] & in_x[:, None, :])[..., None]


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
    """store (N, H, W, C) uint8, ids, sample_ids (B,) int64, scale (C,), shift (C,) or (H, W, C) fp32 -> (B, C, H, W).

    With a mean image (shift (H, W, C)), shift is read at the source pixel and zero padding is 0 AFTER normalisation, as
    in the ImageNet-64 paper's script, which pads centred images. With a mean per channel, zero padding is the pixel
    value 0 BEFORE normalisation.
    """
    _, height, width, _ = store.shape
    drawn = choices(sample_ids, height, width, spec)
    y = torch.arange(height, device=store.device)
    x = torch.arange(width, device=store.device)
    x_flipped = torch.where(drawn.flip[:, None] > 0, width - 1 - x, x)
    iy = y + (drawn.dy - spec.pad_px)[:, None]
    ix = x_flipped + (drawn.dx - spec.pad_px)[:, None]
    outside = None
    if spec.pad_px and spec.pad_mode == "zero":
        bad_y, bad_x = (iy < 0) | (iy >= height), (ix < 0) | (ix >= width)
        outside = (bad_y[:, :, None] | bad_x[:, None, :])[..., None]
        iy, ix = iy.clamp(0, height - 1), ix.clamp(0, width - 1)
    elif spec.pad_px:
        iy, ix = _reflect(iy, height), _reflect(ix, width)
    rows, cols = iy[:, :, None], ix[:, None, :]
    pixels = store[ids[:, None, None], rows, cols]
    per_pixel = shift.dim() == 3
    if outside is not None and not per_pixel:
        pixels = pixels.masked_fill(outside, 0)
    values = pixels.float().mul_(scale).add_(shift[rows, cols] if per_pixel else shift)
    if outside is not None and per_pixel:
        values = values.masked_fill_(outside, 0.0)
    if spec.cutout_px:
        values = values.masked_fill_(_box(drawn, y, x, spec.cutout_px), 0.0)
    batch = values.to(dtype).permute(0, 3, 1, 2)
    return batch if out is None else out.copy_(batch)
