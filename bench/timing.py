"""The timing of this folder: A B A B ..., so that whatever else the machine does falls on both alike.

On a CPU a figure is processor time divided by threads ("CPU time per core"), which another process cannot stretch by
taking the core; on a GPU it is wall time between two synchronisations. ``wall=True`` asks for wall time on a CPU too.
"""

from __future__ import annotations

import dataclasses
import resource
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

WARM_UP_ROUNDS = 2


@dataclass(frozen=True)
class Timing:
    """Seconds a call over ``n`` rounds: the least, the median, and the distance between the quartiles."""

    best_s: float
    median_s: float
    iqr_s: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Timing:
        """Of samples in seconds; the quartiles of a single one are itself."""
        quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
        return cls(min(values), statistics.median(values), quartiles[2] - quartiles[0], len(values))

    def as_dict(self) -> dict[str, float]:
        return dataclasses.asdict(self)


def interleaved(
    calls: Mapping[str, Callable[[], object]],
    rounds: int = 12,
    inner: int = 1,
    *,
    slice_s: float | None = None,
    children: bool = False,
    wall: bool = False,
) -> dict[str, Timing]:
    """Time every call once a round, after two uncounted rounds.

    ``inner`` calls make one sample, or as many as fill about ``slice_s`` seconds. ``children`` adds the processor time
    of processes that have ended, for peers with workers.
    """
    found = samples(calls, rounds, inner, slice_s=slice_s, children=children, wall=wall)
    return {name: Timing.of(values) for name, values in found.items()}


def samples(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    inner: int = 1,
    *,
    slice_s: float | None = None,
    children: bool = False,
    wall: bool = False,
) -> dict[str, list[float]]:
    """What ``interleaved`` condenses: seconds a call, one a round; position i of all calls was taken at one time."""
    found = windows(calls, rounds, inner, slice_s=slice_s, children=children)
    return {name: [w.wall_s if wall else w.seconds for w in taken] for name, taken in found.items()}


@dataclass(frozen=True)
class Window:
    """Seconds a call by the wall's clock, and by this module's: the same on a GPU, CPU time per core else."""

    wall_s: float
    seconds: float


def windows(
    calls: Mapping[str, Callable[[], object]],
    rounds: int,
    inner: int = 1,
    *,
    slice_s: float | None = None,
    children: bool = False,
    budget_s: float | None = None,
    min_rounds: int = 3,
) -> dict[str, list[Window]]:
    """``rounds`` windows of every call, in turn, after the warm-up; once ``budget_s`` are over, ``min_rounds`` do."""
    counts = dict.fromkeys(calls, inner)
    start = time.perf_counter()
    for name, call in calls.items():
        taken = [_window(call, 1, children) for _ in range(WARM_UP_ROUNDS)][-1]
        if slice_s is not None:
            counts[name] = max(1, round(slice_s / max(taken.wall_s, 1e-7)))
    found: dict[str, list[Window]] = {name: [] for name in calls}
    for i in range(rounds):
        if budget_s is not None and i >= min_rounds and time.perf_counter() - start > budget_s:
            break
        for name, call in calls.items():
            found[name].append(_window(call, counts[name], children))
    return found


def _window(call: Callable[[], object], inner: int, children: bool) -> Window:
    """``inner`` calls in a row."""
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), cpu_seconds(children)
    for _ in range(inner):
        call()
    if on_gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, cpu_seconds(children) - cpu
    return Window(wall / inner, (wall if on_gpu else cpu / torch.get_num_threads()) / inner)


def cpu_seconds(children: bool = False) -> float:
    """Processor seconds of this process, all its threads; with ``children`` also of its children that have ended."""
    if not children:
        return time.process_time()
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)
