"""The kernel cases under pytest-benchmark: a group per family, case and dtype; a column per tier; the gate first.

python -m pytest bench/test_kernels_benchmark.py [-k shake_shake] [--benchmark-json FILE]

On a CPU one thread and processor time. On a GPU the call ends with a synchronisation, and ``extra_info`` has the
median by CUDA events, which counts the device's own time alone. For ratios take bench_kernels.py: it interleaves.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family

from . import bench_kernels, roof
from .timing import keep_memory

pytest.importorskip("pytest_benchmark", reason="pytest-benchmark is not installed (it comes with the dev extra)")

ROUNDS, WARM_UP_ROUNDS = 12, 3
SLICE_S = 0.02


def _rows() -> Iterator[Any]:
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for family, case, dtype in bench_kernels.real_cases():
            names = ["reference", *family.tiers(device)]
            names += ["compiled"] if bench_kernels.is_first(family, case, dtype) else []
            for name in names:
                at = f"{family.name}-{case.name}-{str(dtype).removeprefix('torch.')}-{device}"
                mark = pytest.mark.benchmark(
                    group=at, timer=time.process_time if device == "cpu" else time.perf_counter
                )
                yield pytest.param(family, case, dtype, device, name, id=f"{at}-{name}", marks=mark)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before, chosen = torch.get_num_threads(), tier.snapshot()
    torch.set_num_threads(1)
    keep_memory()
    yield
    torch.set_num_threads(before)
    tier.restore(chosen)


@pytest.mark.parametrize(("family", "case", "dtype", "device", "name"), list(_rows()))
def test_kernel(benchmark, family: Family, case: Case, dtype: torch.dtype, device: str, name: str):
    info = benchmark.extra_info
    if name == "compiled":
        call, info["compile_s"] = bench_kernels.compiled(family, case, dtype, device)
    else:
        info["gate_error"] = family.check(case, dtype, name, device).forward
        call = bench_kernels.column(family, case, dtype, name, device)

    def run() -> None:
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    run()
    start = time.perf_counter()
    run()
    calls = max(1, round(SLICE_S / max(time.perf_counter() - start, 1e-7)))
    benchmark.pedantic(run, rounds=ROUNDS, iterations=calls, warmup_rounds=WARM_UP_ROUNDS)
    seconds = benchmark.stats.stats.min
    if device == "cuda":
        seconds = info["event_s"] = roof.median_s(call, device)
    info["bytes"] = family.bytes_moved(case, dtype)
    info["gb_per_s"] = info["bytes"] / seconds / 1e9
    info["share_of_copy"] = info["bytes"] / seconds / roof.copy_bytes_per_s(device)
    assert seconds > 0
