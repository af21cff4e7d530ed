"""Keeps the whole set as uint8 in the device's memory, where whole batches are gathered and augmented."""

from __future__ import annotations

from collections.abc import Generator, Iterable

from torch import Tensor

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import Batch, Pipeline, Setting, too_large
from imnet.data.pipelines.batches import Batches, as_tensor
from imnet.errors import DeviceError, UsageError


class Resident(Pipeline):
    """The default for sets that fit the device: no work on the host, no copies, no prefetching."""

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
            images = images.clone()  # copy a mapped file, since page faults in the step would cost more
        self.check_file()
        self.images = images
        self.batches = Batches(images, setting.augment, **setting.finish)

    @property
    def where(self) -> str:
        return f"uint8 in the memory of {self.setting.device}, augmented there"

    def batch(self, ids: Tensor, epoch: int, train: bool) -> Batch:
        """The batch of ``ids`` (B,) int64, which may be on any device."""
        images, names = self.batches.batch(ids, epoch, train)
        return images, self.labels[names % len(self)]

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        for ids in pieces:
            yield self.batch(ids, epoch, train)
