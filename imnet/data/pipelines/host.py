"""Mapped store -> C++ augmentation on the CPU -> page-locked batches, made in advance and copied on a side stream."""

from __future__ import annotations

import contextlib
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import Batch, Pipeline, Setting
from imnet.data.pipelines.batches import Batches, as_tensor
from imnet.data.pipelines.encoded import Decoder

T = TypeVar("T")
U = TypeVar("U")


class Prepared(Pipeline):
    """Batches that threads prepare on the CPU, up to ``ahead`` in advance, and that are copied to the device."""

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        if isinstance(split, EncodedSplit):
            self.decoder = Decoder(split, setting.augment, setting.seed, setting.on_bad)
        self.pinned = setting.device.type == "cuda"
        self.threads = setting.workers
        self.copier = Copier(setting.device)

    @abstractmethod
    def made(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        """The images for ``ids`` (B,) int64 and the ids that were taken, both on the CPU."""

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        def prepare(ids: Tensor) -> Batch:
            images, names = self.made(ids, epoch, train)
            self.check_file()
            labels = self.labels_of_taken(names, ids, train)
            return images, labels.pin_memory() if self.pinned else labels

        with contextlib.closing(ahead(prepare, pieces, self.setting.ahead, self.threads)) as prepared:
            yield from self.copier.copied(prepared)


class Host(Prepared):
    """For sets that do not fit the device: images stay in the file, and the CPU prepares batches in advance."""

    kind = "host"

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        if self.decoder is None:
            self.threads = 1  # the kernel is multi-threaded itself; Pillow is not, so each thread decodes a batch
        images = self.decoder if isinstance(split, EncodedSplit) else as_tensor(split.images)
        assert images is not None
        self.batches = Batches(images, setting.augment, **setting.finish)

    @property
    def where(self) -> str:
        return f"read on the CPU by {self.setting.workers} thread(s), {self.setting.ahead} batches ahead"

    def made(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        return self.batches.batch(ids, epoch, train, pinned=self.pinned)


class Copier:
    """Copies prepared batches to the device; the copy of the next batch runs while the step uses the current one."""

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
            # Without this the allocator might give the memory to the side stream before the step has finished with it.
            tensor.record_stream(current)
        return batch


def ahead(work: Callable[[T], U], items: Iterable[T], depth: int, workers: int) -> Generator[U, None, None]:
    """``map(work, items)`` in order, by ``workers`` threads that prepare up to ``depth`` results in advance.

    An exception of ``work`` is raised in place of its result. Closing the generator ends the threads.
    """
    source = iter(items)
    with ThreadPoolExecutor(workers, "imnet-data") as pool:
        waiting: deque[Future[U]] = deque()
        try:
            waiting.extend(pool.submit(work, item) for item in islice(source, max(depth, workers)))
            while waiting:
                done = waiting.popleft().result()
                waiting.extend(pool.submit(work, item) for item in islice(source, 1))
                yield done
        finally:
            for future in waiting:
                future.cancel()
