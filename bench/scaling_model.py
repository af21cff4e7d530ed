"""Data-parallel scaling on paper: step time, communication and efficiency for up to thousands of GPUs.

A step of N ranks takes

    step = (fixed + images / rate) (1 + host + straggler log2 N) + all-reduce
    all-reduce = 2 (g-1)/g B/intra + 2 (m-1)/m B/(g inter) + buckets latency log2 N     g GPUs a node, m nodes, B bytes

which hides nothing of the communication behind the backward pass. Efficiency is against one GPU with the same images
per GPU (weak) or with the whole global batch (strong). Everything is predicted; nothing here is measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

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


def rows(num_gpus: int, batch: int = GLOBAL_BATCH, job: Job = WRN36_5, cluster: Cluster = H200) -> Iterator[Any]:
    """The scenarios of the plan for 1, 2, 4 ... ``num_gpus`` GPUs; strong ones end at a GPU an image."""
    gpus = sorted({*(2**i for i in range(num_gpus.bit_length())), num_gpus})
    fp32, waiting = replace(job, gradient_bytes=4), replace(cluster, straggler=PLAN_STRAGGLER)
    curves = {
        f"weak, {WEAK_IMAGES} images a GPU": lambda n: weak(job, cluster, n),
        f"weak, stragglers {PLAN_STRAGGLER:.1%} a doubling": lambda n: weak(job, waiting, n),
        f"strong, {batch:,} images, bf16 gradients": lambda n: strong(job, cluster, n, batch),
        f"strong, {batch:,} images, fp32 gradients": lambda n: strong(fp32, cluster, n, batch),
    }
    for name, point in curves.items():
        yield from ({"curve": name, **point(n)} for n in gpus if n <= batch or name.startswith("weak"))


def about(batch: int = GLOBAL_BATCH, job: Job = WRN36_5, cluster: Cluster = H200) -> dict[str, Any]:
    """What the rows were predicted from."""
    return {"inputs": {"job": asdict(job), "cluster": asdict(cluster), "global_batch": batch}}
