"""Colour operations on batches of images, a strength for each image. Defined as torchvision defines them for uint8.

Images are (B, C, H, W) fp32 that hold whole levels 0..255, and so are the results: each operation ends as torchvision's
does, by truncation or rounding. Nothing depends on the batch: sums over an image are sums of integers, hence exact.
"""

from __future__ import annotations

from itertools import permutations

import torch
from torch import Tensor

from imnet.data.draws import STREAM_JITTER, STREAM_JITTER_ORDER, Key, groups, unit

_ORDERS = torch.tensor(list(permutations(range(4))))
BRIGHTNESS, CONTRAST, SATURATION, _HUE = range(4)


def color_jitter(images: Tensor, strengths: tuple[float, ...], key: Key) -> Tensor:
    """Brightness, contrast, saturation and hue by up to ``strengths``, in an order drawn for each image.

    images (B, 3, H, W) fp32 levels; returned anew. Factors are uniform in [max(0, 1 - s), 1 + s], the hue in [-s, s].
    """
    factors, order = draw_jitter(strengths, key)
    hue_slot = (order == _HUE).long().argmax(1)
    out = torch.empty_like(images)
    for slot, (host, rows) in enumerate(groups(hue_slot, 4, images.device)):
        if not len(host):
            continue
        part, mine = images[rows], factors[host]
        for place in range(4):
            if place == slot:
                part = adjust_hue(part, _column(mine[:, _HUE], images)) if strengths[_HUE] else part
                continue
            kind = order[host, place]
            factor = mine.gather(1, kind[:, None])[:, 0]
            part = blend(part, _column(kind, images), _column(factor, images))
        out[rows] = part
    return out


def draw_jitter(strengths: tuple[float, ...], key: Key) -> tuple[Tensor, Tensor]:
    """Factors (B, 4) fp32 of brightness, contrast, saturation, hue, and the order (B, 4) int64 they come in."""
    low = torch.tensor([max(0.0, 1 - s) for s in strengths[:3]] + [-strengths[3]], dtype=torch.float64)
    high = torch.tensor([1 + s for s in strengths[:3]] + [strengths[3]], dtype=torch.float64)
    drawn = torch.stack([unit(word) for word in key.words(STREAM_JITTER)], dim=1)
    (which,) = key.below(STREAM_JITTER_ORDER, len(_ORDERS))
    return (low + (high - low) * drawn).float(), _ORDERS[which]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """(B,) on the host -> (B, 1, 1, 1) on the images' device."""
    return values.to(like.device, non_blocking=True)[:, None, None, None]


def grey(images: Tensor) -> Tensor:
    """Luma in whole levels, (B, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """images * factor + base * (1 - factor), truncated to levels; ``kind`` and ``factor`` (B, 1, 1, 1).

    The base is black for BRIGHTNESS, the mean grey of the image for CONTRAST, its grey for SATURATION.
    """
    luma = grey(images)
    num_pixels = luma.shape[2] * luma.shape[3]
    mean = (luma.sum((1, 2, 3), keepdim=True, dtype=torch.float64) / num_pixels).float()
    base = torch.where(kind == SATURATION, luma, mean * (kind == CONTRAST))
    return (images * factor + base * (1 - factor)).clamp_(0, 255).floor_()


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """The hue turned by ``turn`` (B, 1, 1, 1), 1 being once round; truncated after a stretch by 255.999, as theirs."""
    scaled = images / 255
    red, green, blue = scaled.unbind(1)
    value, low = scaled.amax(1), scaled.amin(1)
    spread = value - low
    safe = torch.where(spread > 0, spread, 1.0)
    sector = torch.where(
        value == red,
        (green - blue) / safe,
        torch.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    hue = torch.where(spread > 0, sector / 6, 0.0).add_(turn[:, 0]).remainder_(1.0)
    channels = [value - spread * _ramp(n + 6 * hue) for n in (5, 3, 1)]
    return torch.stack(channels, 1).mul_(255.999).floor_().clamp_(0, 255)


def _ramp(position: Tensor) -> Tensor:
    """How far a channel lies below the value, in units of the spread; period 6."""
    position = position.remainder_(6.0)
    return torch.minimum(position, 4 - position).clamp_(0, 1)
