"""spectral through the CUDA library; fp64 goes to the reference."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from . import reference


def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral."""
    if torch.float64 in (images.dtype, dtype):
        return reference.spectral(images, r, bands, scale, shift, dtype)
    out = reference.empty_like_bands(images, len(bands), r, dtype)
    last = reference.is_channels_last(images)
    scale, shift = (None if values is None else values.contiguous() for values in (scale, shift))
    native.cuda().spectral(images, r, list(bands), scale, shift, last, out)
    return out
