"""NVIDIA DALI as a pipeline, on the CPU or a GPU. Order and random choices are fed to it, so that it keeps no state.

One built graph turns feeds into tensors, a few batches ahead. It is destroyed if it fails or is left before the end.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator

import torch
from nvidia.dali import Pipeline as Graph
from torch import Tensor

from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import Batch, Pipeline, Setting, dali_graph
from imnet.data.pipelines.batches import Finish
from imnet.data.pipelines.dali_graph import Feed, Feeds, Values
from imnet.data.pipelines.dali_pictures import Pictures
from imnet.data.pipelines.host import ahead
from imnet.errors import DataError, DeviceError

Again = Callable[[list[Feed], Exception], list[Feed]]
"""Called with the feeds that were lost when DALI failed, and its error; returns feeds to replace them, or raises."""


class Inlet:
    """DALI's external source: the feeds to come, and those that DALI works on. It has no reference to the graph, which
    refers to it."""

    def __init__(self) -> None:
        self.most_images = 0
        self.feeds: Iterator[Feed] = iter(())
        self.first: deque[Feed] = deque()  # taken before those of ``feeds``
        self.inside: deque[Feed] = deque()  # oldest first; kept alive, since DALI reads their arrays in place
        self.error: Exception | None = None

    def start(self, feeds: Iterator[Feed]) -> None:
        self.feeds, self.error = feeds, None
        self.first.clear()

    def __call__(self) -> list[Values]:
        """The next values; DALI asks for them a few batches ahead. Raises StopIteration at the end, and before a batch
        that is larger than the graph allows."""
        feed = self.next()
        if feed is None:
            raise StopIteration
        if len(feed) > self.most_images:
            self.first.appendleft(feed)
            raise StopIteration
        self.inside.append(feed)
        return list(feed.values.values())

    def next(self) -> Feed | None:
        """The next feed, or None. An error in making it is kept until the batches before it have been yielded."""
        if self.first:
            return self.first.popleft()
        try:
            return next(self.feeds, None)
        except Exception as error:
            self.error = error
            return None


class Runner:
    """``run(feeds, again)`` yields (images (B, H, W, C) on the device, the feed that they were made from), in order."""

    def __init__(self, of: Feeds, *, threads: int, depth: int):
        self.of, self.threads, self.depth = of, threads, max(1, depth)
        self.graph: Graph | None = None
        self._inlet = Inlet()

    def run(self, feeds: Iterator[Feed], again: Again) -> Generator[tuple[Tensor, Feed], None, None]:
        inlet = self._inlet
        inlet.start(feeds)
        while (feed := inlet.next()) is not None:
            inlet.first.appendleft(feed)
            if self.graph is None or len(feed) > inlet.most_images:
                self._build(feed)
            yield from self._until_stopped(again)
        error, inlet.error = inlet.error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Wait until DALI has finished its work, then release the graph and its threads."""
        graph, self.graph = self.graph, None
        if graph is not None:
            # Without the wait, a thread that holds the GIL would join threads that call Python: a deadlock.
            for _ in self._inlet.inside:
                with contextlib.suppress(Exception):
                    graph.outputs()
        self._inlet.inside.clear()

    def _until_stopped(self, again: Again) -> Generator[tuple[Tensor, Feed], None, None]:
        """The outputs of the graph, until there are no more feeds or a new graph is needed."""
        inlet = self._inlet
        while True:
            assert self.graph is not None
            try:
                (images,) = self.graph.run(self._stream())
            except StopIteration:
                self.graph.reset()
                return
            except Exception as error:
                lost = list(inlet.inside)
                self.close()
                inlet.first.extendleft(reversed(again(lost, error)))
                return
            feed = inlet.inside.popleft()
            # DALI counts references to its outputs, and does not reuse their memory while the tensor exists.
            yield torch.from_dlpack(images.as_tensor()), feed

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.of.device_id) if self.of.on_gpu else None

    def _build(self, first: Feed) -> None:
        self.close()
        inlet = self._inlet
        inlet.most_images = max(inlet.most_images, len(first))
        options = {"max_images": inlet.most_images, "threads": self.threads, "depth": self.depth}
        try:
            self.graph = dali_graph.build(self.of, first, inlet, **options)
        except RuntimeError as error:
            what = f"DALI cannot build its pipeline: {one_line(error)}"
            raise DeviceError(what, hint="imnet-train --doctor, or use another --pipeline") from error


def one_line(error: Exception) -> str:
    """DALI's message without its stack trace, at most 300 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("Stacktrace", "[frame", "Traceback", "Current pipeline"))]
    return " ".join(kept)[:300] or type(error).__name__


class Dali(Pipeline):
    """DALI decodes pictures and brings images to the device; ``Finish`` then augments them as in the other pipelines.

    Batches of pixels equal the other pipelines' bit for bit; those of encoded pictures differ as the decoders do. One
    graph for training and one for evaluation are built on first use and kept for the next epoch; a graph that is left
    in the middle of an epoch is destroyed with its threads.
    """

    kind = "dali"

    def __init__(self, split: AnySplit, setting: Setting):
        super().__init__(split, setting)
        s, pictures = setting, None
        if isinstance(split, EncodedSplit):
            self.decoder = pictures = Pictures(split, s.augment, s.seed, s.on_bad)
        self.pictures = pictures
        device_id = (s.device.index or 0) if s.device.type == "cuda" else None
        self.feeds = {train: Feeds(split, s.augment, s.seed, train, pictures, device_id) for train in (True, False)}
        self._idle: dict[bool, Runner] = {}
        self.batches = Finish(s.augment, split.image_shape[2], s.device, **s.finish)

    @property
    def where(self) -> str:
        place = "on the GPU" if self.setting.device.type == "cuda" else "on the CPU"
        return f"by DALI {place}, {self.setting.workers} thread(s), {self.setting.ahead} batches ahead"

    def stream(self, pieces: Iterable[Tensor], epoch: int, train: bool) -> Generator[Batch, None, None]:
        feeds, s = self.feeds[train], self.setting
        workers = s.workers if self.pictures else 1
        runner = self._idle.pop(train, None) or Runner(feeds, threads=s.workers, depth=s.ahead)
        again = self._again(train, epoch)

        def fed(ids: Tensor) -> Feed:
            made = feeds.feed(ids.cpu(), epoch)
            self.check_file()
            return made

        with contextlib.closing(ahead(fed, pieces, s.ahead, workers)) as prepared:
            try:
                for images, feed in runner.run(prepared, again):
                    rows = torch.arange(len(feed), device=images.device)
                    made = self.batches(images, rows, feed.names, epoch, train=train, sized=feeds.sized)
                    yield made, self._labels(feed, train)
            except BaseException:
                runner.close()
                raise
        self._idle[train] = runner

    def _again(self, train: bool, epoch: int) -> Again:
        def again(feeds: list[Feed], error: Exception) -> list[Feed]:
            """The feeds made again, without the pictures that made DALI fail; DataError if no picture is to blame."""
            names = torch.cat([feed.names for feed in feeds]) if feeds else torch.empty(0, dtype=torch.int64)
            if self.pictures is None or not self.pictures.blame(names):
                among = f" among images {names.tolist()[:4]}..." if len(names) else ""
                raise DataError(f"DALI failed{among}: {one_line(error)}", hint="use another --pipeline") from error
            return [self.feeds[train].feed(feed.ids, epoch) for feed in feeds]

        return again

    def _labels(self, feed: Feed, train: bool) -> Tensor:
        labels = self.labels_of_taken(feed.names, feed.ids, train)
        if self.setting.device.type != "cuda":
            return labels
        return labels.pin_memory().to(self.setting.device, non_blocking=True)
