"""Images per second of a recipe on this machine: the loader alone, the model alone and both, which of the two limits
the rate, and a comparison with figures published for a card.

The three are measured alternately, window by window, in wall time (median and IQR); the first step, with compilation
and allocation, is reported separately. MFU is the rate of counted FLOPs over that of a matrix product measured in the
same precision, both in the time of bench/clock.py.

Published figures are data with their sources (reference_hardware.json). If there are several for a network on a card,
the fastest is the reference, so that a slow pipeline of others does not flatter us.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.capture import NotCapturableError
from imnet.command import suggest
from imnet.data.pipelines import Batch
from imnet.errors import UsageError
from imnet.recipe import Recipe
from imnet.recipes import by_name
from imnet.run_options import RunOptions

from . import machine
from .case import Case, build, plain, synthetic, train_flops, with_batch
from .clock import Call, Timing, Window, wait, windows
from .form import short

WINDOW_S = 0.25
ROUNDS = 40
PARTS = ("loader", "model", "end to end")
FILE = Path(__file__).resolve().parent / "reference_hardware.json"
# A step of about this many FLOPs takes seconds on two cores; longer steps would take a benchmark too long.
CPU_STEP_FLOPS = 400e9
CPU_LEAST_BATCH = 8


def measure(
    recipe: Recipe, options: RunOptions, seconds: float = 20.0, parts: tuple[str, ...] = PARTS
) -> dict[str, Any]:
    """One row: the rates of ``parts``, the time of the first step, peak memory, MFU, and which part is the limit.

    ``seconds`` is the time for all windows; at least three of each part are taken, however long a step is.
    """
    case = build(recipe if options.data_dir else as_long(synthetic(recipe), recipe), options)
    on_gpu = case.place.device.type == "cuda"
    machine.forget_peak()
    loader, both = case.batches(), case.batches()
    batch = next(loader)
    first_s = _first_step(case, batch, options.cuda_graphs)
    calls: dict[str, Call] = {
        "loader": lambda: next(loader),
        "model": lambda: case.train(batch),
        "end to end": lambda: case.train(next(both)),
    }
    taken = windows({name: calls[name] for name in parts}, ROUNDS, slice_s=WINDOW_S, budget_s=seconds)
    for iterator in (loader, both):
        iterator.close()
    rates = {name: rate(case.batch_images, taken[name]) for name in parts}
    clock = {name: found["images_per_s_by_clock"] for name, found in rates.items()}
    return {
        **_about(case, recipe),
        "rates": rates,
        "first_step_s": first_s,
        "peak_memory_bytes": machine.peak_bytes(case.place.device),
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


def _first_step(case: Case, batch: Batch, graphs: bool | None) -> float:
    """Seconds of the warm-up and the first step: compilation, allocation, capture. As in training, a step that cannot
    be captured runs without a CUDA graph, unless ``graphs`` asks for one."""
    start = time.perf_counter()
    try:
        case.step.warm_up([batch], case.batch_images)
    except NotCapturableError:
        if graphs:
            raise
        case.step.graph = None
    case.train(batch)
    wait(case.place.device)
    return time.perf_counter() - start


def rate(num_images: int, taken: list[Window]) -> dict[str, Any]:
    """Images per second over windows: median and IQR in wall time, and the best in the time of bench/clock.py."""
    wall = Timing.of([num_images / w.wall_s for w in taken])
    clock = min(w.seconds for w in taken)
    return {
        "images_per_s": wall.median_s,
        "images_per_s_iqr": wall.iqr_s,
        "images_per_s_by_clock": num_images / max(clock, 1e-9),
        "n": wall.n,
    }


def _roofs(case: Case, images_per_s: float) -> dict[str, Any]:
    """FLOPs per image as counted, the measured peak and bandwidth, and the share of the peak (MFU)."""
    counted = train_flops(case.recipe)
    peak = machine.matmul_flops_per_s(case.place.device, case.place.dtype)
    return {
        "train_flops_per_image": counted,
        "matmul_flops_per_s": peak,
        "copy_bytes_per_s": machine.copy_bytes_per_s(case.place.device),
        "mfu": counted * images_per_s / peak,
    }


def bound(rates: dict[str, float]) -> str:
    """One line that names the limit, loader or model; ``rates`` are images per second in the time of bench/clock.py."""
    loader, model, both = (rates[name] for name in PARTS)
    slower = "loader" if loader < model else "model"
    figures = f"loader {short(loader)}, model {short(model)}, end to end {short(both)} images/s"
    return f"bound by the {slower}: {figures} ({both / min(loader, model):.0%} of the {slower} alone)"


@dataclass(frozen=True)
class Reference:
    """A published rate with the recipe that it is compared with; ``others`` are slower figures, as text."""

    card: str
    recipe: Recipe
    images_per_s: float
    hours: float | None
    precision: str
    source: str
    has_schedule: bool
    others: tuple[str, ...] = ()


def published() -> dict[str, Any]:
    """The contents of reference_hardware.json."""
    return json.loads(FILE.read_text())


def find_card(name: str) -> str:
    """The card's name as in the file, from a name in any case, with or without NVIDIA, GeForce and Tesla; raises
    UsageError for a card that is not in the file."""
    cards = list(published()["cards"])
    known = {_bare(card): card for card in cards}
    if _bare(name) in known:
        return known[_bare(name)]
    hint = suggest(name, cards) or f"allowed: {', '.join(cards)}"
    raise UsageError(f"got --against {name!r}, a card without published figures here", hint=hint)


def as_long(short: Recipe, recipe: Recipe) -> Recipe:
    """``short`` with so many epochs that a training sees as many images as one of ``recipe``. On how long a training
    takes depends whether it is compiled and has our kernels; of a data set of unknown size, one epoch is as in
    ``short``."""
    held = short.data.train_images
    assert held is not None, "synthetic() says how many images there are"
    images = recipe.data.train_images or published()["train_images"].get(recipe.data.name, held)
    return dataclasses.replace(short, epochs=math.ceil(recipe.epochs * images / held))


def _bare(name: str) -> str:
    words = name.lower().replace("nvidia", "").replace("geforce", "").replace("tesla", "")
    return "".join(words.split())


def references(card: str, models: list[str] | None = None) -> list[Reference]:
    """The fastest published figure of each network, size and data set on the card; ``models`` selects networks."""
    data = published()
    groups: dict[tuple[str, int, str], list[Reference]] = {}
    for row in data["rows"]:
        if row["card"] == card:
            reference = _reference(row, data["train_images"])
            # The same network and size has other rates on other data sets (ImageNet, Tiny ImageNet).
            key = (reference.recipe.model, row["px"], reference.recipe.data.name)
            groups.setdefault(key, []).append(reference)
    best = []
    for group in groups.values():
        ranked = sorted(group, key=lambda r: -r.images_per_s)
        others = tuple(f"{r.images_per_s:,.0f} images/s ({r.source})" for r in ranked[1:])
        # The published training time is kept even if the fastest rate comes from another source.
        hours = next((r.hours for r in group if r.hours is not None), None)
        best.append(dataclasses.replace(ranked[0], hours=hours, others=others))
    return _picked(best, models, card)


def _picked(found: list[Reference], models: list[str] | None, card: str) -> list[Reference]:
    if models is None:
        return found
    known = list(dict.fromkeys(r.recipe.model for r in found))
    for model in models:
        if model not in known:
            raise UsageError(f"got --models {model}; allowed for {card}: {', '.join(known)}", hint="choose among them")
    return [r for r in found if r.recipe.model in models]


def _reference(row: dict[str, Any], train_images: dict[str, int]) -> Reference:
    if "recipe" in row:
        recipe = by_name(row["recipe"])
    else:
        recipe = plain(row["model"], row["px"], row["channels"], row["num_classes"], row["batch_images"])
    if recipe.input_px != row["px"]:
        raise ValueError(f"{FILE.name}: {recipe.name} is at {recipe.input_px} px, the row at {row['px']}")
    hours = row.get("hours")
    rate = row.get("images_per_s")
    if rate is None:
        assert hours is not None, "a row has images_per_s or hours"
        rate = recipe.epochs * train_images[recipe.data.name] / (hours * 3600)
    return Reference(row["card"], recipe, rate, hours, row["precision"], row["source"], "recipe" in row)


def smaller_for_cpu(recipe: Recipe) -> Recipe:
    """The recipe with a batch small enough for a step to take seconds, not minutes, on a few cores."""
    batch = max(CPU_LEAST_BATCH, int(CPU_STEP_FLOPS / train_flops(recipe)))
    return with_batch(recipe, min(batch, recipe.data.batch_images))


def compared(reference: Reference, row: dict[str, Any]) -> dict[str, Any]:
    """A row of ``imnet-bench throughput --against`` from ``measure``'s row of the reference's recipe."""
    data, recipe = published(), reference.recipe
    card, counted = data["cards"][reference.card], row["train_flops_per_image"]
    rates = row["rates"]["end to end"]
    ours = rates["images_per_s"]
    images = recipe.epochs * data["train_images"][recipe.data.name] if reference.has_schedule else None
    return {
        "card": reference.card,
        "recipe": recipe.name,
        "model": recipe.model,
        "image_px": row["image_px"],
        "batch_images": row["batch_images"],
        "recipe_batch_images": recipe.data.batch_images,
        "precision": row["precision"],
        "images_per_s": ours,
        "images_per_s_iqr": rates["images_per_s_iqr"],
        "images_per_s_by_clock": rates["images_per_s_by_clock"],
        "n": rates["n"],
        "published_images_per_s": reference.images_per_s,
        "published_precision": reference.precision,
        "source": reference.source,
        "other_figures": list(reference.others),
        "ratio": ours / reference.images_per_s,
        "train_flops_per_image": counted,
        "share_of_peak": counted * rates["images_per_s_by_clock"] / row["matmul_flops_per_s"],
        "published_share_of_peak": _share_of_peak(reference, counted, card),
        "projected_hours": images / ours / 3600 if images else None,
        "published_hours": reference.hours,
    }


def _share_of_peak(reference: Reference, flops: float, card: dict[str, Any]) -> float | None:
    """The published rate's share of the card's peak as its maker states it; None if the file has no peak for it."""
    if card["peak_tflops"] is None:
        return None
    return flops * reference.images_per_s / (1e12 * card["peak_tflops"][reference.precision])
