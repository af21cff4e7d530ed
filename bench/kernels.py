"""Kernel benchmarks: after a correctness gate, times of the reference, the compiled reference, our tiers and peers.

On a CPU: processor time of one thread, the columns alternating (``imnet-bench kernels``). On a GPU: the device's own
time of calls in one CUDA graph, and the time of calls launched one by one from Python, which matters for sizes whose
launch takes longer than the kernel (``python -m bench.gpu``). Shares are of the bandwidth of a large copy.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from imnet_kernels import native, tier
from imnet_kernels.family import Case, Family, families

from . import machine, peers
from .clock import EVENT_ROUNDS, Call, interleaved, launched, num_rotated, replayed

SLICE_S = 0.03
ROUNDS, QUICK_ROUNDS = 12, 5
DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Job:
    """A case in one dtype; with ``backward`` the family's backward pass alone."""

    family: Family
    case: Case
    dtype: torch.dtype
    backward: bool = False

    @property
    def name(self) -> str:
        return self.case.name + (" backward" if self.backward else "")

    @property
    def num_bytes(self) -> int:
        """The bytes that must be read and written at least."""
        floor = self.family.backward_bytes if self.backward else self.family.bytes_moved
        assert floor is not None
        return floor(self.case, self.dtype)

    @property
    def first(self) -> bool:
        """Whether the compiled reference is timed for this job: only for one per family, since compiling is slow."""
        dtype = next(d for d in DTYPES if d in self.family.tolerance)
        return not self.backward and self.case is next(c for c in self.family.cases if c.real) and self.dtype is dtype

    def gate(self, name: str, on: str, backend: str | None = None) -> float:
        """Return the tier's largest forward error; raises AssertionError if an error exceeds the tolerance, so that a
        wrong kernel is not timed."""
        return self.family.check(self.case, self.dtype, name, on, compiled=backend).forward

    def run(self, name: str, on: str) -> Call:
        """A call with new inputs, which runs on the tier that is chosen when it is called; ``name`` tells a backward
        pass which tensors its tier needs."""
        if not self.backward:
            return self.family.make(self.case, self.dtype, on).run
        assert self.family.make_backward is not None
        return self.family.make_backward(self.case, self.dtype, on, name).run

    def call(self, name: str, on: str) -> Call:
        """As ``run``, on the tier ``name`` and without gradients."""
        return with_tier(self.run(name, on), name)


def real_jobs(only: str | None = None) -> Iterator[Job]:
    """The jobs of the shapes that recipes use, for all families or one, in those of fp32 and bf16 that it supports."""
    for family in families():
        for case in (c for c in family.cases if c.real and only in (None, family.name)):
            for dtype in (d for d in DTYPES if d in family.tolerance):
                yield Job(family, case, dtype)
                if family.make_backward:
                    yield Job(family, case, dtype, backward=True)


def with_tier(call: Call, name: str) -> Call:
    """Wrap ``call`` to run on the tier ``name``, without gradients."""
    with tier.using(name):
        chosen = tier.snapshot()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            call()

    return run


def compiled(calls: list[Call], backend: str = "inductor") -> tuple[list[Call], float]:
    """Compile the calls with torch.compile, all with one compilation; returns them and the seconds of that."""
    torch._dynamo.reset()
    shared = torch.compile(lambda run: run(), backend=backend)
    found = [with_tier(lambda run=run: shared(run), "reference") for run in calls]
    start = time.perf_counter()
    found[0]()
    return found, time.perf_counter() - start


def on_cpu(job: Job, rounds: int, with_compiled: bool = False) -> dict[str, Any]:
    """One row: after the gate, times of all columns, ratios to the host tier, and its share of the copy bandwidth."""
    found: dict[str, Any] = {"family": job.family.name, "case": job.name, "dtype": str(job.dtype).split(".")[1]}
    if not job.backward:
        found["gate_error"] = job.gate("host", "cpu")
    columns: dict[str, Call] = {name: job.call(name, "cpu") for name in ("reference", "host")}
    if with_compiled:
        (columns["compiled"],), took = compiled([job.run("reference", "cpu")])
        found["compile_s"] = round(took, 1)
    if not job.backward:
        columns |= peers.of_kernel(job.family, job.case, job.dtype)
    times = interleaved(columns, rounds, slice_s=SLICE_S)
    host, others = times["host"], {name: t for name, t in times.items() if name != "host"}
    return found | {
        "bytes": job.num_bytes,
        "times": {name: t.as_dict() for name, t in times.items()},
        "ratio_to_host": {name: round(t.best_s / host.best_s, 2) for name, t in others.items()},
        "ratio_of_medians": {name: round(t.median_s / host.median_s, 2) for name, t in others.items()},
        "share_of_copy": round(job.num_bytes / host.best_s / machine.copy_bytes_per_s("cpu"), 3),
    }


def column(job: Job, name: str, on: str, backend: str = "inductor") -> dict[str, Any]:
    """One column of a GPU's row: ``name`` is a tier, or "compiled" for the reference under torch.compile."""
    count = num_rotated(job.num_bytes)
    if name == "compiled":
        error = job.gate("reference", on, backend)
        calls = compiled([job.run("reference", on) for _ in range(count)], backend)[0]
    else:
        error, calls = job.gate(name, on), [job.call(name, on) for _ in range(count)]
    return {"gate_error": error, **device_figures(calls, job.num_bytes, on)}


def device_figures(calls: list[Call], num_bytes: int, on: str) -> dict[str, Any]:
    """Microseconds per call, replayed and launched, and the achieved share of the copy bandwidth.

    If the calls cannot be captured in a CUDA graph, the launched times stand for both.
    """
    one_by_one = launched(calls)
    times, problem = one_by_one, {}
    try:
        times = replayed(calls)
    except RuntimeError as error:
        problem = {"not_captured": str(error).splitlines()[0]}
    rate = num_bytes / times.median_s
    return {
        **problem,
        "us": round(times.median_s * 1e6, 2),
        "us_iqr": round(times.iqr_s * 1e6, 2),
        "us_launched": round(one_by_one.median_s * 1e6, 2),
        "us_launched_iqr": round(one_by_one.iqr_s * 1e6, 2),
        "gb_per_s": round(rate / 1e9, 1),
        "share_of_copy": round(rate / machine.copy_bytes_per_s(on), 3),
        "floor_bytes": num_bytes,
        "rotated": len(calls),
        "n": EVENT_ROUNDS,
    }


def rows(family: str | None, rounds: int, quick: bool = False) -> Iterator[dict[str, Any]]:
    """A row per case; with ``quick`` without the compiled column."""
    before = tier.snapshot()
    torch.manual_seed(0)
    for job in real_jobs(family):
        yield on_cpu(job, rounds, job.first and not quick)
    tier.restore(before)


def about(rounds: int) -> dict[str, Any]:
    """The conditions of the rows: instruction set, method, and the copy bandwidth that shares refer to."""
    method = f"CPU time, one thread, interleaved, best of {rounds}, freed memory kept"
    copy = round(machine.copy_bytes_per_s("cpu") / 1e9, 2)
    return {"environment": {"isa": native.host().isa(), "method": method, "copy_gb_per_s": copy}}


def scores(row: dict[str, Any]) -> dict[str, float]:
    """{``<family> <case> <dtype>``: the reference's median time over the host tier's}, timed alternately."""
    return {f"{row['family']} {row['case']} {row['dtype']}": row["ratio_of_medians"]["reference"]}
