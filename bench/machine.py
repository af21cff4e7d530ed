"""The fingerprint of the machine, which every JSON contains, and the measured roofs that shares refer to.

Bandwidth is measured with a copy and arithmetic with a matrix product, on inputs larger than the caches, by
``clock.on_device`` with the current number of threads; results are cached for the rest of the process. On a GPU the
roof is the median. On a CPU it is the best, because kernels are compared by their best times, and because the median on
a busy machine would be too low for a roof.
"""

from __future__ import annotations

import datetime
import platform
import resource
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from imnet.environment import environment, version

from .clock import Timing, on_device
from .form import plural

PEERS = ("timm", "torchvision", "triton", "numpy", "pillow", "ffcv", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
MATMUL = {"cpu": 2048, "cuda": 8192}
OVER_COPY = "over 100 %: in the caches, which the copy exceeds, or with less to write than to read"
"""A note for tables: why a kernel may move its bytes faster than the copy that its share refers to."""


def fingerprint(precision: str, n: int | None = None) -> dict[str, Any]:
    """CPU, cores, GPU, clocks, driver, versions, commit, precision, threads, date; ``n``: samples per figure."""
    found = environment()
    hardware, versions = found["hardware"], dict(found["versions"])
    versions |= {name: got for name in PEERS if (got := version(name)) is not None}
    gpus = hardware["gpus"]
    return {
        "cpu": hardware["cpu"],
        "cores": hardware["cores"],
        "cpu_mhz": _cpu_mhz(),
        "gpu": gpus[0] if gpus else None,
        "gpus": len(gpus),
        **(_nvidia() if gpus else {}),
        "versions": versions,
        "git_sha": found["git_sha"],
        "precision": precision,
        "threads": found["threads"],
        "system": platform.platform(),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        **({} if n is None else {"n": n}),
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The reasons why figures of two fingerprints cannot be compared ("cpu was A, is B"); empty if they can.

    CPU, cores, GPU, precision, threads and torch's version without its last part must agree; the rest may differ.
    """
    before, now = _compared(old), _compared(new)
    return [f"{key} was {before[key]}, is {now[key]}" for key in now if before[key] != now[key]]


def _compared(found: Mapping[str, Any]) -> dict[str, Any]:
    torch_version = ".".join(found["versions"]["torch"].split(".")[:2])
    parts = {key: found.get(key) for key in ("cpu", "cores", "gpu", "precision", "threads")}
    return parts | {"torch": torch_version}


def text(found: Mapping[str, Any]) -> str:
    """A fingerprint as one line for the head of a table."""
    where = found["gpu"] or f"{found['cpu']}, {found['cores']} cores"
    threads = "" if found["gpu"] else f", {plural(found['threads'], 'thread')}"
    sha = (found["git_sha"] or "no commit")[:10]
    return f"{where}{threads}, {found['precision']}, torch {found['versions']['torch']}, {sha}, {found['date']}"


def _cpu_mhz() -> float | None:
    """The current clock of the first core, or None if /proc/cpuinfo does not have it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((float(line.split(":")[1]) for line in lines if line.startswith("cpu MHz")), None)


def _nvidia() -> dict[str, Any]:
    """Driver, clocks in MHz, power limit in W and capability of the first GPU; {"driver": None} without nvidia-smi.

    nvidia-smi counts all GPUs in the order of their slots, CUDA only the visible ones, perhaps in another order. So the
    row of torch's first GPU is found by its UUID. A slice (MIG) has no row, and gets the driver alone.
    """
    fields = {
        "uuid": "uuid",
        "driver": "driver_version",
        "sm_mhz": "clocks.sm",
        "sm_max_mhz": "clocks.max.sm",
        "memory_mhz": "clocks.mem",
        "power_limit_w": "power.limit",
    }
    command = ["nvidia-smi", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader,nounits"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return {"driver": None}
    rows = [dict(zip(fields, (part.strip() for part in line.split(",")), strict=False)) for line in lines]
    uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
    driver = {"uuid": uuid, "driver": rows[0].get("driver") if rows else None}
    values = next((row for row in rows if row["uuid"] == uuid), driver)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    return {name: value for name, value in values.items() if name != "uuid"} | {"capability": capability}


def forget_peak() -> None:
    """Reset the peak of the GPU's memory, if CUDA is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def peak_bytes(place: torch.device) -> int:
    """The peak of the memory in use: of CUDA's allocator, or on a CPU of the process's resident set."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def copy_bytes_per_s(device: torch.device | str, num_bytes: int | None = None) -> float:
    """Bytes read plus bytes written per second by a copy of ``num_bytes`` (256 MiB on a CPU, 2 GiB on a GPU).

    On a GPU an elementwise kernel reads and writes them: the driver's own copy, replayed in a graph on an H200, reached
    only 2.8 TB/s where kernels of a training step moved 4.4 (2026-11-26).
    """
    kind = torch.device(device).type
    return _copy(str(device), num_bytes or COPY_BYTES[kind], torch.get_num_threads())


def matmul_flops_per_s(device: torch.device | str, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s (a multiply-add counts as two) of a square matrix product; fp32 uses TF32 if torch is set to."""
    kind = torch.device(device).type
    return _matmul(str(device), dtype, size or MATMUL[kind], torch.get_num_threads())


@lru_cache
def _copy(device: str, num_bytes: int, threads: int) -> float:
    # Not zeros: pages never written may share one physical page, and some devices compress memory.
    source = torch.randint(0, 256, (num_bytes // 8, 8), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    words, out = source.view(torch.int32), target.view(torch.int32)
    run = (lambda: target.copy_(source)) if torch.device(device).type == "cpu" else (lambda: torch.neg(words, out=out))
    return 2 * num_bytes / _roof_s(on_device(lambda: run, 2 * num_bytes, device), device)


@lru_cache
def _matmul(device: str, dtype: torch.dtype, size: int, threads: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / _roof_s(on_device(lambda: lambda: torch.mm(a, b, out=out), 3 * a.nbytes, device), device)


def _roof_s(taken: Timing, device: str) -> float:
    return taken.best_s if torch.device(device).type == "cpu" else taken.median_s
