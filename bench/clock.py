"""Timing for all benchmarks. Calls alternate, A B A B ..., so that other load on the machine affects all of them alike.

On a CPU a figure is processor time divided by threads ("CPU time per core"), which does not grow if another process
takes the core. On a GPU it is wall time between two synchronisations (``samples``, ``windows``), or the device's own
time (``on_device``).
"""

from __future__ import annotations

import dataclasses
import math
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

WARM_UP_ROUNDS = 2
MIN_ROUNDS = 3
EVENT_ROUNDS, EVENT_WARM_UP_ROUNDS = 30, 3
CPU_ROUNDS, CPU_SLICE_S = 9, 0.01
L2_MULTIPLE = 3
"""The least total size of the inputs and outputs of all rotated calls, in sizes of the GPU's L2 cache."""
Call = Callable[[], object]
"""A piece of work to be timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds per call over ``n`` rounds: the least, the median, and the interquartile range (IQR)."""

    best_s: float
    median_s: float
    iqr_s: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        """Summarise samples in seconds; the quartiles interpolate between samples, and one sample has an IQR of 0."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(min(values), statistics.median(values), quartiles[2] - quartiles[0], len(values))

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def interleaved(calls: Mapping[str, Call], rounds: int, *, slice_s: float | None = None) -> dict[str, Timing]:
    """Time every call once per round, after two warm-up rounds; a sample averages the calls that fill ``slice_s``. The
    calls run on the CPU."""
    found = samples(calls, rounds, slice_s=slice_s, on_gpu=False)
    return {name: Timing.of(values) for name, values in found.items()}


def samples(
    calls: Mapping[str, Call],
    rounds: int,
    *,
    slice_s: float | None = None,
    children: bool = False,
    on_gpu: bool | None = None,
) -> dict[str, list[float]]:
    """The samples behind ``interleaved``: seconds per call, one per round. Samples of a round are neighbours in time.

    ``children`` adds the processor time of child processes that have ended, for peers with workers. ``on_gpu`` as for
    ``windows``.
    """
    found = windows(calls, rounds, slice_s=slice_s, children=children, on_gpu=on_gpu)
    return {name: [w.seconds for w in taken] for name, taken in found.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """A peer's time over ours: median and IQR of the ratios by round, and the ratio of the best times."""
    found = Timing.of([b / a for a, b in zip(ours, theirs, strict=True)])
    return {"ratio_median": found.median_s, "ratio_iqr": found.iqr_s, "ratio_best": min(theirs) / min(ours)}


@dataclass(frozen=True)
class Window:
    """Seconds per call: wall time, and the time that this module reports (wall on a GPU, else CPU time per core)."""

    wall_s: float
    seconds: float


def windows(
    calls: Mapping[str, Call],
    rounds: int,
    inner: int = 1,
    *,
    slice_s: float | None = None,
    children: bool = False,
    budget_s: float | None = None,
    on_gpu: bool | None = None,
) -> dict[str, list[Window]]:
    """``rounds`` windows of every call, alternating, after the warm-up. After ``budget_s`` seconds no new round begins,
    but ``MIN_ROUNDS`` are always taken. ``on_gpu``: whether the calls run on a GPU; by default if this process has
    initialised CUDA, which a benchmark of the CPU may find done by another one before it."""
    on_gpu = torch.cuda.is_initialized() if on_gpu is None else on_gpu
    counts = dict.fromkeys(calls, inner)
    start = time.perf_counter()
    for name, call in calls.items():
        taken = [_window(call, 1, children, on_gpu) for _ in range(WARM_UP_ROUNDS)][-1]
        if slice_s is not None:
            counts[name] = max(1, round(slice_s / max(taken.wall_s, 1e-7)))
    found: dict[str, list[Window]] = {name: [] for name in calls}
    for i in range(rounds):
        if budget_s is not None and i >= MIN_ROUNDS and time.perf_counter() - start > budget_s:
            break
        for name, call in calls.items():
            found[name].append(_window(call, counts[name], children, on_gpu))
    return found


def _window(call: Call, inner: int, children: bool, on_gpu: bool) -> Window:
    wait()
    wall, cpu = time.perf_counter(), cpu_seconds(children)
    for _ in range(inner):
        call()
    wait()
    wall, cpu = time.perf_counter() - wall, cpu_seconds(children) - cpu
    return Window(wall / inner, (wall if on_gpu else cpu / torch.get_num_threads()) / inner)


def wait(place: torch.device | None = None) -> None:
    """Wait until the GPU is idle. Does nothing if ``place`` is a CPU, or without ``place`` if CUDA is not in use."""
    if place.type == "cuda" if place is not None else torch.cuda.is_initialized():
        torch.cuda.synchronize()


def cpu_seconds(children: bool = False) -> float:
    """Processor seconds of all threads of this process; with ``children`` also of its children that have ended."""
    if not children:
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def on_device(make: Callable[[], Call], num_bytes: int, device: torch.device | str) -> Timing:
    """Seconds per call in the device's own time, without gradients; ``make`` returns a call with new inputs.

    On a GPU: calls on several inputs, which together exceed its L2 cache, replayed as one CUDA graph. On a CPU:
    processor time of one call repeated with warm caches.
    """
    with torch.no_grad():
        if torch.device(device).type == "cpu":
            return interleaved({"call": make()}, CPU_ROUNDS, slice_s=CPU_SLICE_S)["call"]
        return replayed([make() for _ in range(num_rotated(num_bytes))])


def num_rotated(bytes_per_call: int) -> int:
    """The number of calls with inputs of their own whose bytes together are L2_MULTIPLE L2 caches, at most 64."""
    if not torch.cuda.is_available():
        return 1
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(1, math.ceil(L2_MULTIPLE * l2 / max(1, bytes_per_call))))


def launched(calls: Sequence[Call], rounds: int = EVENT_ROUNDS) -> Timing:
    """Seconds per call on a GPU when calls are launched one by one from Python; results are kept until all are done.

    Without a GPU (a dry run of a GPU benchmark) each call is made once.
    """
    kept: list[Any] = []

    def once() -> None:
        kept[:] = [call() for call in calls]

    return _events(once, len(calls), rounds)


def replayed(calls: Sequence[Call], rounds: int = EVENT_ROUNDS) -> Timing:
    """As ``launched``, but with all calls in one CUDA graph: the device's own time, without gaps between launches."""
    if not torch.cuda.is_available():
        return launched(calls, rounds)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for call in calls:
            call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = [call() for call in calls]
    found = _events(graph.replay, len(calls), rounds)
    del kept
    return found


def _events(work: Call, num_calls: int, rounds: int) -> Timing:
    """Seconds per call between two events on the current stream; without a GPU the wall time of one round."""
    if not torch.cuda.is_available():
        before = time.perf_counter()
        work()
        return Timing.of([(time.perf_counter() - before) / num_calls])
    seconds = []
    for _ in range(rounds + EVENT_WARM_UP_ROUNDS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        seconds.append(start.elapsed_time(end) * 1e-3 / num_calls)
    return Timing.of(seconds[EVENT_WARM_UP_ROUNDS:])
