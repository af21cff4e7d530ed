"""Feeds in, tensors out: one built DALI graph, run a few batches ahead, taken down when it is left or fails."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterator

import torch
from nvidia.dali import Pipeline as Graph
from torch import Tensor

from imnet.data import dali_graph
from imnet.data.dali_feeds import Feed, Values
from imnet.errors import DeviceError

Again = Callable[[list[Feed], Exception], list[Feed]]
"""The feeds that were lost when DALI failed, and its error -> what to feed in their place, or another error."""


class Inlet:
    """DALI's external source: what is to be fed, and what DALI works on. It does not know the graph, which knows it."""

    def __init__(self) -> None:
        self.most_images = 0
        self.feeds: Iterator[Feed] = iter(())
        self.first: deque[Feed] = deque()  # before what comes from feeds
        self.inside: deque[Feed] = deque()  # oldest first; DALI reads their arrays where they lie
        self.error: Exception | None = None

    def start(self, feeds: Iterator[Feed]) -> None:
        self.feeds, self.error = feeds, None
        self.first.clear()

    def __call__(self) -> list[Values]:
        """The next values; DALI asks for them a few batches ahead. StopIteration also before a batch too large."""
        feed = self.next()
        if feed is None:
            raise StopIteration
        if len(feed) > self.most_images:
            self.first.appendleft(feed)
            raise StopIteration
        self.inside.append(feed)
        return list(feed.values.values())

    def next(self) -> Feed | None:
        """The next feed; an error in making it is kept until the batches before it are out."""
        if self.first:
            return self.first.popleft()
        try:
            return next(self.feeds, None)
        except Exception as error:
            self.error = error
            return None


class Runner:
    """``run(feeds, again)`` -> (images (B, H, W, C) on the device, the feed they were made from), in order."""

    def __init__(self, plan: dali_graph.Plan, *, threads: int, depth: int):
        self.plan, self.threads, self.depth = plan, threads, max(1, depth)
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
        """Wait for what DALI works on, then let go of it and its threads."""
        graph, self.graph = self.graph, None
        if graph is not None:
            # Without the wait, threads that call Python would be joined by one that holds Python's lock.
            for _ in self._inlet.inside:
                with contextlib.suppress(Exception):
                    graph.outputs()
        self._inlet.inside.clear()

    def _until_stopped(self, again: Again) -> Generator[tuple[Tensor, Feed], None, None]:
        """What DALI gives until it is out of feeds, or needs a new graph."""
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
            # DALI counts references to its outputs: nobody writes to them while the tensor lives.
            yield torch.from_dlpack(images.as_tensor()), feed

    def _stream(self) -> torch.cuda.Stream | None:
        return torch.cuda.current_stream(self.plan.device_id) if self.plan.on_gpu else None

    def _build(self, first: Feed) -> None:
        self.close()
        inlet = self._inlet
        inlet.most_images = max(inlet.most_images, len(first))
        options = {"max_images": inlet.most_images, "threads": self.threads, "depth": self.depth}
        try:
            self.graph = dali_graph.build(self.plan, first, inlet, **options)
        except RuntimeError as error:
            what = f"DALI cannot build its pipeline: {one_line(error)}"
            raise DeviceError(what, hint="imnet-train --doctor, or use another --pipeline") from error


def one_line(error: Exception) -> str:
    """What DALI says, without its stack trace."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    kept = [line for line in lines if not line.startswith(("Stacktrace", "[frame", "Traceback", "Current pipeline"))]
    return " ".join(kept)[:300] or type(error).__name__
