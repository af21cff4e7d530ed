"""Interleaved timing: A B A B ..., so that whatever else the machine does falls on both alike."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """Seconds a call over ``n`` rounds: CPU time divided by threads where everything ran on the CPU, else wall time."""

    best_s: float
    median_s: float
    iqr_s: float
    n: int


def interleaved(calls: Mapping[str, Callable[[], object]], rounds: int, inner: int = 1) -> dict[str, Timing]:
    """Time every call once a round (``inner`` calls each) after two uncounted rounds."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 2):
        for name, call in calls.items():
            seconds = _once(call, inner)
            if i >= 2:
                samples[name].append(seconds)
    return {name: _timing(values) for name, values in samples.items()}


def _once(call: Callable[[], object], inner: int) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(inner):
            call()
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / inner
    start = time.process_time()
    for _ in range(inner):
        call()
    return (time.process_time() - start) / inner / torch.get_num_threads()


def _timing(values: list[float]) -> Timing:
    quartiles = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Timing(min(values), statistics.median(values), quartiles[2] - quartiles[0], len(values))


def machine() -> dict[str, Any]:
    """What a figure was measured on."""
    from imnet.runfolder import environment

    return environment() | {"system": platform.platform()}
