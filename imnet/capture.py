"""Records a training step as one CUDA graph, and refuses steps that a graph would not repeat."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from imnet import optim as optimisers
from imnet.errors import UsageError

if TYPE_CHECKING:
    from imnet.step import Batch, TrainStep

UNCAPTURED = "leave --cuda-graphs out, or set --no-cuda-graphs"


class NotCapturableError(UsageError):
    """The step does something that a CUDA graph would not repeat."""


DDP_WARM_UPS = 11
"""Steps before a recording on several ranks. DistributedDataParallel rebuilds its buckets in its second step and times
its first ten, for which it waits for the device."""


class CapturedStep:
    """The whole step in one CUDA graph of static shapes, for networks whose step is bound by kernel launches.

    On several ranks each rank records and replays a graph of its own, gradient all-reduces included. ``stream`` is then
    the stream on which DistributedDataParallel was created: nodes of its backward pass run there, and a recording must
    not wait for a stream that it does not contain.
    """

    def __init__(self, step: TrainStep, stream: torch.cuda.Stream | None = None):
        self.step, self.stream = step, stream
        self.graph: torch.cuda.CUDAGraph | None = None
        # MergedSGD makes its table of addresses before the capture, so its gradients must stay where they are. Other
        # optimisers take each gradient as backward leaves it: adding it to zeros is one more launch per parameter.
        self.keeps_gradients = isinstance(step.optimizer, optimisers.MergedSGD)

    def capture(self, batches: list[Batch], num_images: int) -> None:
        """Record ``compute`` on static copies of the batch, then restore weights and optimiser.

        Raises NotCapturableError if the step waits for the device or draws random numbers on the host.
        """
        self.static = [(images.clone(), labels.clone()) for images, labels in batches]
        self.num_images = num_images
        before = {name: {k: v.clone() for k, v in t.items()} for name, t in self.step.tensors().items()}
        scale = self.step.scaler.state_dict()
        optimisers.set_lr(self.step.optimizer, 0.0)
        try:
            self._record()
        except BaseException:
            self.step.forget_gradients()  # the run may go on without a graph, and would add to them
            raise
        finally:
            self._restore(before)
            self.step.scaler.load_state_dict(scale)

    def _record(self) -> None:
        with on_stream(self.stream or torch.cuda.Stream()):
            for _ in range(DDP_WARM_UPS if self.step.world.reduces else 2):
                self.step.compute(self.static, self.num_images)
            with repeatable():
                self.step.compute(self.static, self.num_images)
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because meanwhile other threads may page-lock memory for the next batches, and NCCL's own
        # thread may query its events.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            self.step.compute(self.static, self.num_images)
        self.graph, self.told = graph, self.step.told

    def _restore(self, before: dict[str, dict[str, Tensor]]) -> None:
        for name, tensors in self.step.tensors().items():
            for key, value in tensors.items():
                # State that the optimiser made while warming up is set to zero, as if no step had been taken.
                old = before[name].get(key)
                value.zero_() if old is None else value.copy_(old)

    def fits(self, batches: list[Batch], num_images: int) -> bool:
        """Whether there is a graph for batches of these shapes; an odd last batch is computed without one."""
        if self.graph is None:
            return False
        mine = [images.shape for images, _ in self.static]
        return num_images == self.num_images and [images.shape for images, _ in batches] == mine

    def __call__(self, batches: list[Batch], num_images: int) -> tuple[Tensor, Tensor]:
        assert self.graph is not None
        for (images, labels), (static_images, static_labels) in zip(batches, self.static, strict=True):
            static_images.copy_(images)
            static_labels.copy_(labels)
        self.graph.replay()
        self.step.told = self.told.clone()
        bad, total, _ = self.step.told
        return total, bad

    def release(self) -> None:
        """Destroy the recording; steps are computed without it from then on.

        NCCL does not close a communicator as long as a graph holds one of its collectives: destroy_process_group would
        wait for ever (pytorch/pytorch#115388).
        """
        if self.graph is not None:
            self.graph.reset()
            self.graph = None


@contextlib.contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Run the block on ``stream`` (None: on the current stream), after the work that the current stream has, and before
    the work that it gets later. That also holds if the block fails, since its work on the device goes on then."""
    if stream is None:
        yield
        return
    current = torch.cuda.current_stream(stream.device)
    stream.wait_stream(current)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        current.wait_stream(stream)


@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """NotCapturableError if the block waits for the device, or draws random numbers on the host (a graph would repeat
    the same ones).

    This is checked before the recording, because a recording that fails leaves the device's allocator and generator in
    capture mode.
    """
    drawn = torch.random.get_rng_state(), random.getstate()
    strict = torch.cuda.get_sync_debug_mode() if torch.cuda.is_available() else None
    if strict is not None:
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        raise NotCapturableError("the step waits for the device, which a CUDA graph cannot", hint=UNCAPTURED) from error
    finally:
        if strict is not None:
            torch.cuda.set_sync_debug_mode(strict)
    if not torch.equal(drawn[0], torch.random.get_rng_state()) or drawn[1] != random.getstate():
        raise NotCapturableError("the network draws random numbers on the host, once for every replay", hint=UNCAPTURED)
