"""1 to N ranks, really run: gloo processes on a CPU, one a GPU under NCCL; weak and strong scaling.

Weak: every rank keeps its batch, so that the ideal is equal time. Strong: the global batch is kept, so that the ideal
is time over N. Every rank has the same number of threads whatever N is, or one rank would have the others' cores.
Ranks wait for one another, so the figures are wall time of rank 0 and only mean something on a quiet machine.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from imnet import device, launch
from imnet.errors import DeviceError, UsageError
from imnet.ranks import run_ranks
from imnet.recipe import Recipe, replace
from imnet.run_options import RunOptions

from .case import build, synthetic
from .clock import Timing, wait

WARM_UP_STEPS = 3


def rows(recipe: Recipe, options: RunOptions, ranks: list[int], steps: int = 20) -> Iterator[dict[str, Any]]:
    """A row a number of ranks and kind; ``efficiency`` is against the fewest ranks, which are the first."""
    on_gpu = options.device != "cpu" and device.num_gpus() > 0
    most = device.num_gpus() if on_gpu else len(os.sched_getaffinity(0))
    first: dict[str, dict[str, Any]] = {}
    for num in ranks:
        batches = {"weak": recipe.data.batch_images * num, "strong": recipe.data.batch_images}
        where: dict[str, Any] = {"device": "cuda", "gpus": num} if on_gpu else {"device": "cpu", "procs": num}
        taken = _run(recipe, sorted(set(batches.values())), dataclasses.replace(options, **where), steps)
        for kind, batch in batches.items():
            about = {"kind": kind, "ranks": num, "batch_images": batch, "oversubscribed": num > most}
            row = about | taken[str(batch)]
            yield row | {"efficiency": efficiency(row, first.setdefault(kind, row))}


def about(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """What the rows are of."""
    on_gpu = options.device != "cpu" and device.num_gpus() > 0
    network = {"recipe": recipe.name, "model": recipe.model, "image_px": recipe.input_px}
    return network | {"backend": "nccl" if on_gpu else "gloo", "comm": dataclasses.asdict(recipe.comm)}


def threads_a_rank(options: RunOptions, ranks: list[int]) -> RunOptions:
    """The same with as many threads for every rank as the most ranks leave."""
    cores = len(os.sched_getaffinity(0))
    return dataclasses.replace(options, threads=options.threads or max(1, cores // max(ranks)))


def efficiency(row: dict[str, Any], first: dict[str, Any]) -> float:
    """Images a second a rank, over those of the fewest ranks: 1 is ideal for weak and for strong."""
    rate = row["batch_images"] / row["step_s"] / row["ranks"]
    return rate / (first["batch_images"] / first["step_s"] / first["ranks"])


def _with_batch(recipe: Recipe, batch: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, batch_images=batch))


def _run(recipe: Recipe, batches: list[int], options: RunOptions, steps: int) -> dict[str, Any]:
    """Start the ranks, each of which runs ``_rank``; what rank 0 wrote: {global batch: figures}."""
    num = options.gpus or options.procs or 1
    if options.gpus:
        device.check_gpus(options.gpus)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rank0.json"
        code = run_ranks(_rank, (recipe, batches, options, steps, str(out)), num, 0)
        if code or not out.is_file():
            raise DeviceError(f"{num} ranks ended with exit code {code}", hint="the rank's own line is above")
        return json.loads(out.read_text())


def _rank(recipe: Recipe, batches: list[int], options: RunOptions, steps: int, out: str) -> int:
    """One process: both kinds, one after the other; rank 0 writes."""
    place = device.resolve(options, launch.current_world().local_rank)
    with device.threads(options), launch.connected(place.device) as world:
        found = {batch: _steps(_with_batch(recipe, batch), options, world, steps) for batch in batches}
        if world.is_main:
            Path(out).write_text(json.dumps(found))
    return 0


def _steps(recipe: Recipe, options: RunOptions, world: launch.World, steps: int) -> dict[str, Any]:
    """``steps`` steps on batches of this rank's own, timed one by one between barriers."""
    case = build(synthetic(recipe, world.size), options, world)
    batches, seconds = case.batches(), []
    for i in range(WARM_UP_STEPS + steps):
        batch = next(batches)
        wait(case.place.device)
        world.barrier()
        start = time.perf_counter()
        case.train(batch, i)
        wait(case.place.device)
        world.barrier()
        seconds.append(time.perf_counter() - start)
    batches.close()
    timing = Timing.of(seconds[WARM_UP_STEPS:])
    taken = {"step_s": timing.median_s, "step_s_iqr": timing.iqr_s, "step_s_best": timing.best_s, "n": timing.n}
    gradient_bytes = sum(p.numel() * 4 for p in case.step.params)
    about = {"precision": case.place.precision, "threads_a_rank": torch.get_num_threads()}
    return taken | about | {"gradient_bytes": gradient_bytes}


def parse_ranks(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, which is always among them."""
    if most < 1:
        raise UsageError(f"got {most} ranks; allowed: 1 or more", hint="e.g. --procs 2")
    ranks = [1]
    while ranks[-1] * 2 < most:
        ranks.append(ranks[-1] * 2)
    return ranks if most == 1 else [*ranks, most]
