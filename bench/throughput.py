"""Images a second of a recipe on this machine: loader alone, model alone, both; and which of the two is the limit.

The three are measured in turn, window by window, by the wall's clock (median and distance of the quartiles); what a
compiler or an allocator does first is reported apart. MFU is counted FLOPs over what a matrix product reaches here in
the same precision, both by the clock of bench/clock.py.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable
from typing import Any

import torch

from imnet.data.pipelines import Batch
from imnet.recipe import Recipe
from imnet.run_options import RunOptions

from . import machine
from .case import Case, build, synthetic, train_flops
from .clock import Timing, Window, wait, windows
from .tables import short

WINDOW_S = 0.25
ROUNDS = 40
PARTS = ("loader", "model", "end to end")


def measure(
    recipe: Recipe, options: RunOptions, seconds: float = 20.0, parts: tuple[str, ...] = PARTS
) -> dict[str, Any]:
    """One row: the rates of ``parts``, the time of the first step, peak memory, MFU, the line that says what bounds.

    ``seconds`` is for the windows; at least three are taken, however long a step is.
    """
    case = build(recipe if options.data_dir else synthetic(recipe), options)
    on_gpu = case.place.device.type == "cuda"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    loader, both = case.batches(), case.batches()
    batch = next(loader)
    first_s = _first_step(case, batch)
    calls: dict[str, Callable[[], object]] = {
        "loader": lambda: next(loader),
        "model": lambda: case.train(batch),
        "end to end": lambda: case.train(next(both)),
    }
    taken = windows({name: calls[name] for name in parts}, ROUNDS, slice_s=WINDOW_S, budget_s=seconds)
    for iterator in (loader, both):
        iterator.close()
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rates = {name: rate(case.batch_images, taken[name]) for name in parts}
    clock = {name: found["images_per_s_by_clock"] for name, found in rates.items()}
    return {
        **_about(case, recipe),
        "rates": rates,
        "first_step_s": first_s,
        "peak_memory_bytes": peak,
        "peak_memory_of": "CUDA allocator" if on_gpu else "resident set of the process",
        **_roofs(case, clock["model" if "model" in parts else "end to end"]),
        "bound": bound(clock) if set(parts) == set(PARTS) else None,
    }


def _about(case: Case, recipe: Recipe) -> dict[str, Any]:
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "data": case.recipe.data.name,
        "image_px": case.recipe.input_px,
        "batch_images": case.batch_images,
        "precision": case.place.precision,
        "device": str(case.place.device),
        "clock": "wall time" if case.place.device.type == "cuda" else "CPU time per core",
        "compile": case.step.forward is not case.step.parallel,
        "cuda_graphs": case.step.graph is not None,
        "pipeline": case.pipeline.kind,
    }


def _first_step(case: Case, batch: Batch) -> float:
    """Seconds until the first step is done: compilation, allocation, capture."""
    start = time.perf_counter()
    case.step.warm_up([batch], case.batch_images)
    case.train(batch)
    wait(case.place.device)
    return time.perf_counter() - start


def rate(num_images: int, taken: list[Window]) -> dict[str, Any]:
    """Images a second over windows: median and quartile distance by the wall, the best by the folder's clock."""
    wall = Timing.of([num_images / w.wall_s for w in taken])
    clock = min(w.seconds for w in taken)
    return {
        "images_per_s": wall.median_s,
        "images_per_s_iqr": wall.iqr_s,
        "images_per_s_by_clock": num_images / max(clock, 1e-9),
        "n": wall.n,
    }


def _roofs(case: Case, images_per_s: float) -> dict[str, Any]:
    """FLOPs counted, peak and bandwidth measured, and the share of the peak."""
    counted = train_flops(case.recipe)
    peak = machine.matmul_flops_per_s(case.place.device, case.place.dtype)
    return {
        "train_flops_per_image": counted,
        "matmul_flops_per_s": peak,
        "copy_bytes_per_s": machine.copy_bytes_per_s(case.place.device),
        "mfu": counted * images_per_s / peak,
    }


def bound(rates: dict[str, float]) -> str:
    """Which of loader and model is the limit, in one line; images a second of each part, by the folder's clock."""
    loader, model, both = (rates[name] for name in PARTS)
    slower = "loader" if loader < model else "model"
    figures = f"loader {short(loader)}, model {short(model)}, end to end {short(both)} images/s"
    return f"bound by the {slower}: {figures} ({both / min(loader, model):.0%} of the {slower} alone)"
