"""From sample ids to a training batch on one device: what the resident and the host pipeline share."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from imnet_kernels import augment as augment_kernel
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data import transforms
from imnet.data.base import Split
from imnet.data.draws import Key


class Batches:
    """``batch(ids, epoch, train)`` -> images (B, C, H, W) channels_last in ``dtype``, on the device of ``images``."""

    def __init__(self, images: Tensor, augment: Augment, *, seed: int, dtype: torch.dtype, mean: Tensor | None):
        """``images`` uint8 (N, H, W, C); ``mean`` is the mean image (H, W, C) of x/255 where the recipe has one."""
        self.images, self.augment, self.seed, self.dtype = images, augment, seed, dtype
        self.device, channels = images.device, images.shape[3]
        self.mean: tuple[float, ...] | Tensor
        if mean is not None:
            self.mean = mean.to(self.device)
        else:
            self.mean = augment.mean_per_channel(channels)
        self.std = augment.std * channels if len(augment.std) == 1 else augment.std
        self.band_mean: Tensor | None = None
        if augment.spectral_r:
            band_mean, band_std = transforms.band_statistics(augment, channels)
            self.band_mean, self.band_std = band_mean.to(self.device), band_std.to(self.device)
        self.pad_flip = {
            "pad_px": augment.crop_pad_px,
            "pad_mode": augment.crop_pad_mode,
            "hflip": augment.hflip,
            "hflip_p": augment.hflip_p,
        }
        self.cutout = {"cutout_px": augment.cutout_px, "cutout_inside": augment.cutout_inside}

    def batch(self, ids: Tensor, epoch: int, train: bool, *, pinned: bool = False) -> Tensor:
        """Images of ``ids`` (B,) int64, on any device; without ``train`` resized, centre-cropped and normalised only.

        Ids on the CPU spare recipes that transform images a wait for the device: their choices are drawn on the host.
        ``pinned`` puts the result into page-locked memory (of a batch on the CPU).
        """
        rows = ids.to(self.device, non_blocking=True)
        pad_flip, cutout = (self.pad_flip, self.cutout) if train else ({}, {})
        if self.augment.transforms if train else self.augment.transforms_eval:
            images = self._transformed(rows, Key(ids.cpu(), self.seed, epoch), pad_flip, cutout, train)
            return images.pin_memory() if pinned else images
        out = self._page_locked(len(ids)) if pinned else None
        common = {"seed": self.seed, "epoch": epoch, "mean": self.mean, "std": self.std, "dtype": self.dtype}
        return augment_kernel(self.images, rows, out=out, **common, **pad_flip, **cutout)

    def _page_locked(self, num_images: int) -> Tensor:
        height, width, channels = self.images.shape[1:]
        shape = (num_images, height, width, channels)
        return torch.empty(shape, dtype=self.dtype, pin_memory=True).permute(0, 3, 1, 2)

    def _transformed(self, rows: Tensor, key: Key, pad_flip: dict, cutout: dict, train: bool) -> Tensor:
        images = transforms.gather(self.images, rows, key, pad_flip)
        images = transforms.transform(images, self.augment, key, train)
        if self.band_mean is not None:
            return transforms.band(images, self.augment, self.band_mean, self.band_std, self.dtype)
        assert isinstance(self.mean, tuple), "recipes that transform images have a mean per channel"
        options = {"mean": self.mean, "std": self.std, "cutout": cutout, "dtype": self.dtype}
        return transforms.normalise(images, rows, key, **options)


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor over the same memory; nobody writes to it, so a read-only map is no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def mean_image(split: Split, chunk_images: int = 4096) -> Tensor:
    """(H, W, C) fp32 mean of x/255 over a split, summed exactly in int64."""
    total = torch.zeros(split.images.shape[1:], dtype=torch.int64)
    for start in range(0, len(split), chunk_images):
        total += as_tensor(split.images[start : start + chunk_images]).sum(0, dtype=torch.int64)
    return (total.double() / (255 * len(split))).float()
