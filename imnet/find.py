"""imnet-train --find-lr and --find-batch-size: measurements from a few steps, without making a run."""

from __future__ import annotations

import contextlib
import io
import itertools
import math
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from imnet import device, ensemble, models
from imnet.command import die_with
from imnet.data.order import micro_batches
from imnet.errors import DeviceError, UsageError
from imnet.files import check_output, write_atomic
from imnet.from_recipe import build_network, build_step, prepare
from imnet.launch import World, current_world
from imnet.mixing import Mixing
from imnet.recipe import Recipe
from imnet.report.plots import running_mean
from imnet.resources import lacking
from imnet.run_options import RunOptions
from imnet.start import memory_freed
from imnet.step import TrainStep

T = TypeVar("T")
FIRST_LR, LAST_LR, NUM_STEPS = 1e-6, 10.0, 100
WINDOW, DIVERGED = 7, 4.0
"""The number of steps over which a loss is averaged, centred so that the mean does not lag; and the multiple of the
lowest loss at which the test ends (fastai's number)."""
PICTURE = Path("find-lr.png")
DRAWN_BY = {"Software": "imnet --find-lr"}
STEPS_TIMED = 4
IMAGES_TIMED = 64
"""The most images at once of the steps from which the time of a training is estimated."""
NEAR = 0.95
"""Share of the best images/s that counts as fast."""


@dataclass(frozen=True)
class Curve:
    """The result of a range test: learning rate and loss of each step."""

    lrs: list[float]
    losses: list[float]

    @property
    def smoothed(self) -> list[float]:
        return running_mean(self.losses, WINDOW)

    @property
    def suggested(self) -> float | None:
        """The rate at which the smoothed loss falls fastest against the rate's logarithm; None if it never falls."""
        mean, reach = self.smoothed, WINDOW // 2
        falls = [(mean[i + reach] - mean[i - reach], self.lrs[i]) for i in range(reach, len(mean) - reach)]
        least, rate = min(falls, default=(0.0, 0.0))
        return rate if least < 0 else None


def lr(recipe: Recipe, options: RunOptions, picture: Path = PICTURE) -> str:
    """Run Smith's range test (arXiv 1506.01186) with the recipe's own steps; writes ``picture``, returns the text."""
    recipe, told = _one_band(recipe, options)
    check_output(picture, DRAWN_BY["Software"].encode(), "the picture of --find-lr")
    with _alone("--find-lr", options) as (place, threads):
        # No EMA, and no captured or compiled step: they do not pay off in 100 steps.
        plain = replace(recipe, ema_decay=None, ema_warmup=False)
        options = replace(options, compile=False, cuda_graphs=False)
        setup, step = prepare(plain, options, place, World(), threads)
        batches = (batch for epoch in itertools.count() for batch in setup.train.epoch(epoch))
        curve = range_test(step, batches, Mixing(plain, 0), options.micro_batch_images)
    write_atomic(picture, _picture(curve, recipe))
    tried = f"{len(curve.lrs)} steps of {recipe.data.batch_images} images, lr {curve.lrs[0]:.0e} to {curve.lrs[-1]:.2g}"
    drawn = f"picture    {picture}" + (f"; no run is made, so {options.out} is left alone" if options.out else "")
    if curve.suggested is None:
        return f"{told}lr         the loss falls nowhere in {tried}\n{drawn}"
    asked = curve.suggested * recipe.optim.lr / recipe.scaled_lr  # as --lr is given: see lr_base_images
    return (
        f"{told}lr         {recipe.scaled_lr:.2g} in the recipe; "
        f"the loss falls steepest at {curve.suggested:.2g} ({tried})\n"
        f"try        --lr {asked:.2g}, as the schedule's highest\n"
        f"{drawn}"
    )


def range_test(step: TrainStep, batches: Iterator[tuple[Tensor, Tensor]], mixing: Mixing, most: int | None) -> Curve:
    """Train at an exponentially rising rate until the loss is more than DIVERGED times its lowest, or not finite."""
    lrs: list[float] = []
    losses: list[float] = []
    with contextlib.closing(batches):  # pyright: ignore[reportArgumentType]
        for number, batch in enumerate(itertools.islice(batches, NUM_STEPS)):
            rate = FIRST_LR * (LAST_LR / FIRST_LR) ** (number / (NUM_STEPS - 1))
            pieces = list(zip(*(micro_batches(t, most) for t in mixing(*batch, number)), strict=True))
            loss, bad = step(pieces, len(batch[1]), number, rate)
            mean = float(loss) / len(batch[1])
            if bad or not math.isfinite(mean) or mean > DIVERGED * min(losses, default=math.inf):
                break
            lrs.append(rate)
            losses.append(mean)
    return Curve(lrs, losses)


def _picture(curve: Curve, recipe: Recipe) -> bytes:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(curve.lrs, curve.losses, alpha=0.3)
    axes.plot(curve.lrs, curve.smoothed, color="C0")
    if curve.suggested is not None:
        axes.axvline(curve.suggested, linestyle="--", label=f"falls steepest: {curve.suggested:.2g}")
    axes.axvline(recipe.scaled_lr, linestyle=":", color="grey", label=f"{recipe.name}: {recipe.scaled_lr:.2g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    axes.legend()
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=120, metadata=DRAWN_BY)
    return out.getvalue()


@dataclass(frozen=True)
class Fit:
    """A batch size that fits, with its speed and peak memory."""

    images: int
    images_per_s: float
    peak_bytes: int


def batch_size(recipe: Recipe, options: RunOptions) -> str:
    """Measure memory and images/s of growing batches; returns the text. Only on a GPU: on a CPU the system would kill
    the process without a message when memory runs out."""
    recipe, told = _one_band(recipe, options)
    with _alone("--find-batch-size", options) as (place, _):
        if place.device.type != "cuda":
            what = "got --find-batch-size on a CPU, where too large a batch ends the process without a word"
            raise DeviceError(what, hint="--dry-run estimates the memory of a --batch-size")
        fits, failed = grow(recipe, place)
        free = torch.cuda.mem_get_info(place.device)[1]
    if not fits:
        raise DeviceError("not even two images fit", hint="take a smaller network or smaller images")
    lines = [f"{f.images:>8} images  {f.images_per_s:>10,.0f} images/s  {f.peak_bytes / 2**30:6.2f} GiB" for f in fits]
    end = f"; {failed} images did not" if failed else ", all that were tried"
    best = max(f.images_per_s for f in fits)
    fast = next(f.images for f in fits if f.images_per_s >= NEAR * best)
    lines.append(f"fits       {fits[-1].images} images of {free / 2**30:.0f} GiB{end}; the step as it is, not compiled")
    lines.append(f"try        --batch-size {fast}: the smallest within {1 - NEAR:.0%} of the fastest")
    scaled = f"the recipe's lr is for {recipe.data.batch_images}: --lr-base-images {recipe.data.batch_images} scales it"
    return told + "\n".join([*lines, f"           {scaled}"])


def _one_band(recipe: Recipe, options: RunOptions) -> tuple[Recipe, str]:
    """(recipe to try, line for the user); of an ensemble only the network of the first band is tried."""
    bands = options.bands_of(recipe)
    if not bands:
        return recipe, ""
    told = f"bands      {bands[0]} alone was tried, one network of {len(bands)}; --band K tries another\n"
    return ensemble.of_band(recipe, bands[0]), told


def grow(recipe: Recipe, place: device.Place, most: int = 1 << 16) -> tuple[list[Fit], int | None]:
    """Run the recipe's step on 2, 4, 8, ... random images until a batch does not fit; returns the batches that fit, and
    the size that did not, or None."""
    net = build_network(recipe, place)
    step = build_step(recipe, net, place, World(), compile=False, graphs=False)
    fits: list[Fit] = []
    for images in (1 << i for i in range(1, most.bit_length())):
        try:
            fits.append(_fit(step, recipe, images, place))
        except RuntimeError as error:
            # cuDNN, in its search for the fastest algorithm, says of those without room for their memory only this.
            if lacking(error) is None and not (fits and "unable to find an engine to execute" in str(error)):
                raise
            return fits, images
    return fits, None


def _fit(step: TrainStep, recipe: Recipe, images: int, place: device.Place) -> Fit:
    on_gpu = place.device.type == "cuda"
    if on_gpu:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(place.device)
    rate = images / seconds(step, recipe, images, place)
    return Fit(images, rate, torch.cuda.max_memory_allocated(place.device) if on_gpu else 0)


def seconds(step: TrainStep, recipe: Recipe, images: int, place: device.Place) -> float:
    """The time of a step on ``images`` random images, the fastest of a few."""
    shape = (images, recipe.data.channels, recipe.input_px, recipe.input_px)
    x = torch.randn(shape, device=place.device).to(place.dtype, memory_format=torch.channels_last)
    y = torch.zeros(images, dtype=torch.int64, device=place.device)
    taken = []
    for _ in range(STEPS_TIMED):
        start = time.perf_counter()
        float(step([(x, y)], images, 0, 1e-9)[0])  # waits
        taken.append(time.perf_counter() - start)
    return min(taken)


def seconds_an_image(recipe: Recipe, options: RunOptions) -> float:
    """The time of an image in a few steps of the network, neither compiled nor captured; no memory stays in use.

    A process that will start ranks on GPUs leaves the measurement to another one: CUDA never gives back all memory of a
    process, here of the first rank's GPU, and a GPU in exclusive mode is for one process only.
    """
    if device.kind_of(options) == "cpu" or options.num_ranks == 1 or current_world().size > 1:
        with memory_freed():
            return _seconds_an_image(recipe, options)
    device.check_gpus(options.num_ranks)
    return apart(_seconds_an_image, recipe, options)


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """``function(*arguments)``, computed by a process of its own, which ends with this one."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _only_help, (os.getpid(),)) as other:
        return other.submit(function, *arguments).result()


def _only_help(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the parent's
    die_with(parent)()


def _seconds_an_image(recipe: Recipe, options: RunOptions) -> float:
    place = device.resolve(options, current_world().local_rank)
    images = min(recipe.data.batch_images, options.micro_batch_images or IMAGES_TIMED, IMAGES_TIMED)
    with device.threads(options), models.seeing(recipe.model, recipe.input_px):
        step = build_step(recipe, build_network(recipe, place), place, World(), compile=False, graphs=False)
        return seconds(step, recipe, images, place) / images


@contextlib.contextmanager
def _alone(word: str, options: RunOptions) -> Iterator[tuple[device.Place, int]]:
    """The device of a single process and its number of threads, set for a block; UsageError for several ranks."""
    if options.num_ranks > 1 or current_world().size > 1:
        raise UsageError(f"got {word} with several ranks; allowed: one", hint="leave --gpus and --procs out")
    place = device.resolve(options)
    with device.threads(options) as threads:
        yield place, threads
