"""The whole set as uint8 in the device's memory; batches are gathered and augmented there, never one by one."""

from __future__ import annotations

import torch
from imnet_kernels import augment as augment_kernel
from torch import Tensor

from imnet.data import transforms
from imnet.data.base import Split
from imnet.data.draws import Key
from imnet.errors import DeviceError
from imnet.recipe import Augment

# Share of the free device memory that the images may take; the rest is for the step.
_MEMORY_SHARE = 0.6


class Resident:
    """``batch(ids, epoch)`` -> images (B, C, H, W) channels_last in ``dtype`` and labels (B,) int64, on ``device``."""

    def __init__(
        self,
        split: Split,
        augment: Augment,
        *,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        mean: Tensor | None,
    ):
        """``mean`` is the mean image (H, W, C) of x/255 where the recipe subtracts one."""
        self.device, self.dtype, self.seed, self.augment = device, dtype, seed, augment
        _check_memory(split.images.nbytes, device)
        self.images = _on_device(split.images, device)
        self.labels = _on_device(split.labels, device)
        self.mean: tuple[float, ...] | Tensor
        if mean is not None:
            self.mean = mean.to(device)
        else:
            assert not isinstance(augment.mean, str), "the mean image is computed by the caller"
            self.mean = augment.mean * self.images.shape[3] if len(augment.mean) == 1 else augment.mean
        self.band_mean: Tensor | None = None
        if augment.spectral_r:
            mean, std = transforms.band_statistics(augment, self.images.shape[3])
            self.band_mean, self.band_std = mean.to(device), std.to(device)

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.images.numel()

    def batch(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        """``ids`` (B,) int64 on any device. Without ``train`` the images are resized, centre-cropped and normalised.

        Ids on the CPU spare recipes that transform images a wait for the device: their choices are drawn on the host.
        """
        rows = ids.to(self.device, non_blocking=True)
        a = self.augment
        pad_flip = {
            "pad_px": a.crop_pad_px,
            "pad_mode": a.crop_pad_mode,
            "hflip": a.hflip,
            "hflip_p": a.hflip_p,
        }
        cutout = {"cutout_px": a.cutout_px, "cutout_inside": a.cutout_inside}
        if a.transforms if train else a.transforms_eval:
            key = Key(ids.cpu(), self.seed, epoch)
            images = self._transformed(rows, key, pad_flip if train else {}, cutout if train else {}, train)
            return images, self.labels[rows]
        images = augment_kernel(
            self.images,
            rows,
            seed=self.seed,
            epoch=epoch,
            mean=self.mean,
            std=self._std,
            dtype=self.dtype,
            **(pad_flip | cutout if train else {}),
        )
        return images, self.labels[rows]

    @property
    def _std(self) -> tuple[float, ...]:
        std = self.augment.std
        return std * self.images.shape[3] if len(std) == 1 else std

    def _transformed(self, rows: Tensor, key: Key, pad_flip: dict, cutout: dict, train: bool) -> Tensor:
        images = transforms.gather(self.images, rows, key, pad_flip)
        images = transforms.transform(images, self.augment, key, train)
        if self.band_mean is not None:
            return transforms.band(images, self.augment, self.band_mean, self.band_std, self.dtype)
        assert isinstance(self.mean, tuple), "recipes that transform images have a mean per channel"
        options = {"mean": self.mean, "std": self._std, "cutout": cutout, "dtype": self.dtype}
        return transforms.normalise(images, rows, key, **options)


def mean_image(split: Split, chunk_images: int = 4096) -> Tensor:
    """(H, W, C) fp32 mean of x/255 over a split, summed exactly in int64."""
    total = torch.zeros(split.images.shape[1:], dtype=torch.int64)
    for start in range(0, len(split), chunk_images):
        total += torch.from_numpy(split.images[start : start + chunk_images].copy()).sum(0, dtype=torch.int64)
    return (total.double() / (255 * len(split))).float()


def _on_device(array, device: torch.device) -> Tensor:
    # A copy on purpose: a read-only memory map would warn, and a page fault in the step would cost more.
    return torch.from_numpy(array.copy()).to(device)


def _check_memory(num_bytes: int, device: torch.device) -> None:
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if num_bytes > _MEMORY_SHARE * free:
        what = f"{num_bytes / 2**30:.1f} GiB of images do not fit the device ({free / 2**30:.1f} GiB free)"
        raise DeviceError(what, hint="use a GPU with more memory, or fewer images (--data.train_images)")
