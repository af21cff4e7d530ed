"""NVIDIA DALI as a pipeline, on the CPU or a GPU, fed with our order and our random choices: it keeps no state."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from imnet.data import dali_graph, transforms
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.batches import as_tensor
from imnet.data.dali_feeds import Feed, Feeds
from imnet.data.dali_pictures import Pictures
from imnet.data.dali_run import Again, Runner, one_line
from imnet.data.host import ahead
from imnet.data.pipeline import Batch, Pipeline, Setting
from imnet.errors import DataError


class Dali(Pipeline):
    """Batches made by DALI's operators; equal to those of the other pipelines up to rounding, see ``dali_graph``.

    A graph is built for training and one for evaluation when they are first needed, and kept for the next epoch; one
    that is left in the middle of an epoch is taken down with its threads.
    """

    kind = "dali"

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        s, pictures = setting, None
        if isinstance(split, EncodedSplit):
            self.decoder = pictures = Pictures(split, s.augment, s.seed, s.on_bad)
        self.pictures = pictures
        self.feeds = {train: Feeds(split, s.augment, s.seed, train, pictures) for train in (True, False)}
        self.cpu_labels = as_tensor(split.labels)
        self._idle: dict[bool, Runner] = {}

    @property
    def where(self) -> str:
        place = "on the GPU" if self.setting.device.type == "cuda" else "on the CPU"
        return f"by DALI {place}, {self.setting.workers} thread(s), {self.setting.ahead} batches ahead"

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        feeds, s = self.feeds[train], self.setting
        workers = s.workers if self.pictures else 1
        runner = self._idle.pop(train, None) or Runner(self._plan(train), threads=s.workers, depth=s.ahead)
        again = self._again(train, epoch)
        with contextlib.closing(ahead(lambda ids: feeds.feed(ids.cpu(), epoch), pieces, s.ahead, workers)) as prepared:
            try:
                for images, feed in runner.run(prepared, again):
                    yield self._finished(images), self._labels(feed.names)
            except BaseException:
                runner.close()
                raise
        self._idle[train] = runner

    def _again(self, train: bool, epoch: int) -> Again:
        def again(feeds: list[Feed], error: Exception) -> list[Feed]:
            """The feeds anew, without the pictures that made DALI fail; the error in one line where none did."""
            names = torch.cat([feed.names for feed in feeds]) if feeds else torch.empty(0, dtype=torch.int64)
            if self.pictures is None or not self.pictures.blame(names):
                among = f" among images {names.tolist()[:4]}..." if len(names) else ""
                raise DataError(f"DALI failed{among}: {one_line(error)}", hint="use another --pipeline") from error
            return [self.feeds[train].feed(feed.ids, epoch) for feed in feeds]

        return again

    def _plan(self, train: bool) -> dali_graph.Plan:
        s, split = self.setting, self.split
        mean = None if s.mean is None else s.mean.cpu().float().numpy()
        device_id = (s.device.index or 0) if s.device.type == "cuda" else None
        half = s.dtype == torch.float16
        return dali_graph.plan(self.feeds[train], split.image_shape[2], half=half, device_id=device_id, mean=mean)

    def _finished(self, images: Tensor) -> Tensor:
        """(B, H, W, C) from DALI -> the batch; the recipe's band is made here."""
        a, batch = self.setting.augment, images.permute(0, 3, 1, 2)
        if not a.spectral_r:
            return batch.to(self.setting.dtype)
        mean, std = (t.to(batch.device) for t in transforms.band_statistics(a, batch.shape[1]))
        return transforms.band(batch, a, mean, std, self.setting.dtype)

    def _labels(self, names: Tensor) -> Tensor:
        labels = self.cpu_labels[names]
        if self.setting.device.type != "cuda":
            return labels
        return labels.pin_memory().to(self.setting.device, non_blocking=True)
