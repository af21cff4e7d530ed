"""What this process may use of its machine: cores and memory, less where a container or a job has a share of it."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/")


def num_cores(root: Path = ROOT) -> int:
    """Cores of this process's affinity, or the quota of a container or a job where that is less:
    more threads than the quota has are stopped for most of each period."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups("cpu", root):
        # Quota and period: in one file, or in the two of version 1. Neither "max" nor -1 is a limit.
        both = _words(group / "cpu.max") or [
            word for name in ("quota", "period") for word in _words(group / f"cpu.cfs_{name}_us")
        ]
        if len(both) == 2 and both[0].isdecimal():
            cores = min(cores, math.ceil(int(both[0]) / int(both[1])))
    return max(1, cores)


def free_memory_bytes(root: Path = ROOT) -> int:
    """Memory that can be had without swapping; half of all where the system does not tell, as macOS does not."""
    if not (free := 1024 * _number(root / "proc/meminfo", "MemAvailable:")):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for group in _groups("memory", root):
        # The names of version 2, then of version 1. Cached files count as used, and are given back when needed.
        for limit, used, cached in (
            ("memory.max", "memory.current", ("active_file", "inactive_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
        ):
            most, now = _words(group / limit), _words(group / used)
            if most and now and most[0] != "max":
                cache = sum(_number(group / "memory.stat", key) for key in cached)
                free = min(free, max(0, int(most[0]) - int(now[0]) + cache))
    return free


def cpu_name() -> str:
    """As Linux names it; elsewhere the family that Python knows."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str:
    """The first core's line of /proc/cpuinfo, such as "flags"; empty where there is none."""
    lines = (line.partition(":") for line in _lines(ROOT / "proc/cpuinfo"))
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of the control groups that this process is in, innermost first; none outside Linux."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree for all controllers, and names none.
        if not controllers or controller in controllers.split(","):
            top = root / "sys/fs/cgroup" / (controller if controllers else "")
            inner = top / path.strip("/")
            yield from (group for group in (inner, *inner.parents) if group.is_relative_to(top))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []


def _words(path: Path) -> list[str]:
    return [word for line in _lines(path) for word in line.split()]


def _number(path: Path, key: str) -> int:
    """The number behind ``key`` at the start of a line; 0 where the file has none."""
    rows = (line.split() for line in _lines(path))
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == key), 0)
