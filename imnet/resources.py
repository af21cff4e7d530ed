"""The cores and the memory that this process may use, including the limits of a container or a job."""

from __future__ import annotations

import errno
import itertools
import math
import os
import platform
import re
import time
from collections.abc import Iterator
from pathlib import Path

from imnet.errors import DeviceError, ImnetError, IOFailure

ROOT = Path("/")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""The numbers of the errors of a disk, a quota or a limit of a file's size."""
FEWER = "take a smaller --batch-size"
"""The hint for memory in commands that have this option."""
LOOK_S = 0.03
"""How long each of three looks at the use of the cores takes: three units of what Linux counts in."""


def num_cores(root: Path = ROOT) -> int:
    """Number of cores that this process may run on, or the CPU quota of its container or job if that is less: threads
    beyond the quota would be stopped for most of each period."""
    cores = len(_cores())
    for group in _groups("cpu", root):
        # Quota and period are in one file, or in two in version 1. "max" and -1 mean no limit.
        both = _words(group / "cpu.max") or [
            word for name in ("quota", "period") for word in _words(group / f"cpu.cfs_{name}_us")
        ]
        if len(both) == 2 and both[0].isdecimal():
            cores = min(cores, math.ceil(int(both[0]) / int(both[1])))
    return max(1, cores)


def idle_cores(root: Path = ROOT) -> float:
    """Number of cores that this process may run on and that no other process is using just now; all of them if the
    system does not say (macOS). Call it while this process waits for nothing.

    It is the most of three looks, so that a short burst of another program does not count. Programs that yield to
    others (``nice``) do not count either: they took next to nothing from a run.
    """
    looks = [_core_seconds(root)]
    for _ in range(3):
        time.sleep(LOOK_S)
        looks.append(_core_seconds(root))
    spans = [(idle - idle0, total - total0) for (idle0, total0), (idle, total) in itertools.pairwise(looks)]
    cores = num_cores(root)
    return min(cores, max(len(_cores()) * idle / total if total > 0 else cores for idle, total in spans))


def _core_seconds(root: Path) -> tuple[float, float]:
    """Seconds that the cores of this process have been idle, or worked for it or for ``nice`` programs; and in all."""
    rows = [row.split() for row in _lines(root / "proc/stat")]
    mine = [[int(word) for word in row[1:9]] for row in rows if row and row[0] in {f"cpu{n}" for n in _cores()}]
    if not mine or len(mine[0]) < 8:
        return 0.0, 0.0
    # user, nice, system, idle, iowait, irq, softirq, steal
    hertz, own = os.sysconf("SC_CLK_TCK"), time.process_time()
    return sum(row[1] + row[3] + row[4] for row in mine) / hertz + own, sum(map(sum, mine)) / hertz


def free_memory_bytes(root: Path = ROOT) -> int:
    """Memory that is available without swapping; half of all memory if the system does not report it (macOS)."""
    if not (free := 1024 * _number(root / "proc/meminfo", "MemAvailable:")):
        free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    for group in _groups("memory", root):
        # The names of version 2, then of version 1. Cached files count as used, but are freed when needed.
        for limit, used, cached in (
            ("memory.max", "memory.current", ("active_file", "inactive_file")),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_active_file", "total_inactive_file")),
        ):
            most, now = _words(group / limit), _words(group / used)
            if most and now and most[0] != "max":
                cache = sum(_number(group / "memory.stat", key) for key in cached)
                free = min(free, max(0, int(most[0]) - int(now[0]) + cache))
    return free


def exhausted(error: BaseException, fewer: str = "take fewer or smaller images at once") -> ImnetError | None:
    """The error for what the system could not give: memory, a GPU, a thread or process, an open file, or the room for a
    named file; else None. ``fewer`` is the hint for memory."""
    if (size := lacking(error)) is not None:
        return DeviceError(f"out of memory{size}", hint=f"{fewer}, or a machine with more")
    if re.search(r"CUDA-capable device\S* (is/are|are) busy or unavailable", str(error)):
        hint = "another program has it for itself (exclusive mode): nvidia-smi shows which; or use --device cpu"
        return DeviceError("the GPU is busy or unavailable", hint=hint)
    number, file = (error.errno, error.filename) if isinstance(error, OSError) else (None, None)
    name = os.fsdecode(file) if isinstance(file, str | bytes) else None
    # A terminal or pipe that takes no more just now has this number too, but other words.
    forked = number == errno.EAGAIN and file is None and os.strerror(errno.EAGAIN) in str(error)
    if forked or str(error) == "can't start new thread":
        hint = "raise their limit (ulimit -u, or the container's), or take fewer (--threads, --workers, --procs)"
        return DeviceError("no more threads or processes can be started here", hint=hint)
    if number in (errno.EMFILE, errno.ENFILE) or os.strerror(errno.EMFILE) in str(error):
        return IOFailure("too many open files", file=name, hint="raise their limit: ulimit -n 4096")
    if number in FULL and name is not None:
        return IOFailure(f"not written: {os.strerror(number)}", file=name, hint="free some space there")
    # The compiler of torch.compile tells it among its warnings.
    full = None if isinstance(error, OSError) else re.search(rf"(\S+): {os.strerror(errno.ENOSPC)}", str(error))
    if full:
        return IOFailure(
            f"not written: {os.strerror(errno.ENOSPC)}", file=full[1], hint="free some space, or set TMPDIR"
        )
    return None


def lacking(error: BaseException) -> str | None:
    """Words for the memory that Python, numpy or torch could not get, if ``error`` says that; else None."""
    if isinstance(error, MemoryError):
        return f": {error}" if str(error) else ""
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:  # a file that cannot be mapped, or a fork
        return ""
    text = str(error)
    asked = re.search(r"DefaultCPUAllocator: .* memory: you tried to allocate (\d+) bytes", text)
    if asked:
        return f": a tensor of {int(asked[1]) / 2**30:.1f} GiB did not fit"
    mapped = re.search(r"unable to mmap (\d+) bytes from file .*: Cannot allocate memory", text)
    if mapped:
        return f": a file of {int(mapped[1]) / 2**30:.1f} GiB could not be mapped"
    if isinstance(error, ImportError) and text.endswith("failed to map segment from shared object"):
        return f": {text.partition(':')[0]} could not be loaded"
    # The first is torch.OutOfMemoryError; CUDA and its libraries allocate without torch too.
    if re.search("CUDA out of memory|CUDA error: out of memory|_STATUS_ALLOC_FAILED", text):
        asked = re.search(r"Tried to allocate ([\d.]+ \w+)", text)
        return f": {asked[1]} more did not fit on the GPU" if asked else " on the GPU"
    return None


def _cores() -> set[int]:
    """The numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def cpu_name() -> str:
    """The CPU's model name on Linux; elsewhere the processor type or architecture that Python reports."""
    return cpu_field("model name") or platform.processor() or platform.machine()


def cpu_field(name: str) -> str:
    """The first core's value of a line in /proc/cpuinfo, such as "flags"; empty if there is none."""
    lines = (line.partition(":") for line in _lines(ROOT / "proc/cpuinfo"))
    return next((value.strip() for key, _, value in lines if key.strip() == name), "")


def _groups(controller: str, root: Path) -> Iterator[Path]:
    """The folders of this process's control groups, innermost first; empty outside Linux."""
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree for all controllers, and lists none.
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
    """The number after ``key`` at the start of a line; 0 if the file has no such line."""
    rows = (line.split() for line in _lines(path))
    return next((int(row[1]) for row in rows if len(row) > 1 and row[0] == key), 0)
