"""The roofs that every share refers to, measured here and now: bandwidth by a copy, arithmetic by a matrix product.

Both are medians of warm calls on inputs larger than the caches, on the device's current threads, and are kept for the
rest of the process. On a CPU the clock is that of ``timing``: processor time divided by threads.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import lru_cache

import torch

from .timing import event_s, interleaved

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
MATMUL = {"cpu": 2048, "cuda": 8192}
ROUNDS = {"cpu": 7, "cuda": 15}
WARM_UP_CALLS = 3


def copy_bytes_per_s(device: torch.device | str, num_bytes: int | None = None) -> float:
    """Bytes read plus bytes written a second by a copy of ``num_bytes`` (256 MiB on a CPU, 2 GiB on a GPU)."""
    kind = torch.device(device).type
    return _copy(str(device), num_bytes or COPY_BYTES[kind], torch.get_num_threads())


def matmul_flops_per_s(device: torch.device | str, dtype: torch.dtype, size: int | None = None) -> float:
    """FLOP/s (a multiply-add is two) of a square matrix product; fp32 with TF32 where that is switched on."""
    kind = torch.device(device).type
    return _matmul(str(device), dtype, size or MATMUL[kind], torch.get_num_threads())


@lru_cache
def _copy(device: str, num_bytes: int, threads: int) -> float:
    # Never zeros: pages that were not written may all be one, and some devices compress.
    source = torch.randint(0, 256, (num_bytes // 8, 8), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / median_s(lambda: target.copy_(source), device)


@lru_cache
def _matmul(device: str, dtype: torch.dtype, size: int, threads: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / median_s(lambda: torch.mm(a, b, out=out), device)


def median_s(call: Callable[[], object], device: torch.device | str) -> float:
    """Seconds a call on the device, warm; CUDA events on a GPU."""
    kind = torch.device(device).type
    if kind == "cpu":
        return interleaved({"call": call}, ROUNDS[kind])["call"].median_s
    for _ in range(WARM_UP_CALLS):
        call()
    return statistics.median(event_s(call) for _ in range(ROUNDS[kind]))
