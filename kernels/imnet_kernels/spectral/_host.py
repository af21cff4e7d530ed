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
            images=images.data_ptr(),
            out=out.data_ptr(),
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            r=r,
            in_dtype=hostlib.CODES[images.dtype],
            out_dtype=hostlib.CODES[dtype],
            channels_last=reference.is_channels_last(images),
            bands=list(bands),
            scale=[] if scale is None else scale.flatten().tolist(),
            shift=[] if shift is None else shift.flatten().tolist(),
            num_threads=hostlib.threads(),
        )
    return out
