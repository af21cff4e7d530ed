"""torch.ops.imnet.spectral: the opaque op behind the tiers that are not plain PyTorch. It has no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from . import reference


@torch.library.custom_op("imnet::spectral", mutates_args=())
def spectral_op(
    images: Tensor, r: int, bands: list[int], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral."""
    return tier.implementation("spectral", images.device.type).spectral(images, r, tuple(bands), scale, shift, dtype)


@spectral_op.register_fake
def _(images, r, bands, scale, shift, dtype):
    return reference.empty_like_bands(images, len(bands), r, dtype)
