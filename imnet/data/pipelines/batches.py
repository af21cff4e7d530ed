"""From sample ids to a training batch on one device: what the resident and the host pipeline share."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from imnet_kernels import augment as augment_kernel
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.encoded import Decoder
from imnet.errors import UsageError


class Batches:
    """``batch(ids, epoch, train)`` -> images (B, C, H, W) channels_last in ``dtype``, on the device of the images."""

    def __init__(
        self,
        images: Tensor | Decoder,
        augment: Augment,
        *,
        seed: int,
        dtype: torch.dtype,
        mean: Tensor | None,
        bands: tuple[int, ...] = (),
    ):
        """``images`` uint8 (N, H, W, C), or what decodes them, on the CPU; ``mean`` is the mean image (H, W, C) of
        x/255 where the recipe has one; ``bands`` see ``Setting``."""
        self.images, self.augment, self.seed, self.dtype = images, augment, seed, dtype
        self.device = images.device if isinstance(images, Tensor) else torch.device("cpu")
        channels = images.shape[3] if isinstance(images, Tensor) else 3
        self.mean = augment.mean_per_channel(channels) if mean is None else mean.to(self.device)
        self.std = augment.std * channels if len(augment.std) == 1 else augment.std
        self.channels = channels
        self._choose(bands)
        self.pad_flip = {
            "pad_px": augment.crop_pad_px,
            "pad_mode": augment.crop_pad_mode,
            "hflip": augment.hflip,
            "hflip_p": augment.hflip_p,
        }
        self.cutout = {"cutout_px": augment.cutout_px, "cutout_inside": augment.cutout_inside}

    def of_bands(self, bands: tuple[int, ...]) -> Batches:
        """The same images as other spectral bands."""
        other = copy.copy(self)
        other._choose(bands)
        return other

    def _choose(self, bands: tuple[int, ...]) -> None:
        self.bands, self.band_mean = bands, None
        if self.augment.spectral_r:
            mean, std = transforms.band_statistics(self.augment, self.channels, bands)
            self.band_mean, self.band_std = mean.to(self.device), std.to(self.device)

    def batch(self, ids: Tensor, epoch: int, train: bool, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """Images of ``ids`` (B,) int64, on any device; without ``train`` resized, centre-cropped and normalised only.

        Also returned: the ids on the images' device; where a picture was bad and skipped, the one in its place.
        Ids on the CPU spare recipes that transform images a wait for the device: their choices are drawn on the host.
        ``pinned`` puts the result into page-locked memory (of a batch on the CPU).
        """
        store, rows, names, sized = self._fetched(ids, epoch, train)
        pad_flip, cutout = (self.pad_flip, self.cutout) if train else ({}, {})
        if self._is_transformed(train, sized):
            key = Key(names if isinstance(self.images, Decoder) else ids.cpu(), self.seed, epoch)
            images = transforms.gather(store, rows, names, key, pad_flip)
            images = self._finished(transforms.transform(images, self.augment, key, train, sized), names, key, cutout)
            return images.pin_memory() if pinned else images, names
        out = _page_locked(len(ids), store.shape[1:], self.dtype) if pinned else None
        common = {"seed": self.seed, "epoch": epoch, "mean": self.mean, "std": self.std, "dtype": self.dtype}
        return augment_kernel(store, rows, out=out, sample_ids=names, **common, **pad_flip, **cutout), names

    def _fetched(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor, Tensor, bool]:
        """Where the images lie, in which rows, their ids, and whether they have the network's side already."""
        images, scale = self.images, self.augment.crop_scale
        if isinstance(images, Decoder):
            pixels, taken = images.images(ids.cpu(), epoch, train)
            return torch.from_numpy(pixels), torch.arange(len(ids)), torch.from_numpy(taken), images.sized(train)
        names = ids.to(self.device, non_blocking=True)
        if scale is None or not train:
            return images, names % len(images), names, False
        assert self.augment.crop_px is not None
        height, width = (torch.full((len(ids),), side) for side in images.shape[1:3])
        box = transforms.draw_resized_crop(height, width, scale, Key(ids.cpu(), self.seed, epoch))
        crops = transforms.resized_crop(images[names % len(images)], box, self.augment.crop_px)
        return crops, torch.arange(len(ids), device=self.device), names, True

    def _is_transformed(self, train: bool, sized: bool) -> bool:
        a = self.augment
        if sized:
            return bool(a.spectral_r or (train and a.recolors))
        return a.transforms if train else a.transforms_eval

    def _finished(self, images: Tensor, names: Tensor, key: Key, cutout: dict) -> Tensor:
        """Levels -> the normalised batch, or its bands."""
        if self.band_mean is not None:
            return transforms.band(images, self.augment, self.band_mean, self.band_std, self.dtype, self.bands)
        assert isinstance(self.mean, tuple), "recipes that transform images have a mean per channel"
        options = {"mean": self.mean, "std": self.std, "cutout": cutout, "dtype": self.dtype}
        return transforms.normalise(images, names, key, **options)


def _page_locked(num_images: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty((num_images, *shape), dtype=dtype, pin_memory=True).permute(0, 3, 1, 2)


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor over the same memory; nobody writes to it, so a read-only map is no harm."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def mean_image(split: AnySplit, chunk_images: int = 4096) -> Tensor:
    """(H, W, C) fp32 mean of x/255 over a split, summed exactly in int64."""
    if isinstance(split, EncodedSplit):
        hint = "imnet-data pack with --size PX, or one value a channel"
        raise UsageError("got augment.mean = image for pictures kept encoded; allowed: a store of pixels", hint=hint)
    total = torch.zeros(split.images.shape[1:], dtype=torch.int64)
    for start in range(0, len(split), chunk_images):
        total += as_tensor(split.images[start : start + chunk_images]).sum(0, dtype=torch.int64)
    return (total.double() / (255 * len(split))).float()
