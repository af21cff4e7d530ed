"""Data-parallel scaling on paper: step time, exposed communication and efficiency for up to thousands of GPUs.

A step of N ranks takes

    step = (fixed + images / rate) (1 + host + straggler log2 N) + exposed
    all-reduce = 2 (g-1)/g B/intra + 2 (m-1)/m B/(g inter) + buckets latency log2 N     g GPUs a node, m nodes, B bytes
    exposed = max(all-reduce of the last bucket, all-reduce - overlap (2/3 of the compute time))

since the backward is two thirds of the compute, and the bucket that holds the first layers has nothing to hide behind.
Efficiency is against one GPU with the same images per GPU (weak) or with the whole global batch (strong). Everything is
predicted; nothing here is a measurement of many GPUs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

BACKWARD_SHARE = 2 / 3
MIB = 2**20


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


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Bandwidths in bytes/s that an all-reduce reaches: within a node, and of one GPU's share of the network."""

    name: str
    gpus_per_node: int = 8
    intra_bytes_per_s: float
    inter_bytes_per_s: float
    latency_s: float = 1e-6
    """Of one bucket, for every doubling of the ranks."""
    overlap: float = 0.0
    """Share of the backward behind which all-reduces really hide; 0 is the careful assumption."""
    host: float = 0.0
    """Slowdown of every step as soon as several ranks share a host: its input pipeline and launches."""
    straggler: float = 0.0
    """Slowdown for every doubling of the ranks: all wait for the slowest."""


@dataclass(frozen=True)
class Point:
    """One number of GPUs; times in milliseconds."""

    gpus: int
    images_per_gpu: float
    compute_ms: float
    all_reduce_ms: float
    exposed_ms: float
    waiting_ms: float
    step_ms: float
    images_per_s: float
    efficiency: float


# The scenario that the project was planned with: a target rate on one H200, bf16 gradients. ``fixed_s`` (the
# optimiser's 28 bytes a parameter alone take 0.25 ms) and the bandwidths (of NVLink's 450 GB/s and a 400 Gb/s adapter a
# GPU) were chosen so that the plan's seven efficiencies come out within a point: its figures hide no communication.
WRN36_5 = Job(name="wrn36_5", num_params=37_633_464, images_per_s=8_800, fixed_s=0.2e-3)
H200 = Cluster(name="8 x H200 a node", intra_bytes_per_s=400e9, inter_bytes_per_s=30e9, latency_s=0.5e-6)
PLAN_STRAGGLER = 0.009
"""Brings the weak-scaling efficiencies to that plan's with stragglers (97 / 93 / 88 %)."""
WEAK_IMAGES = 256


def all_reduce_s(job: Job, cluster: Cluster, gpus: int, share: float = 1.0) -> float:
    """Seconds of a hierarchical ring over ``share`` of the gradients: within the nodes, then between them."""
    if gpus == 1:
        return 0.0
    local = min(gpus, cluster.gpus_per_node)
    nodes = math.ceil(gpus / cluster.gpus_per_node)
    moved = share * job.num_bytes
    within = 2 * (local - 1) / local * moved / cluster.intra_bytes_per_s
    between = 2 * (nodes - 1) / nodes * (moved / local) / cluster.inter_bytes_per_s
    return within + between + share * job.num_buckets * cluster.latency_s * math.log2(gpus)


def predict(job: Job, cluster: Cluster, gpus: int, images_per_gpu: float, one_gpu_images: float) -> Point:
    """One point; ``one_gpu_images`` is the batch of the single GPU that efficiency refers to."""
    compute = job.fixed_s + images_per_gpu / job.images_per_s
    several = gpus > 1
    waiting = compute * (cluster.host * several + cluster.straggler * math.log2(gpus))
    reduce = all_reduce_s(job, cluster, gpus)
    hidden = cluster.overlap * BACKWARD_SHARE * compute
    exposed = max(all_reduce_s(job, cluster, gpus, 1 / job.num_buckets), reduce - hidden)
    step = compute + waiting + exposed
    rate = gpus * images_per_gpu / step
    alone = one_gpu_images / (job.fixed_s + one_gpu_images / job.images_per_s)
    return Point(
        gpus=gpus,
        images_per_gpu=images_per_gpu,
        compute_ms=1e3 * compute,
        all_reduce_ms=1e3 * reduce,
        exposed_ms=1e3 * exposed,
        waiting_ms=1e3 * waiting,
        step_ms=1e3 * step,
        images_per_s=rate,
        efficiency=rate / (gpus * alone),
    )


def weak(job: Job, cluster: Cluster, gpus: Sequence[int], images_per_gpu: int = WEAK_IMAGES) -> list[Point]:
    """The batch grows with the GPUs."""
    return [predict(job, cluster, n, images_per_gpu, images_per_gpu) for n in gpus]


def strong(job: Job, cluster: Cluster, gpus: Sequence[int], global_batch: int) -> list[Point]:
    """The batch stays; only as many GPUs as it has images."""
    return [predict(job, cluster, n, global_batch / n, global_batch) for n in gpus if n <= global_batch]


def curves(job: Job, cluster: Cluster, gpus: Sequence[int], global_batch: int) -> dict[str, list[Point]]:
    """The scenarios of the plan, by name."""
    waiting = replace(cluster, straggler=PLAN_STRAGGLER)
    return {
        f"weak, {WEAK_IMAGES} images a GPU": weak(job, cluster, gpus),
        f"weak, stragglers {PLAN_STRAGGLER:.1%} a doubling": weak(job, waiting, gpus),
        f"strong, {global_batch:,} images, bf16 gradients": strong(job, cluster, gpus, global_batch),
        f"strong, {global_batch:,} images, fp32 gradients": strong(
            replace(job, gradient_bytes=4), cluster, gpus, global_batch
        ),
    }


def report(
    num_gpus: int,
    *,
    global_batch: int = 8192,
    job: Job = WRN36_5,
    cluster: Cluster = H200,
    plot: str | Path | None = None,
) -> dict[str, Any]:
    """{"benchmark", "inputs", "rows", "table"} for 1, 2, 4 ... ``num_gpus`` GPUs; ``plot`` is a picture to write.

    Raises ValueError for fewer than one GPU or one image.
    """
    for name, value in (("num_gpus", num_gpus), ("global_batch", global_batch)):
        if value < 1:
            raise ValueError(f"got {name} = {value}; allowed: 1 or more; give a larger one")
    gpus = sorted({*(2**i for i in range(num_gpus.bit_length())), num_gpus})
    found = curves(job, cluster, gpus, global_batch)
    rows = [{"curve": name} | asdict(point) for name, points in found.items() for point in points]
    if plot is not None:
        draw(found, f"{job.name} on {cluster.name} (predicted)", Path(plot))
    inputs = {"job": asdict(job), "cluster": asdict(cluster), "global_batch": global_batch}
    return {"benchmark": "scaling model", "inputs": inputs, "rows": rows, "table": table(found)}


def table(found: dict[str, list[Point]]) -> str:
    """Every point on a line, for a terminal."""
    names = ("compute", "reduce", "exposed", "waiting")
    head = f"{'GPUs':>6} {'images':>8}  {' '.join(f'{n:>8}' for n in names)} {'step':>9} {'images/s':>12}  eff."
    lines = []
    for name, points in found.items():
        lines += ["", f"{name}: predicted, times in ms", head]
        for p in points:
            times = (
                f"{p.compute_ms:9.3f} {p.all_reduce_ms:8.3f} {p.exposed_ms:8.3f} {p.waiting_ms:8.3f} {p.step_ms:9.3f}"
            )
            lines.append(f"{p.gpus:6} {p.images_per_gpu:8.5g} {times} {p.images_per_s:12,.0f} {p.efficiency:5.1%}")
    return "\n".join(lines[1:])


def draw(found: dict[str, list[Point]], title: str, path: Path) -> None:
    """Efficiency over the number of GPUs, a line a scenario."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    styles = ["o-", "o--", "s-", "s--"]
    for (name, points), style in zip(found.items(), styles, strict=False):
        axes.plot([p.gpus for p in points], [100 * p.efficiency for p in points], style, label=name, markersize=4)
    axes.set_xscale("log", base=2)
    ticks = [p.gpus for p in max(found.values(), key=len)]
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.set(xlabel="GPUs", ylabel="efficiency, %", ylim=(0, 105), title=title)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)
