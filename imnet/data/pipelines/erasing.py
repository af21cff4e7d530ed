"""Random erasing (Zhong 2017, arXiv 1708.04896) of batches on any device, as torchvision's RandomErasing defines it."""

from __future__ import annotations

import math

import torch
from imnet_kernels.philox import uniform_below
from torch import Tensor

from imnet.data.pipelines.draws import STREAM_ERASING, Key, unit

SCALE, RATIO = (0.02, 0.33), (0.3, 3.3)
"""Ranges of the box's share of the image area and of its height divided by its width."""
_ATTEMPTS = 10


def draw_boxes(height_px: int, width_px: int, p: float, key: Key) -> Tensor:
    """Boxes (B, 4) int64: top, left, height, width; of size 0 for images that are not erased.

    A box is drawn up to ten times until it is smaller than the image in both directions; else the image is not erased.
    """
    low, high = (math.log(r) for r in RATIO)
    box = torch.zeros(len(key.ids), 4, dtype=torch.int64)
    waiting = unit(key.words(STREAM_ERASING)[0]) < p
    for attempt in range(_ATTEMPTS):
        words = key.words(STREAM_ERASING + 1 + attempt)
        area = height_px * width_px * (SCALE[0] + (SCALE[1] - SCALE[0]) * unit(words[0]))
        ratio = torch.exp(low + (high - low) * unit(words[1]))
        height, width = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        top = uniform_below(words[2], (height_px - height + 1).clamp(min=1))
        left = uniform_below(words[3], (width_px - width + 1).clamp(min=1))
        fits = waiting & (height < height_px) & (width < width_px)
        box = torch.where(fits[:, None], torch.stack([top, left, height, width], 1), box)
        waiting = waiting & ~fits
        if not waiting.any():
            break  # nearly always after the first attempt
    return box


def erase(images: Tensor, boxes: Tensor) -> Tensor:
    """The normalised images (B, C, H, W) with 0 (the mean) in the box of each; ``boxes`` (B, 4) are on the host."""
    host = boxes[:, 2].nonzero()[:, 0]
    rows, sides = (t.to(images.device, non_blocking=True) for t in (host, boxes[host]))
    top, left, height, width = sides[:, :, None].unbind(1)
    y, x = (torch.arange(n, device=images.device) for n in images.shape[2:])
    down, across = (y >= top) & (y < top + height), (x >= left) & (x < left + width)
    out = images.clone(memory_format=torch.preserve_format)
    out[rows] = images[rows].masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0.0)
    return out
