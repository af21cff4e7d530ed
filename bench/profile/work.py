"""What `imnet-profile step` runs: a recipe's real step and data path on a synthetic set, its phases marked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
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
from ..clock import wait
from .trace import PHASES, STEP

_DATA, _FORWARD, _BACKWARD, _UPDATE = PHASES
_STEPS_PER_EPOCH = 100
"""Of the learning rate only: the figures do not depend on it."""
WARM_UP_STEPS = 2


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

    def __init__(self, recipe: Recipe, options: RunOptions, place: device.Place, nvtx: bool = False):
        self.recipe, self.options, self.place = recipe, options, place
        self.step = make_step(recipe, options, place, World(), RangedStep)
        self.step.nvtx = nvtx
        self.data, self.ids = self._build_data()
        self.mixing = Mixing(recipe, rank=0)

    @property
    def batch_images(self) -> int:
        return self.recipe.data.batch_images

    def _build_data(self) -> tuple[Resident, list[Tensor]]:
        recipe, batch = self.recipe, self.batch_images
        data = replace(recipe.data, name="synthetic", split=None, train_images=2 * batch, test_images=1)
        split = load_data(replace(recipe, data=data), self.options).train
        mean = mean_image(split) if recipe.augment.mean == "image" else None
        about = {"augment": recipe.augment, "seed": recipe.seed, "mean": mean, "dtype": self.place.dtype}
        order = Order(2 * batch, batch, recipe.seed)
        ids = order.epoch(0)
        return Resident(split, Setting(**about, device=self.place.device)), [order.batch(ids, i) for i in (0, 1)]

    def _pieces(self, number: int) -> list[tuple[Tensor, Tensor]]:
        batch = self.mixing(*self.data.batch(self.ids[number % 2], 0, True), number)
        most = self.options.micro_batch_images
        return list(zip(*(micro_batches(t, most) for t in batch), strict=True))

    def once(self, number: int = 0) -> None:
        """One step, with the batch it needs."""
        with record_function(STEP):
            with self.step.phase(_DATA):
                pieces = self._pieces(number)
            lr = self.recipe.lr_at(number, _STEPS_PER_EPOCH)
            self.step(pieces, self.batch_images, number, lr)

    @contextmanager
    def uncaptured(self, eager: bool = False) -> Iterator[None]:
        """Steps in this block launch their kernels one by one, compiled ones where the step is compiled; ``eager``:
        operator by operator."""
        before = self.step.forward, self.step.graph
        self.step.forward, self.step.graph = self.step.parallel if eager else self.step.forward, None
        try:
            yield
        finally:
            self.step.forward, self.step.graph = before

    def warm_up(self) -> float:
        """Seconds of the first steps: compilation, capture, allocation, the optimiser's state."""
        start = time.perf_counter()
        if self.step.graph is not None:
            self.step.warm_up(self._pieces(0), self.batch_images)
        self.seconds_per_step(WARM_UP_STEPS)
        return time.perf_counter() - start

    def seconds_per_step(self, steps: int) -> float:
        """Wall seconds without a profiler, the device idle at both ends."""
        wait(self.place.device)
        start = time.perf_counter()
        for i in range(steps):
            self.once(i)
        wait(self.place.device)
        return (time.perf_counter() - start) / steps
