"""1 to N ranks, really run: gloo processes on a CPU, one a GPU under NCCL; weak and strong scaling.

Weak: every rank keeps its batch, so that the ideal is equal time. Strong: the global batch is kept, so that the ideal
is time over N. Every rank has the same number of threads whatever N is, or one rank would have the others' cores.
Ranks wait for one another, so the figures are wall time of rank 0 and only mean something on a quiet machine.

On paper (``predicted_rows``) a step of N ranks of up to thousands takes

    step = (fixed + images / rate) (1 + host + straggler log2 N) + all-reduce
    all-reduce = 2 (g-1)/g B/intra + 2 (m-1)/m B/(g inter) + buckets latency log2 N     g GPUs a node, m nodes, B bytes

which hides nothing of the communication behind the backward pass. Efficiency is against one GPU with the same images
per GPU (weak) or with the whole global batch (strong). Everything is predicted; nothing here is measured.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from imnet import device, launch
from imnet.errors import DeviceError, UsageError
from imnet.ranks import run_ranks
from imnet.recipe import Recipe
from imnet.resources import num_cores
from imnet.run_options import RunOptions

from .case import build, synthetic, with_batch
from .clock import Timing, wait

MIB = 2**20
STEPS, WARM_UP_STEPS, ALL_REDUCES = 20, 3, 10


def rows(recipe: Recipe, options: RunOptions, ranks: list[int], steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """A row a number of ranks and kind; ``efficiency`` is against the fewest ranks, which are the first.

    ``options.device`` is "cpu" wherever there is no GPU.
    """
    on_gpu = options.device != "cpu"
    most = device.num_gpus() if on_gpu else num_cores()
    first: dict[str, dict[str, Any]] = {}
    for num in ranks:
        batches = {"weak": recipe.data.batch_images * num, "strong": recipe.data.batch_images}
        where: dict[str, Any] = {"device": "cuda", "gpus": num} if on_gpu else {"device": "cpu", "procs": num}
        taken = _run(recipe, num, sorted(set(batches.values())), dataclasses.replace(options, **where), steps)
        for kind, batch in batches.items():
            about = {"kind": kind, "ranks": num, "batch_images": batch, "oversubscribed": num > most}
            row = about | taken[str(batch)]
            one = first.setdefault(kind, row)
            yield row | {"efficiency": efficiency(row, one), "predicted_efficiency": predicted_efficiency(row, one)}


def about(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """What the rows are of."""
    network = {"recipe": recipe.name, "model": recipe.model, "image_px": recipe.input_px}
    return network | {"backend": "gloo" if options.device == "cpu" else "nccl", "comm": dataclasses.asdict(recipe.comm)}


def threads_a_rank(options: RunOptions, ranks: list[int]) -> RunOptions:
    """The same with as many threads for every rank as the most ranks leave."""
    return dataclasses.replace(options, threads=options.threads or max(1, num_cores() // max(ranks)))


def efficiency(row: dict[str, Any], first: dict[str, Any]) -> float:
    """Images a second a rank, over those of the fewest ranks: 1 is ideal for weak and for strong."""
    rate = row["batch_images"] / row["step_s"] / row["ranks"]
    return rate / (first["batch_images"] / first["step_s"] / first["ranks"])


def predicted_efficiency(row: dict[str, Any], first: dict[str, Any]) -> float:
    """What the model on paper says of a row, from what one rank was measured to compute and the all-reduce alone to
    take: nothing is hidden behind the backward pass, and no rank waits for a slower one."""
    compute_s = first["step_s"] * row["batch_images"] / row["ranks"] / first["batch_images"]
    return efficiency(row | {"step_s": compute_s + row["all_reduce_s"]}, first)


def _run(recipe: Recipe, num: int, batches: list[int], options: RunOptions, steps: int) -> dict[str, Any]:
    """Start ``num`` ranks, each of which runs ``_rank``; what rank 0 wrote: {global batch: figures}."""
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
        found = {batch: _steps(with_batch(recipe, batch), options, world, steps) for batch in batches}
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
    gradients = torch.zeros(sum(p.numel() for p in case.step.params), device=case.place.device)
    about = {"precision": case.place.precision, "threads_a_rank": torch.get_num_threads()}
    return taken | about | {"gradient_bytes": 4 * gradients.numel(), "all_reduce_s": _all_reduce_s(gradients, world)}


def _all_reduce_s(gradients: torch.Tensor, world: launch.World) -> float:
    """Median seconds of the ranks' sum of as many fp32 numbers as there are gradients, with nothing beside it."""
    seconds = []
    for _ in range(WARM_UP_STEPS + ALL_REDUCES):
        world.barrier()
        start = time.perf_counter()
        world.all_reduce(gradients)
        wait(gradients.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP_STEPS:])


def parse_ranks(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, which is always among them."""
    if most < 1:
        raise UsageError(f"got {most} ranks; allowed: 1 or more", hint="e.g. --procs 2")
    ranks = [1]
    while ranks[-1] * 2 < most:
        ranks.append(ranks[-1] * 2)
    return ranks if most == 1 else [*ranks, most]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network on one GPU. ``images_per_s`` is its rate at a large batch, ``fixed_s`` what a step costs besides."""

    name: str
    num_params: int
    images_per_s: float
    fixed_s: float = 0.0
    gradient_bytes: int = 2
    """Bytes a parameter on the wire: 4 is fp32, 2 the bf16 hook."""
    bucket_mb: float = 25.0
    """MiB of fp32 gradients a bucket, as ``comm.bucket_mb``."""

    @property
    def num_bytes(self) -> int:
        return self.num_params * self.gradient_bytes

    @property
    def num_buckets(self) -> int:
        return max(1, math.ceil(4 * self.num_params / (self.bucket_mb * MIB)))

    def compute_s(self, images: float) -> float:
        return self.fixed_s + images / self.images_per_s


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Bandwidths in bytes/s that an all-reduce reaches: within a node, and of one GPU's share of the network."""

    name: str
    gpus_per_node: int = 8
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    latency_s: float = 1e-6
    """Of one bucket, for every doubling of the ranks."""
    host: float = 0.0
    """Slowdown of every step as soon as several ranks share a host: its input pipeline and launches."""
    straggler: float = 0.0
    """Slowdown for every doubling of the ranks: all wait for the slowest."""


# The scenario that the project was planned with: a target rate on one H200, bf16 gradients. ``fixed_s`` (the
# optimiser's 28 bytes a parameter alone take 0.25 ms) and the bandwidths (of NVLink's 450 GB/s and a 400 Gb/s adapter a
# GPU) were chosen so that the plan's seven efficiencies come out within a point: its figures hide no communication.
WRN36_5 = Job(name="wrn36_5", num_params=37_633_464, images_per_s=8_800, fixed_s=0.2e-3)
H200 = Cluster(name="8 x H200 a node", intra_bytes_per_s=400e9, inter_bytes_per_s=30e9, latency_s=0.5e-6)
PLAN_STRAGGLER = 0.009
"""Brings the weak-scaling efficiencies to that plan's with stragglers (97 / 93 / 88 %)."""
WEAK_IMAGES, GLOBAL_BATCH = 256, 8192


def all_reduce_s(job: Job, cluster: Cluster, gpus: int) -> float:
    """Seconds of a hierarchical ring over the gradients: within the nodes, then between them."""
    if gpus == 1:
        return 0.0
    local = min(gpus, cluster.gpus_per_node)
    nodes = math.ceil(gpus / cluster.gpus_per_node)
    within = 2 * (local - 1) / local * job.num_bytes / cluster.intra_bytes_per_s
    between = 2 * (nodes - 1) / nodes * (job.num_bytes / local) / cluster.inter_bytes_per_s
    return within + between + job.num_buckets * cluster.latency_s * math.log2(gpus)


def predict(job: Job, cluster: Cluster, gpus: int, images_per_gpu: float, one_gpu_images: float) -> dict[str, float]:
    """One row, times in ms; ``one_gpu_images`` is the batch of the single GPU that efficiency refers to."""
    compute = job.compute_s(images_per_gpu)
    waiting = compute * (cluster.host * (gpus > 1) + cluster.straggler * math.log2(gpus))
    reduce = all_reduce_s(job, cluster, gpus)
    step = compute + waiting + reduce
    rate, alone = gpus * images_per_gpu / step, one_gpu_images / job.compute_s(one_gpu_images)
    times = {"compute_ms": compute, "all_reduce_ms": reduce, "waiting_ms": waiting, "step_ms": step}
    found = {"gpus": gpus, "images_per_gpu": images_per_gpu} | {name: 1e3 * value for name, value in times.items()}
    return found | {"images_per_s": rate, "efficiency": rate / (gpus * alone)}


def weak(job: Job, cluster: Cluster, gpus: int, images_per_gpu: int = WEAK_IMAGES) -> dict[str, float]:
    """The batch grows with the GPUs."""
    return predict(job, cluster, gpus, images_per_gpu, images_per_gpu)


def strong(job: Job, cluster: Cluster, gpus: int, global_batch: int) -> dict[str, float]:
    """The batch stays."""
    return predict(job, cluster, gpus, global_batch / gpus, global_batch)


def predicted_rows(num_gpus: int, batch: int = GLOBAL_BATCH) -> Iterator[dict[str, Any]]:
    """The scenarios of the plan for 1, 2, 4 ... ``num_gpus`` GPUs; strong ones end at a GPU an image."""
    gpus = sorted({*(2**i for i in range(num_gpus.bit_length())), num_gpus})
    fp32 = dataclasses.replace(WRN36_5, gradient_bytes=4)
    waiting = dataclasses.replace(H200, straggler=PLAN_STRAGGLER)
    curves = {
        f"weak, {WEAK_IMAGES} images a GPU": lambda n: weak(WRN36_5, H200, n),
        f"weak, stragglers {PLAN_STRAGGLER:.1%} a doubling": lambda n: weak(WRN36_5, waiting, n),
        f"strong, {batch:,} images, bf16 gradients": lambda n: strong(WRN36_5, H200, n, batch),
        f"strong, {batch:,} images, fp32 gradients": lambda n: strong(fp32, H200, n, batch),
    }
    for name, point in curves.items():
        yield from ({"curve": name, **point(n)} for n in gpus if n <= batch or name.startswith("weak"))


def predicted_about(batch: int) -> dict[str, Any]:
    """What the rows were predicted from."""
    return {"inputs": {"job": asdict(WRN36_5), "cluster": asdict(H200), "global_batch": batch}}
