"""spectral on the CPU through imnet_kernels._host."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import hostlib
from . import reference


def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral; fp64 goes there."""
    if images.dtype not in hostlib.CODES or dtype not in hostlib.CODES:
        return reference.spectral(images, r, bands, scale, shift, dtype)
    images = images.contiguous(memory_format=hostlib.memory_format(images))
    out = reference.empty_like_bands(images, len(bands), r, dtype)
    batch, channels, height, width = images.shape
    if out.numel():
        hostlib.module().spectral(
            images.data_ptr(),
            out.data_ptr(),
            batch,
            channels,
            height,
            width,
            r,
            hostlib.CODES[images.dtype],
            hostlib.CODES[dtype],
            reference.is_channels_last(images),
            list(bands),
            [] if scale is None else scale.flatten().tolist(),
            [] if shift is None else shift.flatten().tolist(),
            hostlib.threads(),
        )
    return out
