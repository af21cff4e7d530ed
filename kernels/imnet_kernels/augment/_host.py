"""augment on the CPU through imnet_kernels._host."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import hostlib
from .reference import Spec, empty_batch

FLIPS = {"none": 0, "random": 1, "alternating": 2}


def box(spec: Spec, height: int, width: int) -> list[int]:
    """first and count of the cutout box's starts: y, then x."""
    return [*spec.box_range(height), *spec.box_range(width)]


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
    """See reference.augment; out (B, C, H, W) channels_last is written where given."""
    num_stored, height, width, channels = store.shape
    ids, sample_ids, shift = ids.contiguous(), sample_ids.contiguous(), shift.contiguous()
    out = empty_batch(store, ids, dtype) if out is None else out
    per_pixel = shift.dim() == 3
    crop = (spec.pad_px, spec.pad_mode == "reflect", FLIPS[spec.hflip], spec.flip_threshold, spec.cutout_px)
    hostlib.module().augment(
        store.data_ptr(),
        ids.data_ptr(),
        sample_ids.data_ptr(),
        out.data_ptr(),
        shift.data_ptr() if per_pixel else 0,
        num_stored,
        ids.numel(),
        height,
        width,
        channels,
        hostlib.CODES[dtype],
        scale.tolist(),
        [0.0] * channels if per_pixel else shift.tolist(),
        spec.seed,
        spec.epoch,
        *crop,
        box(spec, height, width),
        hostlib.threads(),
    )
    return out
