"""What `imnet-profile step` runs: a recipe's real step and data path on a synthetic set, its phases marked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from imnet import device
from imnet.data.order import Order, micro_batches
from imnet.data.pipelines import Setting
from imnet.data.pipelines.batches import mean_image
from imnet.data.pipelines.resident import Resident
from imnet.from_recipe import load_data
from imnet.launch import World
from imnet.mixing import Mixing
from imnet.recipe import Recipe, replace
from imnet.run_options import RunOptions
from imnet.step import TrainStep

from ..case import make_step
from .trace import PHASES, STEP

_DATA, _FORWARD, _BACKWARD, _UPDATE = PHASES
_STEPS_PER_EPOCH = 100
"""Of the learning rate only: the figures do not depend on it."""
WARM_UP_STEPS = 2


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    recipe: Recipe
    options: RunOptions
    steps: int
    out: Path
    nvtx: bool = False
    by_shape: bool = False
    top: int = 25

    @property
    def batch_images(self) -> int:
        return self.recipe.data.batch_images


class RangedStep(TrainStep):
    """A TrainStep that marks its phases, for torch's profiler and, with ``nvtx``, for nsys and ncu."""

    nvtx = False
    _open: Any = None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        if self.nvtx:
            torch.cuda.nvtx.range_push(name.removeprefix("imnet:"))
        try:
            with record_function(name):
                yield
        finally:
            if self.nvtx:
                torch.cuda.nvtx.range_pop()

    def _loss(self, images: Tensor, labels: Tensor) -> Tensor:
        self._end_backward()
        with self.phase(_FORWARD):
            loss = super()._loss(images, labels)
        # What follows a loss, until the next micro-batch or the update, is its backward.
        self._open = self.phase(_BACKWARD)
        self._open.__enter__()
        return loss

    def _update(self, loss: Tensor) -> Tensor:
        self._end_backward()
        with self.phase(_UPDATE):
            return super()._update(loss)

    def _end_backward(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class Work:
    """The step and the data path of a recipe, on two batches of random images that lie on the device."""

    def __init__(self, request: Request, place: device.Place):
        self.request, self.place = request, place
        self.step = self._build_step()
        self.data, self.ids = self._build_data()
        self.mixing = Mixing(request.recipe, rank=0)

    def _build_step(self) -> RangedStep:
        step = make_step(self.request.recipe, self.request.options, self.place, World(), RangedStep)
        step.nvtx = self.request.nvtx
        return step

    def _build_data(self) -> tuple[Resident, list[Tensor]]:
        recipe, batch = self.request.recipe, self.request.batch_images
        data = replace(recipe.data, name="synthetic", split=None, train_images=2 * batch, test_images=1)
        split = load_data(replace(recipe, data=data), self.request.options).train
        mean = mean_image(split) if recipe.augment.mean == "image" else None
        about = {"augment": recipe.augment, "seed": recipe.seed, "mean": mean, "dtype": self.place.dtype}
        order = Order(2 * batch, batch, recipe.seed)
        ids = order.epoch(0)
        return Resident(split, Setting(**about, device=self.place.device)), [order.batch(ids, i) for i in (0, 1)]

    def _pieces(self, number: int) -> list[tuple[Tensor, Tensor]]:
        batch = self.mixing(*self.data.batch(self.ids[number % 2], 0, True), number)
        most = self.request.options.micro_batch_images
        return list(zip(*(micro_batches(t, most) for t in batch), strict=True))

    def once(self, number: int = 0) -> None:
        """One step, with the batch it needs."""
        with record_function(STEP):
            with self.step.phase(_DATA):
                pieces = self._pieces(number)
            lr = self.request.recipe.lr_at(number, _STEPS_PER_EPOCH)
            self.step(pieces, self.request.batch_images, number, lr)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Steps in this block run operator by operator, whatever the request compiles or captures."""
        before = self.step.forward, self.step.graph
        self.step.forward, self.step.graph = self.step.parallel, None
        try:
            yield
        finally:
            self.step.forward, self.step.graph = before

    @contextmanager
    def uncaptured(self) -> Iterator[None]:
        """Steps in this block launch their kernels one by one: compiled ones where the request compiles."""
        before, self.step.graph = self.step.graph, None
        try:
            yield
        finally:
            self.step.graph = before

    def synchronize(self) -> None:
        if self.place.device.type == "cuda":
            torch.cuda.synchronize()

    def warm_up(self) -> float:
        """Seconds of the first steps: compilation, capture, allocation, the optimiser's state."""
        start = time.perf_counter()
        if self.step.graph is not None:
            self.step.warm_up(self._pieces(0), self.request.batch_images)
        self.seconds_per_step(WARM_UP_STEPS)
        return time.perf_counter() - start

    def seconds_per_step(self, steps: int) -> float:
        """Wall seconds without a profiler, the device idle at both ends."""
        self.synchronize()
        start = time.perf_counter()
        for i in range(steps):
            self.once(i)
        self.synchronize()
        return (time.perf_counter() - start) / steps
