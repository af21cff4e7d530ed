"""The CPU kernel cases under pytest-benchmark: a group per family, case and dtype, and in it a test per tier.

python -m pytest bench/test_kernels_benchmark.py [-k shake_shake] [--benchmark-json FILE]

Each tier is checked before it is timed, in processor time of one thread. For ratios use ``imnet-bench kernels``, which
times the tiers alternately.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from imnet_kernels import tier

from imnet import device
from imnet.run_options import RunOptions

from . import kernels

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (it comes with the dev extra)")

ROUNDS, CALLS, WARM_UP_ROUNDS = 12, 5, 3


def _rows() -> Iterator[Any]:
    for job in kernels.real_jobs():
        at = f"{job.family.name}-{job.name}-{str(job.dtype).split('.')[1]}"
        mark = pytest.mark.benchmark(group=at, timer=time.process_time)
        for name in ("reference", *job.family.tiers("cpu"), *(["compiled"] if job.first else [])):
            yield pytest.param(job, name, id=f"{at}-{name}", marks=mark)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    chosen = tier.snapshot()
    with device.threads(RunOptions(threads=1)):
        yield
    tier.restore(chosen)


@pytest.mark.parametrize(("job", "name"), list(_rows()))
def test_kernel(benchmark, job: kernels.Job, name: str):
    if name == "compiled":
        (call,), benchmark.extra_info["compile_s"] = kernels.compiled([job.run("reference", "cpu")])
    else:
        benchmark.extra_info["gate_error"] = job.gate(name, "cpu")
        call = job.call(name, "cpu")
    benchmark.pedantic(call, rounds=ROUNDS, iterations=CALLS, warmup_rounds=WARM_UP_ROUNDS)
    benchmark.extra_info["gb_per_s"] = job.num_bytes / benchmark.stats.stats.min / 1e9
