"""Augmentations beyond pad-crop, flip, normalisation and cutout, for whole batches on the device.

Between the stages images are (B, C, H, W) fp32 channels_last with integer levels 0..255, like uint8 images, so that
every stage can be tested against torchvision's function for uint8, image by image.
"""

from __future__ import annotations

import math

import torch
from imnet_kernels import calls, spectral, tier
from imnet_kernels.philox import uniform_below
from torch import Tensor
from torch.nn import functional as F

from imnet.augmentation import Augment
from imnet.data.pipelines.draws import STREAM_CROP, STREAM_RESIZED_CROP, Key, unit
from imnet.data.pipelines.recolor import color_jitter, operate, rounds


def transform(images: Tensor, augment: Augment, key: Key, train: bool, sized: bool = False) -> Tensor:
    """Everything between the flip and the normalisation: levels (B, C, H, W) -> levels (B, C, h, w).

    If ``sized``, the images already have the network's input size (see ``crop_scale``).
    """
    side = augment.resize_px if train else augment.test_px
    if side and not sized:
        images = resize(images, side)
    if augment.crop_px and not sized:
        images = random_crop(images, augment.crop_px, key) if train else center_crop(images, augment.crop_px)
    for code, strength in rounds(augment, images.shape[2:], key) if train else ():
        images = operate(images, code, strength)
    if train and any(augment.color_jitter):
        images = color_jitter(images, augment.color_jitter, key)
    return images


def resize(images: Tensor, side_px: int) -> Tensor:
    """Resize both sides to ``side_px``, bilinear with antialiasing, rounded to levels.

    Computed in fp32 on every device; torchvision's own uint8 path on CPUs differs by at most one level.
    """
    if tuple(images.shape[2:]) == (side_px, side_px):
        return images
    size = (side_px, side_px)
    return F.interpolate(images, size, mode="bilinear", align_corners=False, antialias=True).round_().clamp_(0, 255)


def draw_crop(height_px: int, width_px: int, crop_px: int, key: Key) -> tuple[Tensor, Tensor]:
    """Top and left (B,) int64 of a random crop of each image, uniform over all crops inside it."""
    top, left = key.below(STREAM_CROP, height_px - crop_px + 1, width_px - crop_px + 1)
    return top, left


def random_crop(images: Tensor, crop_px: int, key: Key) -> Tensor:
    """A crop_px x crop_px crop of each image, at a position drawn for each."""
    top, left = draw_crop(images.shape[2], images.shape[3], crop_px, key)
    inside = torch.arange(crop_px, device=images.device)
    rows = top.to(images.device, non_blocking=True)[:, None] + inside
    columns = left.to(images.device, non_blocking=True)[:, None] + inside
    which = torch.arange(images.shape[0], device=images.device)[:, None, None]
    return images.permute(0, 2, 3, 1)[which, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def center_crop(images: Tensor, crop_px: int) -> Tensor:
    """The central crop_px x crop_px; an odd margin is halved and rounded to even, as torchvision does."""
    top, left = (round((size - crop_px) / 2) for size in images.shape[2:])
    return images[:, :, top : top + crop_px, left : left + crop_px]


_ATTEMPTS = 10
_ASPECT = (3 / 4, 4 / 3)


def draw_resized_crop(height_px: Tensor, width_px: Tensor, scale: tuple[float, ...], key: Key) -> Tensor:
    """A random crop of each image, (B, 4) int64: top, left, height, width. The images' sizes are (B,) int64.

    As torchvision's RandomResizedCrop: area and aspect ratio are drawn up to ten times until the crop fits; otherwise
    it is the largest central crop of an allowed ratio.
    """
    area, low, high = (height_px * width_px).double(), math.log(_ASPECT[0]), math.log(_ASPECT[1])
    ratio = (width_px / height_px).double().clamp(*_ASPECT)
    width = torch.minimum(width_px.double(), (height_px * ratio).round())
    height = torch.minimum(height_px.double(), (width_px / ratio).round())
    middle = torch.stack([(height_px - height) // 2, (width_px - width) // 2, height, width], 1).long()
    # All attempts at once, (10, B): encoded pictures draw their crops one by one, and with an operation per attempt
    # that took longer than decoding.
    words = key.words(range(STREAM_RESIZED_CROP, STREAM_RESIZED_CROP + _ATTEMPTS))
    target = area * (scale[0] + (scale[1] - scale[0]) * unit(words[0]))
    aspect = torch.exp(low + (high - low) * unit(words[1]))
    width, height = (target * aspect).sqrt().round().long(), (target / aspect).sqrt().round().long()
    fits = (width > 0) & (width <= width_px) & (height > 0) & (height <= height_px)
    top = uniform_below(words[2], (height_px - height + 1).clamp(min=1))
    left = uniform_below(words[3], (width_px - width + 1).clamp(min=1))
    first = fits.int().argmax(0)
    box = torch.stack([top, left, height, width], 2)[first, torch.arange(len(first))]
    return torch.where(fits.any(0)[:, None], box, middle)


def resized_crop(images: Tensor, box: Tensor, side_px: int) -> Tensor:
    """Crop each image to its box (top, left, height, width; (B, 4) on the host) and resize it, bilinear with
    antialiasing: uint8 (B, H, W, C) -> uint8 (B, side, side, C).

    Computed as two matrix products per batch, since the boxes differ in size.
    """
    at = box.to(images.device, non_blocking=True)
    down = _bilinear(at[:, 0], at[:, 2], images.shape[1], side_px)
    across = _bilinear(at[:, 1], at[:, 3], images.shape[2], side_px)
    count, height, width, channels = images.shape
    with calls.full_fp32(images):
        x = torch.bmm(down, images.float().view(count, height, width * channels)).view(count, side_px, width, channels)
        x = torch.einsum("bow,bhwc->bhoc", across, x)
    return x.round_().clamp_(0, 255).to(torch.uint8).contiguous()


def _bilinear(start: Tensor, length: Tensor, size_px: int, side_px: int) -> Tensor:
    """Weights (B, side, size) fp32 of the source pixels: Pillow's triangle filter within [start, start + length)."""
    scale = (length.double() / side_px)[:, None, None]
    reach = scale.clamp(min=1.0)
    center = (torch.arange(side_px, device=start.device, dtype=torch.float64)[None, :, None] + 0.5) * scale
    inside = torch.arange(size_px, device=start.device)[None, None, :] - start[:, None, None]
    weights = (1 - ((inside + 0.5 - center) / reach).abs()).clamp(min=0)
    weights = weights * ((inside >= 0) & (inside < length[:, None, None]))
    return (weights / weights.sum(2, keepdim=True)).float()


def band_statistics(augment: Augment, channels: int, bands: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """Means (K, C) and standard deviations (K, 1) of ``bands`` (default: the recipe's one), for the coefficients of
    pixels in 0..255.

    Every phase has the mean of the pixels, so band 0 has the mean times 2 r r, and every other band has mean 0.
    """
    assert augment.spectral_r is not None
    wanted = bands or (augment.spectral_band,)
    gains = [[0.0 if band else 255.0 * 2 * augment.spectral_r**2] for band in wanted]
    stds = [[255 * augment.spectral_std[band % len(augment.spectral_std)]] for band in wanted]
    return torch.tensor([augment.mean_per_channel(channels)]) * torch.tensor(gains), torch.tensor(stds)


def band(
    images: Tensor, augment: Augment, mean: Tensor, std: Tensor, dtype: torch.dtype, bands: tuple[int, ...] = ()
) -> Tensor:
    """The recipe's normalised band of images of integer levels, (B, C, H / r, W / r) channels_last. With ``bands``,
    those bands, (B, K, C, H / r, W / r), stored band by band, each with the same values as if it were made alone."""
    assert augment.spectral_r is not None
    levels = images.to(torch.uint8, memory_format=torch.channels_last)
    wanted = bands or (augment.spectral_band,)
    if len(wanted) > 1 and levels.device.type == "cpu" and tier.choose("spectral", "cpu") == "reference":
        # The rounding of the reference's matrix product depends on the number of bands.
        each = [band(images, augment, mean[i : i + 1], std[i : i + 1], dtype, (k,)) for i, k in enumerate(wanted)]
        return torch.cat([one.permute(1, 0, 3, 4, 2) for one in each]).permute(1, 0, 4, 2, 3)
    made = spectral(levels, augment.spectral_r, wanted, mean=mean, std=std, dtype=dtype)
    return made if bands else made[:, 0].contiguous(memory_format=torch.channels_last)
