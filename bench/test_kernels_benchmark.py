"""The kernel cases under pytest-benchmark: a group per family, case and dtype; a column per tier; the gate first.

python -m pytest bench/test_kernels_benchmark.py [-k shake_shake] [--benchmark-json FILE]

On a CPU one thread and processor time. On a GPU the call ends with a synchronisation, and ``extra_info`` has the
device's own time. For ratios take ``imnet-bench kernels``: it interleaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from imnet_kernels import tier

from imnet import device
from imnet.run_options import RunOptions

from . import kernels, machine
from .clock import on_device

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (it comes with the dev extra)")

ROUNDS, WARM_UP_ROUNDS = 12, 3
SLICE_S = 0.02
CLOCKS = {"cpu": time.process_time, "cuda": time.perf_counter}


def _rows() -> Iterator[Any]:
    for on in CLOCKS if torch.cuda.is_available() else ("cpu",):
        for job in kernels.real_jobs():
            at = f"{job.family.name}-{job.name}-{str(job.dtype).split('.')[1]}-{on}"
            for name in ("reference", *job.family.tiers(on), *(["compiled"] if job.first else [])):
                mark = pytest.mark.benchmark(group=at, timer=CLOCKS[on])
                yield pytest.param(job, on, name, id=f"{at}-{name}", marks=mark)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    chosen = tier.snapshot()
    with device.threads(RunOptions(threads=1)):
        yield
    tier.restore(chosen)


@pytest.mark.parametrize(("job", "on", "name"), list(_rows()))
def test_kernel(benchmark, job: kernels.Job, on: str, name: str):
    info = benchmark.extra_info
    if name == "compiled":
        (call,), info["compile_s"] = kernels.compiled([job.run("reference", on)])
    else:
        info["gate_error"] = job.gate(name, on)
        call = job.call(name, on)

    def run() -> None:
        call()
        if on == "cuda":
            torch.cuda.synchronize()

    run()
    start = time.perf_counter()
    run()
    calls = max(1, round(SLICE_S / max(time.perf_counter() - start, 1e-7)))
    benchmark.pedantic(run, rounds=ROUNDS, iterations=calls, warmup_rounds=WARM_UP_ROUNDS)
    seconds = benchmark.stats.stats.min
    if on == "cuda":
        seconds = info["device_s"] = on_device(lambda: call, job.num_bytes, on).median_s
    info["gb_per_s"] = job.num_bytes / seconds / 1e9
    info["share_of_copy"] = job.num_bytes / seconds / machine.copy_bytes_per_s(on)
    assert seconds > 0
