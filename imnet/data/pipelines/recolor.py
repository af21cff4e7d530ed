"""Colour jitter, TrivialAugmentWide and RandAugment for batches, with a strength per image, as in torchvision.

Images are (B, C, H, W) fp32 with integer levels 0..255, before and after: each operation truncates or rounds at the end
as torchvision's does on uint8. An image's result does not depend on its batch: sums over an image are sums of integers,
hence exact. TrivialAugmentWide (Mueller and Hutter 2021, arXiv 2103.10158) and RandAugment (Cubuk 2019, arXiv
1909.13719) have torchvision's operations, strengths and order of names: bilinear, filled with black. Each operation
runs once, on all images that drew it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import permutations

import torch
from torch import Tensor
from torch.nn import functional as F

from imnet.augmentation import Augment
from imnet.data.pipelines.draws import (
    STREAM_JITTER,
    STREAM_JITTER_ORDER,
    STREAM_RAND,
    STREAM_TRIVIAL,
    Key,
    groups,
    unit,
)

_ORDERS = torch.tensor(list(permutations(range(4))))
BRIGHTNESS, CONTRAST, SATURATION, _HUE = range(4)


def color_jitter(images: Tensor, strengths: tuple[float, ...], key: Key) -> Tensor:
    """Change brightness, contrast, saturation and hue by up to ``strengths``, in an order drawn for each image.

    ``images`` are (B, 3, H, W) fp32 levels; the result is a new tensor. Factors are uniform in [max(0, 1 - s), 1 + s],
    the hue's turn in [-s, s].
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
    """Factors (B, 4) fp32 of brightness, contrast, saturation and hue, and the order (B, 4) int64 to apply them in."""
    low = torch.tensor([max(0.0, 1 - s) for s in strengths[:3]] + [-strengths[3]], dtype=torch.float64)
    high = torch.tensor([1 + s for s in strengths[:3]] + [strengths[3]], dtype=torch.float64)
    drawn = torch.stack([unit(word) for word in key.words(STREAM_JITTER)], dim=1)
    (which,) = key.below(STREAM_JITTER_ORDER, len(_ORDERS))
    return (low + (high - low) * drawn).float(), _ORDERS[which]


def _column(values: Tensor, like: Tensor) -> Tensor:
    """Values (B,) on the host -> (B, 1, 1, 1) on the images' device."""
    return values.to(like.device, non_blocking=True)[:, None, None, None]


def grey(images: Tensor) -> Tensor:
    """Luma as integer levels, (B, 1, H, W)."""
    red, green, blue = images.unbind(1)
    return (red * 0.2989).add_(green, alpha=0.587).add_(blue, alpha=0.114).floor_()[:, None]


def blend(images: Tensor, kind: Tensor, factor: Tensor) -> Tensor:
    """images * factor + base * (1 - factor), truncated to levels; ``kind`` and ``factor`` (B, 1, 1, 1).

    The base is black for BRIGHTNESS, the image's mean grey for CONTRAST, and its grey for SATURATION. Rounding follows
    torchvision: ``factor`` is fp64, like the Python float there, and product and sum are one operation. Any other way
    would show in grey pixels, whose sum is exactly a level: about half of them would be truncated to the level below.
    """
    luma = grey(images)
    num_pixels = luma.shape[2] * luma.shape[3]
    mean = (luma.sum((1, 2, 3), keepdim=True, dtype=torch.float64) / num_pixels).float()
    base = torch.where(kind == SATURATION, luma, mean * (kind == CONTRAST))
    return torch.addcmul(images * factor.float(), base, (1 - factor).float()).clamp_(0, 255).floor_()


def adjust_hue(images: Tensor, turn: Tensor) -> Tensor:
    """Shift the hue by ``turn`` (B, 1, 1, 1), where 1 is a full circle. The result is multiplied by 255.999 and
    truncated, as in torchvision."""
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
    """The distance of a channel below the HSV value, in units of the spread; has period 6."""
    position = position.remainder_(6.0)
    return torch.minimum(position, 4 - position).clamp_(0, 1)


NUM_BINS = 31
OPERATIONS = (
    "Identity", "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast",
    "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize",
)  # fmt: skip
_CODE = {name: i for i, name in enumerate(OPERATIONS)}
_SPANS = {"ShearX": 0.99, "ShearY": 0.99, "TranslateX": 32.0, "TranslateY": 32.0, "Rotate": 135.0} | dict.fromkeys(
    ("Brightness", "Color", "Contrast", "Sharpness"), 0.99
)
# Operations that run together: all warps as one affine sampling, all blends as one blend.
_WARPS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")
_BLENDS = {"Brightness": BRIGHTNESS, "Contrast": CONTRAST, "Color": SATURATION}
_FAMILY = dict.fromkeys(_WARPS, 1) | dict.fromkeys(_BLENDS, 2)
_FAMILY |= {"Sharpness": 3, "Posterize": 4, "Solarize": 5, "AutoContrast": 6, "Equalize": 7}


def _strengths(spans: Mapping[str, float], posterize_bits: int) -> Tensor:
    """The unsigned strength of each bin of each operation, (14, 31) fp64; the last bin is the whole span."""
    table = torch.zeros(len(OPERATIONS), NUM_BINS, dtype=torch.float64)
    for name, span in spans.items():
        table[_CODE[name]] = torch.linspace(0.0, span, NUM_BINS).double()
    table[_CODE["Posterize"]] = (8 - torch.arange(NUM_BINS) / ((NUM_BINS - 1) / posterize_bits)).round().double()
    table[_CODE["Solarize"]] = torch.linspace(1.0, 0.0, NUM_BINS).double()
    return table


_STRENGTHS = _strengths(_SPANS, 6)
_SIGNED = torch.tensor([name in _SPANS for name in OPERATIONS])
_FAMILIES = torch.tensor([_FAMILY.get(name, 0) for name in OPERATIONS])
_BLEND_KIND = torch.tensor([_BLENDS.get(name, 0) for name in OPERATIONS])


def draw_trivial(key: Key) -> tuple[Tensor, Tensor]:
    """TrivialAugmentWide's draw: the operation (B,) int64, an index into OPERATIONS, and its signed strength (B,)
    fp64."""
    code, level, negative = key.below(STREAM_TRIVIAL, len(OPERATIONS), NUM_BINS, 2)
    sign = torch.where(_SIGNED[code] & (negative == 1), -1.0, 1.0)
    return code, _STRENGTHS[code, level] * sign


def draw_rand(augment: Augment, size: Sequence[int], key: Key, number: int) -> tuple[Tensor, Tensor]:
    """RandAugment's draw of operation ``number`` for images of ``size`` (H, W); returns the same as draw_trivial."""
    spans = {"ShearX": 0.3, "ShearY": 0.3, "TranslateX": 150 / 331 * size[1], "TranslateY": 150 / 331 * size[0]}
    spans |= {"Rotate": 30.0} | dict.fromkeys(("Brightness", "Color", "Contrast", "Sharpness"), 0.9)
    table = _strengths(spans, 4)[:, augment.rand_augment_magnitude]
    code, negative = key.below(STREAM_RAND + number, len(OPERATIONS), 2)
    return code, table[code] * torch.where(_SIGNED[code] & (negative == 1), -1.0, 1.0)


def rounds(augment: Augment, size: Sequence[int], key: Key) -> list[tuple[Tensor, Tensor]]:
    """The operations that a recipe applies to training images of ``size`` (H, W), one per image and round: a list of
    (operation (B,) int64, signed strength (B,) fp64). Every pipeline applies this list."""
    if augment.trivial_augment:
        return [draw_trivial(key)]
    return [draw_rand(augment, size, key, number) for number in range(augment.rand_augment_ops)]


def operate(images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    """Apply to each of ``images`` (B, 3, H, W) its operation ``code`` (B,) with its ``strength`` (B,)."""
    out = images.clone(memory_format=torch.preserve_format)
    for family, (host, rows) in enumerate(groups(_FAMILIES[code], 8, images.device)):
        if family and len(host):
            out[rows] = _apply(family, images[rows], code[host], strength[host])
    return out


def _apply(family: int, images: Tensor, code: Tensor, strength: Tensor) -> Tensor:
    if family == 1:
        return warp(images, inverse_matrices(code, strength, images.shape[2], images.shape[3]))
    amount = strength.to(images.device, non_blocking=True)[:, None, None, None]
    if family == 2:
        kind = _BLEND_KIND[code].to(images.device, non_blocking=True)[:, None, None, None]
        return blend(images, kind, 1 + amount)
    if family == 3:
        return sharpness(images, 1 + amount)
    if family == 4:
        step = (2 ** (8 - amount)).float()
        return (images / step).floor_() * step
    if family == 5:
        return torch.where(images >= (255 * amount).float(), 255 - images, images)
    return autocontrast(images) if family == 6 else equalize(images)


def inverse_matrices(code: Tensor, strength: Tensor, height_px: int, width_px: int) -> Tensor:
    """Matrices (B, 2, 3) fp32 from output pixels (x, y, 1), relative to the image's centre, to source positions.

    Shears keep the corner (0, 0) in place, rotations the centre; translations are by whole pixels.
    """
    one, zero = torch.ones_like(strength), torch.zeros_like(strength)
    by = {name: torch.where(code == _CODE[name], strength, 0.0) for name in _WARPS}
    angle = torch.deg2rad(by["Rotate"])
    turned = code == _CODE["Rotate"]
    cos, sin = torch.where(turned, angle.cos(), one), torch.where(turned, angle.sin(), zero)
    rows = [
        [cos, by["ShearX"] - sin, by["ShearX"] * (height_px / 2) - by["TranslateX"].trunc()],
        [by["ShearY"] + sin, cos, by["ShearY"] * (width_px / 2) - by["TranslateY"].trunc()],
    ]
    return torch.stack([torch.stack(row, 1) for row in rows], 1).float()


def warp(images: Tensor, inverse: Tensor) -> Tensor:
    """Sample ``images`` bilinearly at the positions given by ``inverse`` (B, 2, 3) on the host; black outside, rounded
    to levels."""
    height, width = images.shape[2:]
    matrix = (inverse / torch.tensor([[0.5 * width], [0.5 * height]])).to(images.device, non_blocking=True)
    x = torch.arange(width, device=images.device, dtype=torch.float32) - (width - 1) / 2
    y = (torch.arange(height, device=images.device, dtype=torch.float32) - (height - 1) / 2)[:, None]
    across, down = (row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in matrix[..., None, None].unbind(1))
    grid = torch.stack([across, down], 3)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False).round_()


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blend with a 3 x 3 smoothing (weights 5/13 in the middle, 1/13 around); border pixels are not changed."""
    core = images[:, :, 1:-1, 1:-1]
    rows = images[:, :, :-2] + images[:, :, 1:-1] + images[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = ((around + 4 * core) / 13).round_()
    out = images.clone(memory_format=torch.preserve_format)
    out[:, :, 1:-1, 1:-1] = (core + (1 - factor).float() * (smooth - core)).clamp_(0, 255).floor_()
    return out


def autocontrast(images: Tensor) -> Tensor:
    """Stretch each channel to 0..255, truncated to levels; a constant channel is not changed."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    flat = low == high
    low = torch.where(flat, 0.0, low)
    scale = torch.where(flat, 1.0, (high - low) * (1.0 / 255))
    return ((images - low) / scale).clamp_(0, 255).floor_()


def equalize(images: Tensor) -> Tensor:
    """Equalise the histogram of each channel by Pillow's integer rule; a channel with fewer than 255 pixels below its
    brightest level is not changed."""
    levels = images.flatten(2).long()
    counts = torch.zeros(*levels.shape[:2], 256, dtype=torch.int64, device=images.device)
    counts.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = counts.gather(2, levels.amax(2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    below = counts.cumsum(2) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp_(0, 255)
    even = table.gather(2, levels).view(images.shape).to(images.dtype)
    return torch.where(step[..., None] > 0, even, images)
