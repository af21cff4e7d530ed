"""Training steps: images/s and MFU of the systems' networks in bf16, and the device time of a step by kernel.

The step is the trainer's (bench.case.make_step): forward, loss, backward, gradient norm and fused SGD, on a batch of
random images on the device. `python -m bench.gpu.steps NETWORK [--dry]` is the background process that compiles one
network in advance, into the cache of compiled code that the timed rows use.
"""

from __future__ import annotations

import functools
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from imnet_kernels import tier

from imnet import device
from imnet.launch import World
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.step import Batch, TrainStep

from .. import machine
from ..case import make_step, plain, train_flops
from ..clock import Timing, windows
from .plan import DEVICE, HOST, Figures, Row, Setting

ROUNDS, WINDOW_STEPS, WARM_STEPS, PROFILED_STEPS, TOP = 7, 10, 5, 3, 15


@dataclass(frozen=True)
class Net:
    """A network with the image size and batch size that its system trains it with."""

    model: str
    px: int
    channels: int
    classes: int
    batch: int

    @property
    def label(self) -> str:
        return f"{self.model}@{self.px}, {self.batch}"

    @property
    def job(self) -> str:
        """The name of the background job that compiles it."""
        return f"compiled {self.label}"

    @property
    def recipe(self) -> Recipe:
        return plain(self.model, self.px, self.channels, self.classes, self.batch)


NETS = (
    Net("wrn36_5", 64, 3, 1000, 256),
    Net("wrn28_10", 28, 1, 10, 256),
    Net("shake_shake26_2x96d", 28, 1, 10, 256),
    Net("densenet_bc100_12", 28, 1, 10, 128),
    Net("resnet50", 224, 3, 1000, 256),
)
DRY_NETS = (Net("wrn10_1", 16, 3, 10, 8), Net("shake_shake26_2x32d", 8, 3, 10, 4))


def nets(dry: bool) -> tuple[Net, ...]:
    return DRY_NETS if dry else NETS


def net_of(label: str, dry: bool) -> Net:
    return next(net for net in nets(dry) if net.label == label)


@dataclass(frozen=True)
class Variant:
    """How a step runs; ``kernels`` is the tier of our kernels. ``cost_s``: at most, on an H100, 2026-11-26."""

    name: str
    cost_s: float
    compile: bool = False
    graphs: bool = False
    kernels: str = "reference"

    @property
    def timed(self) -> int:
        """DEVICE for a replayed graph, which needs the processor once per step; else HOST, for many launches."""
        return DEVICE if self.graphs else HOST


# In order of value: the default of training, its options, and variants that only explain the others.
VARIANTS = (
    Variant("captured + our kernels", 8.0, graphs=True, kernels="auto"),
    Variant("compiled + captured", 8.0, compile=True, graphs=True),
    Variant("captured", 6.0, graphs=True),
    Variant("compiled", 7.0, compile=True),
    Variant("eager", 8.0),
)


def step_rows(setting: Setting) -> Iterator[Row]:
    """The rows by variant, each for all networks before the next variant."""
    for variant in VARIANTS:
        for net in nets(setting.dry)[: 1 if setting.dry and variant is not VARIANTS[0] else None]:
            yield _row("steps", measure, net, variant, setting, variant.cost_s)


def profile_rows(setting: Setting) -> Iterator[Row]:
    """Rows with the kernels of a captured step by their time: with our kernels, compiled, and with torch's kernels."""
    for variant in (variant for variant in VARIANTS if variant.graphs):
        for net in nets(setting.dry)[: 1 if setting.dry else None]:
            cost_s = variant.cost_s + (8.0 if "densenet" in net.model else 2.0)
            yield _row("profile", profiled, net, variant, setting, cost_s)


def _row(part: str, work: Any, net: Net, variant: Variant, setting: Setting, cost_s: float) -> Row:
    needs = frozenset({net.job} if variant.compile else set())
    call = functools.partial(in_tier, work, net, variant, setting)
    return Row(part, net.label, variant.name, cost_s, call, variant.timed, needs)


def jobs(wanted: set[str], setting: Setting) -> Iterator[tuple[str, list[str]]]:
    """(name, command) of the compilations among the wanted background jobs."""
    for net in nets(setting.dry):
        if net.job in wanted:
            command = [sys.executable, "-m", f"{__package__}.steps", net.label, *(["--dry"] if setting.dry else [])]
            yield net.job, command


def in_tier(work: Any, net: Net, variant: Variant, setting: Setting, limit_s: float = 0.0) -> Figures:
    if not setting.dry:  # a dry run need not translate the same network again for every row
        torch._dynamo.reset()
    with tier.using(variant.kernels, captured=variant.graphs and not variant.compile):
        found = work(net, variant, setting)
        families = ("batch_norm", "dense_stage", "shake_shake", "shake_batch_norm")
        used = {family: tier.choose(family, setting.device) for family in families}
    return found | {"kernels": used}


def _options(variant: Variant, setting: Setting) -> RunOptions:
    """The variant's run options; a dry run neither captures nor compiles here (see ``_compile_dry``)."""
    real = not setting.dry
    chosen: dict[str, Any] = {"device": setting.device, "precision": "bf16"}
    return RunOptions(**chosen, compile=variant.compile and real, cuda_graphs=variant.graphs and real)


def open_step(net: Net, variant: Variant, setting: Setting) -> tuple[TrainStep, Batch]:
    """The trainer's step and one batch, before any warm-up."""
    torch.manual_seed(0)
    options = _options(variant, setting)
    place = device.resolve(options)
    step = make_step(net.recipe, options, place, World())
    _compile_dry(step, variant, setting)
    shape = (net.batch, net.channels, net.px, net.px)
    images = torch.randn(shape, device=place.device).to(torch.bfloat16, memory_format=torch.channels_last)
    return step, (images, torch.randint(0, net.classes, (net.batch,), device=place.device))


def _compile_dry(step: TrainStep, variant: Variant, setting: Setting) -> None:
    if variant.compile and setting.dry:
        step.forward = torch.compile(step.parallel, backend=setting.backend)


def measure(net: Net, variant: Variant, setting: Setting) -> Figures:
    """Rates of one network in one variant; raises ArithmeticError if a loss or gradient is not finite."""
    machine.forget_peak()
    step, batch = open_step(net, variant, setting)
    batches = [batch]
    start = time.perf_counter()
    step.warm_up(batches, net.batch)
    warm_s = time.perf_counter() - start
    losses = [step(batches, net.batch, i, 0.01) for i in range(setting.few(WARM_STEPS))]
    if not all(math.isfinite(float(loss)) and not bool(bad) for loss, bad in losses):
        raise ArithmeticError("a loss or gradient is not finite; nothing was timed")
    inner = setting.few(WINDOW_STEPS)
    taken = windows({"step": lambda: step(batches, net.batch, 0, 0.01)}, setting.few(ROUNDS), inner)["step"]
    times = Timing.of([window.wall_s for window in taken])
    peak = machine.matmul_flops_per_s(setting.device, torch.bfloat16)
    return {
        "batch": net.batch,
        "loss": float(losses[-1][0]) / net.batch,
        "warm_up_s": round(warm_s, 1),
        "step_ms": round(times.median_s * 1e3, 3),
        "step_ms_iqr": round(times.iqr_s * 1e3, 3),
        "images_per_s": round(net.batch / times.median_s, 1),
        "mfu": round(net.batch * train_flops(net.recipe) / times.median_s / peak, 4),
        "peak_gib": round(machine.peak_bytes(step.place.device) / 2**30, 2),
        "n": times.n,
        "steps_a_window": inner,
    }


def profiled(net: Net, variant: Variant, setting: Setting) -> Figures:
    """The table of kernels of imnet-profile, limited to the TOP kernels by time."""
    from ..profile.step import top_kernels
    from ..profile.work import Work

    steps, work = setting.few(PROFILED_STEPS), Work(net.recipe, _options(variant, setting))
    _compile_dry(work.step, variant, setting)
    return top_kernels(work, steps, TOP) | {"batch": net.batch, "n": steps}


def compile_ahead(label: str, dry: bool) -> int:
    """Compile a network's forward and backward pass as the timed rows will, to fill the cache of compiled code."""
    net = net_of(label, dry)
    variant = next(variant for variant in VARIANTS if variant.name == "compiled")
    setting = Setting(dry=dry, scratch=Path())
    with tier.using(variant.kernels):
        step, batch = open_step(net, variant, setting)
        step.warm_up([batch], net.batch)
        loss, _ = step([batch], net.batch, 0, 0.01)
    print(f"{label}: loss {float(loss) / net.batch:.3f}")
    return 0


if __name__ == "__main__":
    sys.exit(compile_ahead(sys.argv[1], "--dry" in sys.argv))
