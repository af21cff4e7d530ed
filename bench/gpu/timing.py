"""Time on a GPU: CUDA events, the median, inputs that do not fit the L2 cache, outputs that are kept, never zeros."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

Call = Callable[[], Any]
ROUNDS = 30
WARM_UP_ROUNDS = 3
L2_MULTIPLE = 3
"""Inputs and outputs of all rotated calls together, in L2 sizes."""
MATMUL = 8192
COPY_BYTES = 1 << 31


def num_rotated(bytes_per_call: int) -> int:
    """How many calls on inputs of their own exceed the L2 cache by far."""
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(1, math.ceil(L2_MULTIPLE * l2 / max(1, bytes_per_call))))


def _event_us(work: Call) -> float:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e3


def launched_us(calls: Sequence[Call], rounds: int = ROUNDS) -> tuple[float, float]:
    """(median, interquartile range) of microseconds a call, launched one by one from Python, rotating."""
    kept: list[Any] = []

    def once() -> None:
        kept[:] = [call() for call in calls]

    return _spread([_event_us(once) / len(calls) for _ in range(rounds + WARM_UP_ROUNDS)])


def replayed_us(calls: Sequence[Call], rounds: int = ROUNDS) -> tuple[float, float]:
    """The same with all calls in one CUDA graph: the device's own time, without the gaps between launches."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    found = _spread([_event_us(graph.replay) / len(calls) for _ in range(rounds + WARM_UP_ROUNDS)])
    del kept
    return found


def _spread(samples: list[float]) -> tuple[float, float]:
    counted = samples[WARM_UP_ROUNDS:]
    low, middle, high = statistics.quantiles(counted, n=4)
    return middle, high - low


def window_s(step: Callable[[int], Any], windows: int, steps: int) -> tuple[float, float]:
    """(median, interquartile range) of seconds a step, over windows of several; the device is idle at each edge."""
    samples, count = [], 0
    for _ in range(windows):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            step(count)
            count += 1
        torch.cuda.synchronize()
        samples.append((time.perf_counter() - start) / steps)
    low, middle, high = statistics.quantiles(samples, n=4)
    return middle, high - low


def copy_bytes_per_s() -> float:
    """Bytes read plus bytes written a second by a large device-to-device copy of random bytes."""
    source = torch.randint(0, 256, (COPY_BYTES // 8, 8), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    middle, _ = launched_us([lambda: target.copy_(source)], rounds=15)
    return 2 * source.numel() / (middle * 1e-6)


def matmul_flops_per_s() -> float:
    """bf16 FLOP/s of a large matrix product of random numbers: the peak that MFU refers to."""
    a, b = (torch.randn(MATMUL, MATMUL, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    middle, _ = launched_us([lambda: a @ b], rounds=15)
    return 2 * MATMUL**3 / (middle * 1e-6)
