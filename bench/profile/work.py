"""The work of `imnet-profile step`: a recipe's real step and data path on random images, with its phases marked."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from imnet import device
from imnet.fits import check_passes
from imnet.from_recipe import load_sources
from imnet.launch import World
from imnet.mixing import Mixing
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.step import TrainStep

from ..case import Case, make_step, synthetic
from ..clock import wait
from .trace import PHASES, STEP

_DATA, _FORWARD, _BACKWARD, _UPDATE = PHASES
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
        # The backward phase lasts until the update, or until the next loss (in a warm-up no update comes between).
        self._open = self.phase(_BACKWARD)
        self._open.__enter__()
        return loss

    def _update(self, loss: Tensor, bad: Tensor) -> None:
        self._end_backward()
        with self.phase(_UPDATE):
            super()._update(loss, bad)

    def _end_backward(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None


class Work:
    """A recipe's step and data path; the step is compiled and captured only if ``options`` ask for it."""

    def __init__(self, recipe: Recipe, options: RunOptions, nvtx: bool = False):
        self.recipe, self.place, world = synthetic(recipe), device.resolve(options), World()
        sources = load_sources(self.recipe, options, self.place, world)
        self.step = make_step(recipe, options, self.place, world, RangedStep)
        check_passes(recipe, self.step.net, sources.order, world.size, None)
        self.step.nvtx = nvtx
        self.case = Case(self.recipe, self.place, sources.train, self.step, Mixing(recipe, 0))
        self.batches = self.case.batches()

    def once(self, number: int = 0) -> None:
        """Load a batch and run one step on it."""
        with record_function(STEP):
            with self.step.phase(_DATA):
                batch = self.case.mixing(*next(self.batches), number)
            self.step([batch], self.case.batch_images, number, self.case.lr)

    @contextmanager
    def uncaptured(self, eager: bool = False) -> Iterator[None]:
        """Within this block steps run without their CUDA graph, still compiled if the step is compiled; with ``eager``
        they run operator by operator."""
        before = self.step.forward, self.step.graph
        self.step.forward, self.step.graph = self.step.parallel if eager else self.step.forward, None
        try:
            yield
        finally:
            self.step.forward, self.step.graph = before

    def warm_up(self) -> float:
        """Run the first steps and return their seconds: compilation, capture, allocation, the optimiser's state."""
        start = time.perf_counter()
        if self.step.graph is not None:
            self.step.warm_up([self.case.mixing(*next(self.batches), 0)], self.case.batch_images)
        self.seconds_per_step(WARM_UP_STEPS)
        return time.perf_counter() - start

    def seconds_per_step(self, steps: int) -> float:
        """Wall seconds per step, measured with the device idle before and after."""
        wait(self.place.device)
        start = time.perf_counter()
        for i in range(steps):
            self.once(i)
        wait(self.place.device)
        return (time.perf_counter() - start) / steps
