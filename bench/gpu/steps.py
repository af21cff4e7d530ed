"""Training steps: images/s and MFU of the systems' networks, bf16 channels_last, in six variants.

The step is the trainer's own (imnet.step.TrainStep: forward, loss, backward, norm of the gradient, fused SGD). Batches
are made once on the device; the last variant also gathers and augments each batch there from a resident uint8 store.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from imnet_kernels import augment, tier

from imnet.device import Place
from imnet.launch import World
from imnet.models import build
from imnet.recipe import SGD, Augment, Constant, Data, Recipe
from imnet.step import Batch, TrainStep

from . import timing
from .rows import Setting, Task

WINDOWS, WINDOW_STEPS, WARM_STEPS = 7, 10, 5
STORED_IMAGES = 8192


@dataclass(frozen=True)
class Net:
    """One line of performance.md section 1. Rates are images/s on one H200 (790 TFLOP/s, 4.3 TB/s), predicted.

    ``gflop`` to train on one image; ``ideal`` (unfused, with BN fused): the byte model's floor.
    """

    model: str
    px: int
    channels: int
    classes: int
    batch: int
    gflop: float
    compute_limit: int
    ideal: tuple[int, int]
    target: int
    stretch: int | None = None

    @property
    def label(self) -> str:
        return f"{self.model}@{self.px}, {self.batch}"


# performance.md section 1, in its order.
NETS = (
    Net("wrn36_5", 64, 3, 1000, 256, 42.32, 18_667, (10_800, 12_800), 8_800, 9_700),
    Net("wrn28_10", 28, 1, 10, 256, 24.09, 32_801, (22_700, 25_500), 18_000),
    Net("shake_shake26_2x96d", 28, 1, 10, 256, 17.35, 45_537, (24_800, 30_200), 20_500),
    Net("densenet_bc100_12", 28, 1, 10, 128, 1.32, 598_000, (33_000, 44_000), 45_000),
    Net("resnet50", 64, 3, 1000, 512, 1.99, 398_000, (100_000, 130_000), 105_000),
    Net("resnet50", 224, 3, 1000, 256, 24.30, 32_512, (8_200, 10_600), 8_500, 9_900),
)
DRY_NETS = (
    Net("wrn10_1", 16, 3, 10, 8, 0.05, 1, (1, 1), 1),
    Net("shake_shake26_2x32d", 8, 3, 10, 4, 0.05, 1, (1, 1), 1),
)


@dataclass(frozen=True)
class Variant:
    """``kernels``: a tier for every family, "best" for the fastest that is built; ``data``: augment in every step."""

    name: str
    compile: bool = False
    graphs: bool = False
    kernels: str = "reference"
    data: bool = False


VARIANTS = (
    Variant("eager"),
    Variant("graphs", graphs=True),
    Variant("graphs + kernels", graphs=True, kernels="best"),
    Variant("compile", compile=True),
    Variant("compile + graphs", compile=True, graphs=True),
    Variant("compile + kernels", compile=True, kernels="best"),
    Variant("compile + graphs + kernels + data", compile=True, graphs=True, kernels="best", data=True),
)


def tasks(setting: Setting) -> Iterator[Task]:
    """What needs no compiler first, for every network; compiling costs a minute or so each."""
    yield "peak", "matmul 8192 bf16", lambda: {"tflop_per_s": None if setting.dry else peak_flops_per_s() / 1e12}
    for variant in VARIANTS:
        for net in DRY_NETS[: 1 if variant.compile else 2] if setting.dry else NETS:
            yield net.label, variant.name, _work(net, variant, setting)


@lru_cache(maxsize=1)
def peak_flops_per_s() -> float:
    return timing.matmul_flops_per_s()


def best_tier(device: str) -> str:
    """cuda where it is built, else triton, else (on a CPU) what there is."""
    found = [name for name in ("cuda", "triton", "host") if tier.missing(name, device) is None]
    return found[0] if found else "reference"


def _work(net: Net, variant: Variant, setting: Setting) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        torch._dynamo.reset()
        kernels = best_tier(setting.device) if variant.kernels == "best" else variant.kernels
        with tier.using(kernels):
            return measure(net, variant, setting) | {"kernels": kernels}

    return work


def recipe_of(net: Net) -> Recipe:
    """What the step reads: SGD with Nesterov momentum, as the systems train."""
    return Recipe(
        name="bench",
        model=net.model,
        data=Data(
            name="synthetic", image_px=net.px, channels=net.channels, num_classes=net.classes, batch_images=net.batch
        ),
        augment=Augment(mean=(0.5,), std=(0.25,)),
        optim=SGD(lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4),
        schedule=Constant(),
        epochs=1,
    )


def make_step(net: Net, variant: Variant, setting: Setting) -> TrainStep:
    torch.manual_seed(0)
    place = Place(torch.device(setting.device), "bf16", "benchmark")
    network = build(net.model, net.classes, net.channels).to(place.device).to(memory_format=torch.channels_last)
    graphs = variant.graphs and not setting.dry
    compile = variant.compile and not setting.dry
    step = TrainStep(network, recipe_of(net), place, World(), compile=compile, graphs=graphs, backend="auto")
    if variant.compile and setting.dry:
        step.forward = torch.compile(step.parallel, backend="aot_eager")  # the C++ of a CPU build would take a minute
    return step


def batches_of(net: Net, setting: Setting, data: bool) -> Callable[[int], Batch]:
    """Step number -> a batch: one made once, or a fresh one gathered and augmented on the device."""
    device = setting.device
    num_stored = 4 * net.batch if setting.dry else max(STORED_IMAGES, 2 * net.batch)
    labels = torch.randint(0, net.classes, (num_stored,), device=device)
    store = torch.randint(0, 256, (num_stored, net.px, net.px, net.channels), dtype=torch.uint8, device=device)
    common = {"mean": 0.5, "std": 0.25, "dtype": torch.bfloat16, "hflip": "random", "pad_px": 4, "seed": 1}

    def fresh(number: int) -> Batch:
        ids = torch.randint(0, num_stored, (net.batch,), device=device)
        return augment(store, ids, epoch=number, **common), labels[ids]

    once = fresh(0)
    return fresh if data else lambda number: once


def measure(net: Net, variant: Variant, setting: Setting) -> dict[str, Any]:
    """Rates of one network in one variant; raises where a loss or gradient is not finite."""
    torch.backends.cudnn.benchmark = True
    step, batch = make_step(net, variant, setting), batches_of(net, setting, variant.data)
    if not setting.dry:
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    step.warm_up([batch(0)], net.batch)
    warm_s = time.perf_counter() - start
    losses = [step([batch(i)], net.batch, i, 0.01) for i in range(1 if setting.dry else WARM_STEPS)]
    if not all(bool(torch.isfinite(loss)) and not bool(bad) for loss, bad in losses):
        raise ArithmeticError("a loss or gradient is not finite; nothing was timed")
    found: dict[str, Any] = {
        "batch": net.batch,
        "warm_up_s": round(warm_s, 1),
        "loss": float(losses[-1][0]) / net.batch,
    }
    if setting.dry:
        return found | {"images_per_s": None, "mfu": None}
    seconds, iqr = timing.window_s(lambda i: step([batch(i)], net.batch, i, 0.01), WINDOWS, WINDOW_STEPS)
    rate = net.batch / seconds
    return found | {
        "step_ms": round(seconds * 1e3, 3),
        "step_ms_iqr": round(iqr * 1e3, 3),
        "images_per_s": round(rate, 1),
        "mfu": round(rate * net.gflop * 1e9 / peak_flops_per_s(), 4),
        "peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "of_target": round(rate / net.target, 3),
        "target_images_per_s": net.target,
        "stretch_images_per_s": net.stretch,
        "floor_ms": round(net.batch / net.compute_limit * 1e3, 3),
        "ideal_images_per_s": net.ideal,
        "n": WINDOWS,
        "steps_a_window": WINDOW_STEPS,
    }
