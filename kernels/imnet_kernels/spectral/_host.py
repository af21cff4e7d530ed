"""spectral on the CPU through imnet_kernels._host."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from . import reference


def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral, which computes fp64."""
    if images.dtype not in native.CODES or dtype not in native.CODES:
        return reference.spectral(images, r, bands, scale, shift, dtype)
    images = images.contiguous(memory_format=native.memory_format(images))
    out = reference.empty_like_bands(images, len(bands), r, dtype)
    batch, channels, height, width = images.shape
    if out.numel():
        native.host().spectral(
            images=images.data_ptr(),
            out=out.data_ptr(),
            batch=batch,
            channels=channels,
            height=height,
            width=width,
            r=r,
            in_dtype=native.CODES[images.dtype],
            out_dtype=native.CODES[dtype],
            channels_last=reference.is_channels_last(images),
            bands=list(bands),
            scale=[] if scale is None else scale.flatten().tolist(),
            shift=[] if shift is None else shift.flatten().tolist(),
            num_threads=torch.get_num_threads(),
        )
    return out
