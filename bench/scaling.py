"""Weak and strong scaling from 1 to N ranks: measured (gloo processes on a CPU, or one NCCL rank per GPU) or predicted.

Weak: every rank keeps its batch size, so the ideal is equal time. Strong: the global batch size is kept, so the ideal
is time / N. Every rank has the same number of threads for all N; otherwise a single rank would use the others' cores.
Ranks wait for each other, so the figures are wall time of rank 0 and are valid only on a quiet machine.

The model (``predicted_rows``) predicts a step of N ranks, up to thousands, as

    step = (fixed + images / rate) (1 + host + straggler log2 N) + all-reduce
    all-reduce = 2 (g-1)/g B/intra + 2 (m-1)/m B/(g inter) + buckets latency log2 N     g GPUs a node, m nodes, B bytes

without overlap of communication and backward pass. Efficiency is relative to one GPU with the same images per GPU
(weak) or with the whole global batch (strong). These figures are predicted, not measured.
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
from imnet.errors import DeviceError
from imnet.ranks import run_ranks
from imnet.recipe import Recipe
from imnet.resources import num_cores
from imnet.run_options import RunOptions

from .case import build, synthetic, with_batch
from .clock import Timing, wait

MIB = 2**20
STEPS, WARM_UP_STEPS, ALL_REDUCES = 20, 3, 10


def rows(recipe: Recipe, options: RunOptions, ranks: list[int], steps: int = STEPS) -> Iterator[dict[str, Any]]:
    """A row per number of ranks and kind of scaling; ``efficiency`` is relative to the first entry of ``ranks``.

    ``options.device`` must be "cpu" if there is no GPU.
    """
    on_gpu = options.device != "cpu"
    most = device.num_gpus() if on_gpu else num_cores()
    first: dict[str, dict[str, Any]] = {}
    for num in ranks:
        batches = {"weak": recipe.data.batch_images * num, "strong": recipe.data.batch_images}
        where: dict[str, Any] = {"device": "cpu", "procs": num}
        if on_gpu:  # not captured, as is the default on several ranks: efficiency is that of one kind of step
            where = {"device": "cuda", "gpus": num, "cuda_graphs": False}
        taken = _run(recipe, num, sorted(set(batches.values())), dataclasses.replace(options, **where), steps)
        for kind, batch in batches.items():
            about = {"kind": kind, "ranks": num, "batch_images": batch, "oversubscribed": num > most}
            row = about | taken[str(batch)]
            one = first.setdefault(kind, row)
            yield row | {"efficiency": efficiency(row, one), "predicted_efficiency": predicted_efficiency(row, one)}


def about(recipe: Recipe, options: RunOptions) -> dict[str, Any]:
    """The network, backend and communication options of the rows."""
    network = {"recipe": recipe.name, "model": recipe.model, "image_px": recipe.input_px}
    return network | {"backend": "gloo" if options.device == "cpu" else "nccl", "comm": dataclasses.asdict(recipe.comm)}


def threads_a_rank(options: RunOptions, ranks: list[int]) -> RunOptions:
    """The options with the number of threads that every rank has when the most ranks share the cores."""
    return dataclasses.replace(options, threads=options.threads or max(1, num_cores() // max(ranks)))


def efficiency(row: dict[str, Any], first: dict[str, Any]) -> float:
    """Images per second and rank, over those of the first row: 1 is ideal for weak and for strong scaling."""
    rate = row["batch_images"] / row["step_s"] / row["ranks"]
    return rate / (first["batch_images"] / first["step_s"] / first["ranks"])


def predicted_efficiency(row: dict[str, Any], first: dict[str, Any]) -> float:
    """The efficiency that the model predicts for a row from measured times: the step of the first row and the
    all-reduce alone. It assumes no overlap with the backward pass and no waiting for slower ranks."""
    compute_s = first["step_s"] * row["batch_images"] / row["ranks"] / first["batch_images"]
    return efficiency(row | {"step_s": compute_s + row["all_reduce_s"]}, first)


def _run(recipe: Recipe, num: int, batches: list[int], options: RunOptions, steps: int) -> dict[str, Any]:
    """Start ``num`` ranks, each of which runs ``_rank``; returns the figures of rank 0, {global batch: figures}."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rank0.json"
        code = run_ranks(_rank, (recipe, batches, options, steps, str(out)), num, 0)
        if code or not out.is_file():
            raise DeviceError(f"{num} ranks ended with exit code {code}", hint="the rank's own line is above")
        return json.loads(out.read_text())


def _rank(recipe: Recipe, batches: list[int], options: RunOptions, steps: int, out: str) -> int:
    """The process of one rank: times all global batch sizes in sequence; rank 0 writes the figures."""
    place = device.resolve(options, launch.current_world().local_rank)
    with device.threads(options), launch.connected(place.device) as world:
        found = {batch: _steps(with_batch(recipe, batch), options, world, steps) for batch in batches}
        if world.is_main:
            Path(out).write_text(json.dumps(found))
    return 0


def _steps(recipe: Recipe, options: RunOptions, world: launch.World, steps: int) -> dict[str, Any]:
    """Figures of ``steps`` steps on this rank's own batches, each timed between barriers, after WARM_UP_STEPS."""
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
    """Median seconds of an all-reduce of ``gradients`` (fp32, one number per parameter) with nothing beside it."""
    seconds = []
    for _ in range(WARM_UP_STEPS + ALL_REDUCES):
        world.barrier()
        start = time.perf_counter()
        world.all_reduce(gradients)
        wait(gradients.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[WARM_UP_STEPS:])


def parse_ranks(most: int) -> list[int]:
    """1, 2, 4, ... up to ``most``, which is always included."""
    ranks = [1]
    while ranks[-1] * 2 < most:
        ranks.append(ranks[-1] * 2)
    return ranks if most == 1 else [*ranks, most]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A network on one GPU: its rate at a large batch (``images_per_s``) and a fixed time per step (``fixed_s``)."""

    name: str
    num_params: int
    images_per_s: float
    fixed_s: float = 0.0
    gradient_bytes: int = 2
    """Bytes per parameter in the all-reduce: 4 for fp32, 2 with the bf16 hook."""
    bucket_mb: float = 25.0
    """MiB of fp32 gradients per bucket, as ``comm.bucket_mb``."""

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
    """A cluster: the bandwidths in bytes/s that an all-reduce reaches within a node and, per GPU, between nodes."""

    name: str
    gpus_per_node: int = 8
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    latency_s: float = 1e-6
    """Seconds per bucket and doubling of the ranks."""
    host: float = 0.0
    """Relative slowdown of a step with more than one rank: they share the host's input pipeline and launches."""
    straggler: float = 0.0
    """Relative slowdown per doubling of the ranks, because all wait for the slowest."""


# The scenario that the project was planned with: a target rate on one H200 with bf16 gradients. ``fixed_s`` (the
# optimiser's 28 bytes per parameter alone take 0.25 ms) and the bandwidths (out of NVLink's 450 GB/s and a 400 Gb/s
# adapter per GPU) were fitted to the plan's seven efficiencies, which they reproduce within a percentage point without
# overlap of communication.
WRN36_5 = Job(name="wrn36_5", num_params=37_633_464, images_per_s=8_800, fixed_s=0.2e-3)
H200 = Cluster(name="8 x H200 a node", intra_bytes_per_s=400e9, inter_bytes_per_s=30e9, latency_s=0.5e-6)
PLAN_STRAGGLER = 0.009
"""The straggler term that reproduces the plan's weak-scaling efficiencies with stragglers (97 / 93 / 88 %)."""
WEAK_IMAGES, GLOBAL_BATCH = 256, 8192


def all_reduce_s(job: Job, cluster: Cluster, gpus: int) -> float:
    """Seconds of a hierarchical ring all-reduce of the gradients: within the nodes, then between them."""
    if gpus == 1:
        return 0.0
    local = min(gpus, cluster.gpus_per_node)
    nodes = math.ceil(gpus / cluster.gpus_per_node)
    within = 2 * (local - 1) / local * job.num_bytes / cluster.intra_bytes_per_s
    between = 2 * (nodes - 1) / nodes * (job.num_bytes / local) / cluster.inter_bytes_per_s
    return within + between + job.num_buckets * cluster.latency_s * math.log2(gpus)


def predict(job: Job, cluster: Cluster, gpus: int, images_per_gpu: float, one_gpu_images: float) -> dict[str, float]:
    """One row, with times in ms; ``one_gpu_images`` is the batch of the single GPU that efficiency is relative to."""
    compute = job.compute_s(images_per_gpu)
    waiting = compute * (cluster.host * (gpus > 1) + cluster.straggler * math.log2(gpus))
    reduce = all_reduce_s(job, cluster, gpus)
    step = compute + waiting + reduce
    rate, alone = gpus * images_per_gpu / step, one_gpu_images / job.compute_s(one_gpu_images)
    times = {"compute_ms": compute, "all_reduce_ms": reduce, "waiting_ms": waiting, "step_ms": step}
    found = {"gpus": gpus, "images_per_gpu": images_per_gpu} | {name: 1e3 * value for name, value in times.items()}
    return found | {"images_per_s": rate, "efficiency": rate / (gpus * alone)}


def weak(job: Job, cluster: Cluster, gpus: int) -> dict[str, float]:
    """The prediction for weak scaling: the global batch grows with the number of GPUs."""
    return predict(job, cluster, gpus, WEAK_IMAGES, WEAK_IMAGES)


def strong(job: Job, cluster: Cluster, gpus: int, global_batch: int) -> dict[str, float]:
    """The prediction for strong scaling: the global batch stays the same."""
    return predict(job, cluster, gpus, global_batch / gpus, global_batch)


def predicted_rows(num_gpus: int, batch: int = GLOBAL_BATCH) -> Iterator[dict[str, Any]]:
    """The plan's scenarios for 1, 2, 4 ... ``num_gpus`` GPUs; strong scaling ends at one image per GPU."""
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
    """The inputs of the prediction."""
    return {"inputs": {"job": asdict(WRN36_5), "cluster": asdict(H200), "global_batch": batch}}
