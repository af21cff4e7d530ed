"""Makes batches from sample ids on one device; shared by the resident, the host and the DALI pipeline."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from imnet_kernels import augment as augment_kernel
from imnet_kernels import tier
from torch import Tensor

from imnet.augmentation import Augment
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import transforms
from imnet.data.pipelines.draws import Key
from imnet.data.pipelines.encoded import Decoder
from imnet.errors import DeviceError, UsageError


class Finish:
    """Turns uint8 images into the network's input on the same device: everything that a recipe does to an image.

    Augmentations other than those of ``recolor`` are done here or in ``transforms``, for every pipeline except
    ``plain``, which works image by image and is the reference.
    """

    def __init__(
        self,
        augment: Augment,
        channels: int,
        device: torch.device,
        *,
        seed: int,
        dtype: torch.dtype,
        mean: Tensor | None,
        bands: tuple[int, ...] = (),
    ):
        """``mean`` is the mean image (H, W, C) of x/255 if the recipe has one; for ``bands`` see ``Setting``.

        Raises DeviceError if the kernel tier that was asked for is not available. Training has checked that earlier,
        but a command that only evaluates a network has not.
        """
        try:
            tier.choose("spectral" if augment.spectral_r else "augment", device.type)
        except RuntimeError as error:
            raise DeviceError(str(error)) from error
        self.augment, self.channels, self.device, self.seed, self.dtype = augment, channels, device, seed, dtype
        self.mean = augment.mean_per_channel(channels) if mean is None else mean.to(device)
        self.std = augment.std * channels if len(augment.std) == 1 else augment.std
        self._choose(bands)
        self.pad_flip = {
            "pad_px": augment.crop_pad_px,
            "pad_mode": augment.crop_pad_mode,
            "hflip": augment.hflip,
            "hflip_p": augment.hflip_p,
        }
        self.cutout = {"cutout_px": augment.cutout_px, "cutout_inside": augment.cutout_inside}

    def of_bands(self, bands: tuple[int, ...]) -> Self:
        """A copy for other spectral bands."""
        other = copy.copy(self)
        other._choose(bands)
        return other

    def _choose(self, bands: tuple[int, ...]) -> None:
        self.bands, self.band_mean = bands, None
        if self.augment.spectral_r:
            mean, std = transforms.band_statistics(self.augment, self.channels, bands)
            self.band_mean, self.band_std = mean.to(self.device), std.to(self.device)

    def __call__(
        self, store: Tensor, rows: Tensor, ids: Tensor, epoch: int, *, train: bool, sized: bool, pinned: bool = False
    ) -> Tensor:
        """The images of ``store`` (N, H, W, C) at ``rows`` (B,) as (B, C, H, W) channels_last, augmented for ``ids``.

        ``ids`` (B,) int64 should be on the CPU: the random choices of ``transforms`` are drawn on the host, which would
        otherwise wait for the device. If ``sized``, the images already have the network's input size. With ``pinned``,
        a batch on the CPU is returned in page-locked memory.
        """
        a, names = self.augment, ids.to(self.device, non_blocking=True)
        if train and not sized and a.crop_scale is not None:
            store, sized = self._cropped(store, rows, ids.cpu(), epoch), True
            rows = torch.arange(len(ids), device=self.device)
        rows = rows.to(self.device, non_blocking=True)
        pad_flip, cutout = (self.pad_flip, self.cutout) if train else ({}, {})
        drawn: dict[str, Any] = {"sample_ids": names, "seed": self.seed, "epoch": epoch}
        last: dict[str, Any] = {"mean": self.mean, "std": self.std, "dtype": self.dtype, **cutout}
        if not self._is_transformed(train, sized):
            out = _page_locked(len(ids), store.shape[1:], self.dtype) if pinned else None
            return augment_kernel(store, rows, out=out, **drawn, **last, **pad_flip)
        levels = augment_kernel(store, rows, mean=0.0, std=1 / 255, dtype=torch.float32, **drawn, **pad_flip)
        levels = transforms.transform(levels, a, Key(ids.cpu(), self.seed, epoch), train, sized)
        if self.band_mean is not None:
            images = transforms.band(levels, a, self.band_mean, self.band_std, self.dtype, self.bands)
        else:  # normalise with the kernel again, with this batch as its store
            store = levels.permute(0, 2, 3, 1).to(torch.uint8).contiguous()
            images = augment_kernel(store, torch.arange(len(ids), device=self.device), **drawn, **last)
        return images.pin_memory() if pinned else images

    def _cropped(self, store: Tensor, rows: Tensor, ids: Tensor, epoch: int) -> Tensor:
        """The random resized crop of each image, uint8 (B, side, side, C)."""
        assert self.augment.crop_px is not None
        assert self.augment.crop_scale is not None
        height, width = (torch.full((len(ids),), side) for side in store.shape[1:3])
        box = transforms.draw_resized_crop(height, width, self.augment.crop_scale, Key(ids, self.seed, epoch))
        return transforms.resized_crop(store[rows.to(store.device, non_blocking=True)], box, self.augment.crop_px)

    def _is_transformed(self, train: bool, sized: bool) -> bool:
        a = self.augment
        if sized:
            return bool(a.spectral_r or (train and a.recolors))
        return a.transforms if train else a.transforms_eval


class Batches(Finish):
    """``batch(ids, epoch, train)`` -> images (B, C, H, W) channels_last, on the device of the images."""

    def __init__(self, images: Tensor | Decoder, augment: Augment, **how: Any):
        """``images`` are uint8 (N, H, W, C), or a decoder that makes them on the CPU; for ``how`` see ``Finish``."""
        self.images = images
        of = (images.shape[3], images.device) if isinstance(images, Tensor) else (3, torch.device("cpu"))
        super().__init__(augment, *of, **how)

    def batch(self, ids: Tensor, epoch: int, train: bool, *, pinned: bool = False) -> tuple[Tensor, Tensor]:
        """(images, ids taken) for ``ids`` (B,) int64, on any device; only ``train`` augments them.

        Without ``train`` images are only resized, centre-cropped and normalised. The ids taken are on the images'
        device; if a bad picture was skipped, they have the id of the picture in its place.
        """
        if isinstance(self.images, Tensor):
            names = ids.to(self.images.device, non_blocking=True)
            store, rows, sized = self.images, names % len(self.images), False
        else:
            pixels, taken = self.images.images(ids.cpu(), epoch, train)
            store, rows, sized = torch.from_numpy(pixels), torch.arange(len(ids)), self.images.sized(train)
            ids = names = torch.from_numpy(taken)
        return self(store, rows, ids, epoch, train=train, sized=sized, pinned=pinned), names


def _page_locked(num_images: int, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty((num_images, *shape), dtype=dtype, pin_memory=True).permute(0, 3, 1, 2)


def as_tensor(array: np.ndarray) -> Tensor:
    """The array as a tensor that shares its memory. It may be a read-only map, since nothing writes to the tensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def mean_image(split: AnySplit, chunk_images: int = 4096) -> Tensor:
    """The mean of x/255 over a split, (H, W, C) fp32, summed exactly in int64."""
    if isinstance(split, EncodedSplit):
        hint = "imnet-data pack with --size PX, or one value a channel"
        raise UsageError("got augment.mean = image for pictures kept encoded; allowed: a store of pixels", hint=hint)
    total = torch.zeros(split.images.shape[1:], dtype=torch.int64)
    for start in range(0, len(split), chunk_images):
        total += as_tensor(split.images[start : start + chunk_images]).sum(0, dtype=torch.int64)
    return (total.double() / (255 * len(split))).float()
