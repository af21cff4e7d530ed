"""Timing on a shared machine: CPU time, interleaved columns, the minimum of many, a warm allocator, one thread."""

from __future__ import annotations

import datetime
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

WARM_UP_CALLS = 3


def seconds_per_call(call: Callable[[], Any], num_calls: int) -> float:
    """CPU seconds of this process, all its threads, per call."""
    start = time.process_time()
    for _ in range(num_calls):
        call()
    return (time.process_time() - start) / num_calls


def interleaved(columns: dict[str, Callable[[], Any]], rounds: int = 12, slice_s: float = 0.03) -> dict[str, float]:
    """{name: CPU seconds per call}: A B C A B C ..., the minimum of the rounds; all are warmed up first.

    Interleaving lets a neighbour's burst hit every column; the warm-up keeps a cold allocator's page faults, which once
    made a kernel look ten times faster than it was, out of all of them.
    """
    num_calls = {}
    for name, call in columns.items():
        seconds_per_call(call, WARM_UP_CALLS)
        num_calls[name] = max(1, round(slice_s / max(seconds_per_call(call, 1), 1e-7)))
    best = dict.fromkeys(columns, float("inf"))
    for _ in range(rounds):
        for name, call in columns.items():
            best[name] = min(best[name], seconds_per_call(call, num_calls[name]))
    return best


def copy_bytes_per_s(num_bytes: int = 1 << 28) -> float:
    """Bytes read plus bytes written per CPU second by a large copy on one thread."""
    source, target = torch.ones(num_bytes, dtype=torch.uint8), torch.zeros(num_bytes, dtype=torch.uint8)
    best = min(seconds_per_call(lambda: target.copy_(source), 1) for _ in range(12))
    return 2 * num_bytes / best


def cpu_seconds_with_children() -> float:
    """User and system seconds of this process and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(u.ru_utime + u.ru_stime for u in usages)


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def environment() -> dict[str, str]:
    """What a figure needs beside it."""
    from imnet_kernels import hostlib

    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "cpu": _cpu_name(),
        "threads": "1",
        "isa": hostlib.module().isa(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "method": "CPU time, interleaved, minimum of 12, warm allocator",
    }
