"""The whole set as uint8 in the device's memory; batches are gathered and augmented there, never one by one."""

from __future__ import annotations

from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.batches import Batches, as_tensor
from imnet.data.pipeline import Batch, Pipeline, Setting
from imnet.errors import DeviceError, UsageError

# Share of the free device memory that the images may take; the rest is for the step.
MEMORY_SHARE = 0.6


class Resident(Pipeline):
    """The default where the set fits: no host work, no copies, no prefetching."""

    kind = "resident"

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        if isinstance(split, EncodedSplit):
            what = "got --pipeline resident for pictures kept encoded; allowed: host, dali, torch"
            raise UsageError(what, hint="leave --pipeline out, or imnet-data pack with --size PX")
        problem = too_large(split.num_bytes, setting.device)
        if problem:
            raise DeviceError(problem, hint="use --pipeline host, or fewer images (--data.train_images)")
        images = as_tensor(split.images).to(setting.device)
        if setting.device.type == "cpu" and not split.images.flags.writeable:
            images = images.clone()  # of a mapped file, on purpose: a page fault in the step would cost more
        self.images = images
        self.batches = Batches(images, setting.augment, seed=setting.seed, dtype=setting.dtype, mean=setting.mean)

    @property
    def where(self) -> str:
        return f"uint8 in the memory of {self.setting.device}, augmented there"

    def batch(self, ids: Tensor, epoch: int, train: bool) -> Batch:
        """One batch; ``ids`` (B,) int64 on any device."""
        images, names = self.batches.batch(ids, epoch, train)
        return images, self.labels[names]

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        for ids in pieces:
            yield self.batch(ids, epoch, train)


def too_large(num_bytes: int, device: torch.device) -> str | None:
    """None, or why ``num_bytes`` of images should not be kept on ``device``."""
    free = free_bytes(device)
    if num_bytes <= MEMORY_SHARE * free:
        return None
    where = "the device" if device.type == "cuda" else "memory"
    return f"{num_bytes / 2**30:.1f} GiB of images do not fit {where} ({free / 2**30:.1f} GiB free)"


def free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, or of this machine."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024
