"""Spectral subsampling: images -> bands of a polyphase DCT, in one pass from uint8.

Why a family: Inductor writes the polyphase copy and the fp32 bands to memory before it casts (13 to 19 bytes per
element, eager 51, where 3 suffice) and does not use the DCT's even and odd symmetry. The method is Columbia
University's (CU24166, listed as patent pending).
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real

import torch
from torch import Tensor

from .. import calls, tier
from . import reference
from .reference import inverse

__all__ = ["inverse", "spectral"]

_IN_DTYPES = (torch.uint8, torch.float32, torch.bfloat16, torch.float16, torch.float64)
_OUT_DTYPES = _IN_DTYPES[1:]
PerBand = float | Sequence[float] | Tensor


def spectral(
    images: Tensor,
    r: int,
    bands: Sequence[int] | None = None,
    *,
    mean: PerBand | None = None,
    std: PerBand | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """images (B, C, H, W) uint8 or float -> (V - mean) / std of the bands V, (B, K, C, H / r, W / r).

    r = 2, 4 or 6. bands: which of the r * r, in the order wanted (default all). mean, std: in V's units (for band 0
    those of images times 2 r r), a number, (K,) per band or (K, C). dtype: the result's (default the images', fp32 for
    uint8). The result is stored band by band: out[:, k] is dense, and channels_last if images are. No gradient flows to
    images. Raises TypeError or ValueError before any memory is touched.
    """
    wanted, r = _check(images, r, bands), int(r)
    dtype = dtype or (torch.float32 if images.dtype == torch.uint8 else images.dtype)
    if dtype not in _OUT_DTYPES:
        raise TypeError(f"dtype = {dtype}; allowed {_OUT_DTYPES}; pass one of them")
    scale = shift = None
    with torch.no_grad():
        if mean is not None or std is not None:
            given = (m if m is None or isinstance(m, (int, float, Real, Tensor)) else tuple(m) for m in (mean, std))
            scale, shift = calls.once(_scale_shift, *given, len(wanted), images.shape[1], images.device)
        if type(images) is Tensor and calls.unobserved():
            return tier.implementation("spectral", images.device.type).spectral(images, r, wanted, scale, shift, dtype)
        if tier.choose("spectral", images.device.type) == "reference":
            return reference.spectral(images, r, wanted, scale, shift, dtype)
        return spectral_op(images.detach(), r, list(wanted), scale, shift, dtype)


def _check(images: Tensor, r: int, bands: Sequence[int] | None) -> tuple[int, ...]:
    if images.dtype not in _IN_DTYPES or images.dim() != 4:
        raise TypeError(
            f"images are {images.dtype} {tuple(images.shape)}; allowed (B, C, H, W) of {_IN_DTYPES}; convert"
        )
    if r not in (2, 4, 6):
        raise ValueError(f"r = {r}; allowed 2, 4, 6; pass one of them")
    if images.shape[2] % r or images.shape[3] % r:
        raise ValueError(f"images are {tuple(images.shape[2:])} px; allowed multiples of r = {r}; crop or resize them")
    there = range(int(r) ** 2)
    wanted = tuple(there if bands is None else bands)
    if not wanted or any(k not in there for k in wanted):
        raise ValueError(f"bands = {wanted}; allowed one or more of 0 .. {there[-1]}; pass those")
    return tuple(int(k) for k in wanted)


def _scale_shift(
    mean: PerBand | None, std: PerBand | None, num_bands: int, num_channels: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """(K, C) fp32 scale = 1 / std and shift = -mean / std, expanded: stride 0 along axes on which they do not vary."""
    shape = (num_bands, num_channels)
    m = _per_band("mean", 0.0 if mean is None else mean, shape, device)
    s = _per_band("std", 1.0 if std is None else std, shape, device)
    return s.reciprocal().expand(shape), (-m / s).expand(shape)


def _per_band(name: str, value: PerBand, shape: tuple[int, int], device: torch.device) -> Tensor:
    given = torch.as_tensor(value, dtype=torch.float32)
    # The values of a tensor on a GPU are not checked, since the host would have to wait for it.
    if given.device.type == "cpu" and calls.unobserved():
        usable = given.isfinite() & ((given > 0) | (name == "mean"))
        if not usable.all():
            raise ValueError(f"{name} = {value}; allowed finite numbers{', above 0' * (name == 'std')}; correct it")
    given = given.to(device)
    if given.dim() == 1:
        given = given[:, None]
    if given.dim() > 2 or (given.dim() == 2 and (given.shape[0] != shape[0] or given.shape[1] not in (1, shape[1]))):
        raise ValueError(
            f"{name} is {tuple(given.shape)}; allowed a number, ({shape[0]},) or {shape}; pass one of them"
        )
    return given


@torch.library.custom_op("imnet::spectral", mutates_args=())
def spectral_op(
    images: Tensor, r: int, bands: list[int], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """See reference.spectral."""
    return tier.implementation("spectral", images.device.type).spectral(images, r, tuple(bands), scale, shift, dtype)


@spectral_op.register_fake
def _(images, r, bands, scale, shift, dtype):
    return reference.empty_like_bands(images, len(bands), r, dtype)
