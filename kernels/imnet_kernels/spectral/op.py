"""torch.ops.imnet.spectral: the opaque op behind the tiers that are not plain PyTorch. It has no gradient."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from .. import tier
from . import reference


def implementation(device_type: str):
    """The tier's function with reference.spectral's signature."""
    name = tier.choose("spectral", device_type)
    return importlib.import_module(
        f"imnet_kernels.spectral.{'reference' if name == 'reference' else '_' + name}"
    ).spectral


@torch.library.custom_op("imnet::spectral", mutates_args=())
def spectral_op(
    images: Tensor, r: int, bands: list[int], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral."""
    return implementation(images.device.type)(images, r, tuple(bands), scale, shift, dtype)


@spectral_op.register_fake
def _(images, r, bands, scale, shift, dtype):
    return reference.empty_like_bands(images, len(bands), r, dtype)
