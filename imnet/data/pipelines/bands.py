"""One pipeline for several runs on different spectral bands of the same images: each image is prepared only once."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterable

import torch
from torch import Tensor

from imnet.data.pipelines import Batch, Pipeline


class Together:
    """The training batches of a pipeline of several bands, for runs that each take the same batch at about the same
    time."""

    def __init__(self, pipeline: Pipeline):
        """``pipeline`` yields the bands of its setting, (B, K, C, h, w)."""
        self.pipeline = pipeline
        self._batches: Generator[Batch, None, None] | None = None
        self._next = self._at = (-1, -1)

    def batch(self, epoch: int, step: int) -> Batch:
        """The batch of all bands at ``step`` of ``epoch``. It is made on the first call and kept until another batch is
        asked for."""
        at = epoch, step
        if at != self._at:
            if self._batches is None or at != self._next:
                self.close()
                self._batches = self.pipeline.epoch(*at)
            self._batch = next(self._batches)
            self._at, self._next = at, (epoch, step + 1)
        return self._batch

    def close(self) -> None:
        """Stop the threads that prepare batches."""
        if self._batches is not None:
            self._batches.close()
        self._batches, self._at = None, (-1, -1)


class OneBand(Pipeline):
    """The pipeline of one of the runs: yields the same batches as a pipeline of its band alone."""

    def __init__(self, together: Together, band: int):
        whole = together.pipeline
        self.together, self.split, self.labels = together, whole.split, whole.labels
        self.setting, self.kind, self.decoder = whole.setting, whole.kind, whole.decoder  # pyright: ignore[reportAttributeAccessIssue]
        self.band, self.place = band, whole.setting.bands.index(band)

    @property
    def where(self) -> str:
        return self.together.pipeline.where

    def epoch(self, epoch: int, start_step: int = 0) -> Generator[Batch, None, None]:
        order = self.setting.order
        assert order is not None
        for step in range(start_step, order.steps_per_epoch):
            images, labels = self.together.batch(epoch, step)
            yield _dense(images[:, self.place]), labels

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        alone = self.together.pipeline.of_bands((self.band,))
        with contextlib.closing(alone.stream(pieces, epoch, train)) as batches:
            for images, labels in batches:
                yield _dense(images[:, 0]), labels


def _dense(images: Tensor) -> Tensor:
    """The images as channels_last; a band of the kernels' output already is, and is not copied."""
    return images.contiguous(memory_format=torch.channels_last)
