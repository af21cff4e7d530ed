"""Kernels: a correctness gate, then the reference, what torch compiles of it, our tiers and their peers, as rows.

On a CPU one thread and processor time, the columns in turn (``imnet-bench kernels``). On a GPU the device's own time,
calls in one CUDA graph, and that of calls launched one by one from Python, which is what counts for sizes bound by
their launch (``python -m bench.gpu``). Shares are of a large copy's bandwidth.
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
    """A case in one dtype; ``backward``: the family's backward alone."""

    family: Family
    case: Case
    dtype: torch.dtype
    backward: bool = False

    @property
    def name(self) -> str:
        return self.case.name + (" backward" if self.backward else "")

    @property
    def num_bytes(self) -> int:
        """The floor: what must be read and written."""
        floor = self.family.backward_bytes if self.backward else self.family.bytes_moved
        assert floor is not None
        return floor(self.case, self.dtype)

    @property
    def first(self) -> bool:
        """Whether a family's compiled reference is shown for it."""
        dtype = next(d for d in DTYPES if d in self.family.tolerance)
        return not self.backward and self.case is next(c for c in self.family.cases if c.real) and self.dtype is dtype

    def gate(self, name: str, on: str, backend: str | None = None) -> float:
        """The tier's largest error; raises AssertionError where it is beyond the tolerance, and nothing is timed."""
        return self.family.check(self.case, self.dtype, name, on, compiled=backend).forward

    def run(self, name: str, on: str) -> Call:
        """A call with inputs of its own, on whatever tier is chosen when it is made; ``name`` is for the backward."""
        if not self.backward:
            return self.family.make(self.case, self.dtype, on).run
        assert self.family.make_backward is not None
        return self.family.make_backward(self.case, self.dtype, on, name).run

    def call(self, name: str, on: str) -> Call:
        """The same on the tier ``name``, without gradients."""
        return with_tier(self.run(name, on), name)


def real_jobs(only: str | None = None) -> Iterator[Job]:
    """The recipes' own shapes of every family, or of one, in fp32 and bf16 where the family has them."""
    for family in families():
        for case in (c for c in family.cases if c.real and only in (None, family.name)):
            for dtype in (d for d in DTYPES if d in family.tolerance):
                yield Job(family, case, dtype)
                if family.make_backward:
                    yield Job(family, case, dtype, backward=True)


def with_tier(call: Call, name: str) -> Call:
    """``call`` on the tier ``name``, without gradients."""
    with tier.using(name):
        chosen = tier.snapshot()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            call()

    return run


def compiled(calls: list[Call], backend: str = "inductor") -> tuple[list[Call], float]:
    """torch.compile of the calls, one compilation for all, already made; and the seconds that took."""
    torch._dynamo.reset()
    shared = torch.compile(lambda run: run(), backend=backend)
    found = [with_tier(lambda run=run: shared(run), "reference") for run in calls]
    start = time.perf_counter()
    found[0]()
    return found, time.perf_counter() - start


def on_cpu(job: Job, rounds: int, with_compiled: bool = False) -> dict[str, Any]:
    """One row: gate, then every column's time in turn, ratios to host, and host's share of the copy bandwidth."""
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
    """One column of a GPU's row: ``name`` is a tier, or ``compiled`` by torch.compile's ``backend``."""
    count = num_rotated(job.num_bytes)
    if name == "compiled":
        error = job.gate("reference", on, backend)
        calls = compiled([job.run("reference", on) for _ in range(count)], backend)[0]
    else:
        error, calls = job.gate(name, on), [job.call(name, on) for _ in range(count)]
    return {"gate_error": error, **device_figures(calls, job.num_bytes, on)}


def device_figures(calls: list[Call], num_bytes: int, on: str) -> dict[str, Any]:
    """Microseconds a call, replayed and launched, and what that is of the copy's bandwidth."""
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
    """A row a case; ``quick``: no compiled column."""
    before = tier.snapshot()
    torch.manual_seed(0)
    for job in real_jobs(family):
        yield on_cpu(job, rounds, job.first and not quick)
    tier.restore(before)


def about(rounds: int) -> dict[str, Any]:
    """What the rows were taken on, with the bandwidth that their shares refer to."""
    method = f"CPU time, one thread, interleaved, best of {rounds}, freed memory kept"
    copy = round(machine.copy_bytes_per_s("cpu") / 1e9, 2)
    return {"environment": {"isa": native.host().isa(), "method": method, "copy_gb_per_s": copy}}


def scores(row: dict[str, Any]) -> dict[str, float]:
    """``<family> <case> <dtype>``: the reference's time over the host tier's, taken in turn."""
    return {f"{row['family']} {row['case']} {row['dtype']}": row["ratio_of_medians"]["reference"]}
