"""The definition of spectral subsampling: a polyphase split, then one unnormalised DCT-II over the s = r * r phases.

Phase p = row * r + col is x[row::r, col::r];  V[k] = 2 sum_p x[p] cos(pi k (2 p + 1) / (2 s)).  It is not a separable
2-D DCT. Band 0 is 2 s times the average pool.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import calls


@calls.constant
def matrix(r: int, bands: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(K, s): the rows 2 cos(pi k (2 p + 1) / (2 s)) of the bands, computed in fp64."""
    s = r * r
    rows = [[2.0 * math.cos(math.pi * (k * (2 * p + 1) % (4 * s)) / (2 * s)) for p in range(s)] for k in bands]
    return torch.tensor(rows, dtype=torch.float64).to(dtype).to(device)


def phases(images: Tensor, r: int) -> Tensor:
    """Split (B, C, H, W) into its phases (B, s, C, H / r, W / r); phase p = row * r + col."""
    batch, channels, height, width = images.shape
    split = images.reshape(batch, channels, height // r, r, width // r, r).permute(0, 3, 5, 1, 2, 4)
    return split.reshape(batch, r * r, channels, height // r, width // r)


def spectral(
    images: Tensor, r: int, bands: tuple[int, ...], scale: Tensor | None, shift: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """images (B, C, H, W) -> scale V + shift, (B, K, C, H / r, W / r); scale and shift (K, C) fp32 or None.

    Stored band by band: out[:, k] is dense, and channels_last if images are.
    """
    compute = torch.float64 if images.dtype == torch.float64 else torch.float32
    split = phases(images, r).to(compute)
    batch, s, channels, height, width = split.shape
    with calls.full_fp32(images):
        out = torch.matmul(matrix(r, bands, compute, images.device), split.reshape(batch, s, channels * height * width))
    out = out.view(batch, len(bands), channels, height, width)
    if scale is not None and shift is not None:
        out = out * scale.to(compute)[:, :, None, None] + shift.to(compute)[:, :, None, None]
    return empty_like_bands(images, len(bands), r, dtype).copy_(out)


def empty_like_bands(images: Tensor, num_bands: int, r: int, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, K, C, H / r, W / r), stored band by band so that out[:, k] is a dense batch."""
    batch, channels, height, width = images.shape
    height, width = height // r, width // r
    if is_channels_last(images):
        shape = (num_bands, batch, height, width, channels)
        return torch.empty(shape, dtype=dtype, device=images.device).permute(1, 0, 4, 2, 3)
    return torch.empty((num_bands, batch, channels, height, width), dtype=dtype, device=images.device).transpose(0, 1)


def is_channels_last(images: Tensor) -> bool:
    """True if the layout is channels_last and not also contiguous."""
    return images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()


def inverse(bands: Tensor, r: int) -> Tensor:
    """All s bands in order, not normalised, (B, s, C, h, w) -> images (B, C, h * r, w * r): the DCT-III over 2 s."""
    batch, s, channels, height, width = bands.shape
    if s != r * r:
        raise ValueError(f"{s} bands for r = {r}; allowed {r * r}; pass every band, in order")
    forward = matrix(r, tuple(range(s)), torch.float64, bands.device)
    weights = torch.full((s,), 1.0 / (2 * s), dtype=torch.float64, device=bands.device)
    weights[0] /= 2
    split = torch.matmul((forward * weights[:, None]).T, bands.double().reshape(batch, s, -1))
    split = split.reshape(batch, r, r, channels, height, width).permute(0, 3, 4, 1, 5, 2)
    return split.reshape(batch, channels, height * r, width * r).to(bands.dtype)
