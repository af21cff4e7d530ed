"""The clocks of this folder: A B A B ..., so that whatever else the machine does falls on both alike.

On a CPU a figure is processor time divided by threads ("CPU time per core"), which another process cannot stretch by
taking the core; on a GPU it is wall time between two synchronisations (``samples``, ``windows``), or the device's own
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
"""Inputs and outputs of all rotated calls together, in sizes of a GPU's L2 cache."""
Call = Callable[[], object]
"""What is timed."""


@dataclass(frozen=True)
class Timing:
    """Seconds a call over ``n`` rounds: the least, the median, and the distance between the quartiles."""

    best_s: float
    median_s: float
    iqr_s: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        """Of samples in seconds; their quartiles lie between the samples, and those of a single one are itself."""
        quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
        return cls(min(values), statistics.median(values), quartiles[2] - quartiles[0], len(values))

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def interleaved(calls: Mapping[str, Call], rounds: int, *, slice_s: float | None = None) -> dict[str, Timing]:
    """Time every call once a round, after two uncounted ones; a sample is as many calls as fill ``slice_s`` seconds."""
    found = samples(calls, rounds, slice_s=slice_s)
    return {name: Timing.of(values) for name, values in found.items()}


def samples(
    calls: Mapping[str, Call], rounds: int, *, slice_s: float | None = None, children: bool = False
) -> dict[str, list[float]]:
    """What ``interleaved`` condenses: seconds a call, one a round; position i of all calls was taken at one time.

    ``children`` adds the processor time of processes that have ended, for peers with workers.
    """
    found = windows(calls, rounds, slice_s=slice_s, children=children)
    return {name: [w.seconds for w in taken] for name, taken in found.items()}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """A peer's time over ours, round by round: median, distance of the quartiles, and the ratio of the best times."""
    found = Timing.of([b / a for a, b in zip(ours, theirs, strict=True)])
    return {"ratio_median": found.median_s, "ratio_iqr": found.iqr_s, "ratio_best": min(theirs) / min(ours)}


@dataclass(frozen=True)
class Window:
    """Seconds a call by the wall's clock, and by this module's: the same on a GPU, CPU time per core else."""

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
) -> dict[str, list[Window]]:
    """``rounds`` windows of every call, in turn, after the warm-up; once ``budget_s`` are over, ``MIN_ROUNDS`` do."""
    counts = dict.fromkeys(calls, inner)
    start = time.perf_counter()
    for name, call in calls.items():
        taken = [_window(call, 1, children) for _ in range(WARM_UP_ROUNDS)][-1]
        if slice_s is not None:
            counts[name] = max(1, round(slice_s / max(taken.wall_s, 1e-7)))
    found: dict[str, list[Window]] = {name: [] for name in calls}
    for i in range(rounds):
        if budget_s is not None and i >= MIN_ROUNDS and time.perf_counter() - start > budget_s:
            break
        for name, call in calls.items():
            found[name].append(_window(call, counts[name], children))
    return found


def _window(call: Call, inner: int, children: bool) -> Window:
    """``inner`` calls in a row. Where nothing has used the GPU, nothing can be waited for on it."""
    on_gpu = torch.cuda.is_initialized()
    wait()
    wall, cpu = time.perf_counter(), cpu_seconds(children)
    for _ in range(inner):
        call()
    wait()
    wall, cpu = time.perf_counter() - wall, cpu_seconds(children) - cpu
    return Window(wall / inner, (wall if on_gpu else cpu / torch.get_num_threads()) / inner)


def wait(place: torch.device | None = None) -> None:
    """Until the GPU is idle: the one of ``place``, which may be a CPU; else any that was used."""
    if place.type == "cuda" if place is not None else torch.cuda.is_initialized():
        torch.cuda.synchronize()


def cpu_seconds(children: bool = False) -> float:
    """Processor seconds of this process, all its threads; with ``children`` also of its children that have ended."""
    if not children:
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def on_device(make: Callable[[], Call], num_bytes: int, device: torch.device | str) -> Timing:
    """Seconds a call of the device's own time, without gradients; ``make`` gives a call with inputs of its own.

    On a GPU calls on inputs in turn, which together exceed its L2 cache, replayed as one CUDA graph; on a CPU processor
    time of one call again and again, warm.
    """
    with torch.no_grad():
        if torch.device(device).type == "cpu":
            return interleaved({"call": make()}, CPU_ROUNDS, slice_s=CPU_SLICE_S)["call"]
        return replayed([make() for _ in range(num_rotated(num_bytes))])


def num_rotated(bytes_per_call: int) -> int:
    """How many calls on inputs of their own exceed the GPU's L2 cache by far."""
    if not torch.cuda.is_available():
        return 1
    l2 = torch.cuda.get_device_properties(0).L2_cache_size
    return min(64, max(1, math.ceil(L2_MULTIPLE * l2 / max(1, bytes_per_call))))


def launched(calls: Sequence[Call], rounds: int = EVENT_ROUNDS) -> Timing:
    """Seconds a call on a GPU, launched one by one from Python, on each call's inputs in turn; results are kept.

    Without a GPU, in a dry run of what is for one, each call is made once.
    """
    kept: list[Any] = []

    def once() -> None:
        kept[:] = [call() for call in calls]

    return _events(once, len(calls), rounds)


def replayed(calls: Sequence[Call], rounds: int = EVENT_ROUNDS) -> Timing:
    """The same with all calls in one CUDA graph: the device's own time, without the gaps between launches."""
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
    """Seconds between two events on the current stream; without a GPU one round by the wall's clock."""
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
