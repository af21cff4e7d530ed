"""The mapped store -> C++ augmentation on the CPU -> page-locked batches, made ahead and copied on a side stream."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import Batch, Pipeline, Setting
from imnet.data.pipelines.batches import Batches, as_tensor
from imnet.data.pipelines.encoded import Decoder

T = TypeVar("T")
U = TypeVar("U")


class Host(Pipeline):
    """For sets that do not fit the device: the images stay in the file, the CPU prepares ``ahead`` batches."""

    kind = "host"

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        if isinstance(split, EncodedSplit):
            self.decoder = images = Decoder(split, setting.augment, setting.seed, setting.on_bad)
        else:
            images = as_tensor(split.images)
        mean = None if setting.mean is None else setting.mean.cpu()
        self.batches = Batches(images, setting.augment, seed=setting.seed, dtype=setting.dtype, mean=mean)
        self.cpu_labels = as_tensor(split.labels)
        self.copier = Copier(setting.device)

    @property
    def where(self) -> str:
        return f"read on the CPU by {self.setting.workers} thread(s), {self.setting.ahead} batches ahead"

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        pinned = self.setting.device.type == "cuda"

        def prepare(ids: Tensor) -> Batch:
            images, names = self.batches.batch(ids, epoch, train, pinned=pinned)
            labels = self.cpu_labels[names]
            return images, labels.pin_memory() if pinned else labels

        # The kernel itself has threads; Pillow has none, so each decodes a batch of its own.
        workers = self.setting.workers if self.decoder else 1
        with contextlib.closing(ahead(prepare, pieces, self.setting.ahead, workers)) as prepared:
            yield from self.copier.copied(prepared)


class Copier:
    """Moves prepared batches to the device: the copy of the next one runs while the step uses this one."""

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copied(self, batches: Iterator[Batch]) -> Generator[Batch, None, None]:
        if self.stream is None:
            yield from batches
            return
        waiting: deque[tuple[Batch, torch.cuda.Event]] = deque()
        for batch in batches:
            waiting.append(self._start(batch))
            if len(waiting) == 2:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _start(self, batch: Batch) -> tuple[Batch, torch.cuda.Event]:
        event = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            images, labels = (t.to(self.device, non_blocking=True) for t in batch)
            event.record(self.stream)
        return (images, labels), event

    def _finish(self, batch: Batch, event: torch.cuda.Event) -> Batch:
        current = torch.cuda.current_stream(self.device)
        current.wait_event(event)
        for tensor in batch:
            # The allocator may not give this memory to the side stream again before the step is done with it.
            tensor.record_stream(current)
        return batch


def ahead(work: Callable[[T], U], items: Iterable[T], depth: int, workers: int) -> Generator[U, None, None]:
    """``map(work, items)`` in order, with up to ``depth`` results ready before they are asked for, by threads.

    An exception of ``work`` comes out at its place. Closing the generator ends the threads.
    """
    source = iter(items)
    with ThreadPoolExecutor(workers, "imnet-data") as pool:
        waiting: deque[Future[U]] = deque()
        try:
            for _ in range(max(depth, workers)):
                waiting.extend(pool.submit(work, item) for item in _next(source))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in _next(source))
                yield done
        finally:
            for future in waiting:
                future.cancel()


def _next(source: Iterator[T]) -> list[T]:
    """The next item, or none."""
    for item in source:
        return [item]
    return []
