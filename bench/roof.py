"""The roofs that every share refers to, measured here and now: bandwidth by a copy, arithmetic by a matrix product.

Both are medians of warm calls on inputs larger than the caches, by ``clock.on_device`` with the device's current
threads, and are kept for the rest of the process.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from .clock import on_device

COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}
MATMUL = {"cpu": 2048, "cuda": 8192}


def copy_bytes_per_s(device: torch.device | str, num_bytes: int | None = None) -> float:
    """Bytes read plus bytes written a second by a copy of ``num_bytes`` (256 MiB on a CPU, 2 GiB on a GPU).

    On a GPU by a kernel that reads and writes them: the driver's own copy, replayed in a graph on an H200, reached
    2.8 TB/s where kernels of a training step moved 4.4 (2026-11-26).
    """
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
    words, out = source.view(torch.int32), target.view(torch.int32)
    run = (lambda: target.copy_(source)) if torch.device(device).type == "cpu" else (lambda: torch.neg(words, out=out))
    return 2 * num_bytes / on_device(lambda: run, 2 * num_bytes, device).median_s


@lru_cache
def _matmul(device: str, dtype: torch.dtype, size: int, threads: int) -> float:
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(a)
    return 2 * size**3 / on_device(lambda: lambda: torch.mm(a, b, out=out), 3 * a.nbytes, device).median_s
