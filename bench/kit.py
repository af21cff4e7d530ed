"""What the two kernel benchmarks share: the real cases and the columns. Family.check is the gate that comes first.

A column sets its kernel tier inside the call, so that columns can be interleaved.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family, families

Columns = dict[str, Callable[[], Any]]

DTYPES = (torch.float32, torch.bfloat16)
COMPILE_LIMIT_S = 60


def keep_memory() -> bool:
    """Tell glibc to hand no freed memory back: a page that is faulted in again costs more than what is timed here.

    Without it, whether a call pays for its pages hangs on what other columns have freed before. False elsewhere.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    trim_threshold, mmap_max = -1, -4
    return mallopt is not None and bool(mallopt(trim_threshold, 2**31 - 1)) and bool(mallopt(mmap_max, 0))


def real_cases(only: str | None = None) -> Iterator[tuple[Family, Case, torch.dtype]]:
    """The recipes' own shapes of every family, or of one, in fp32 and bf16 where the family has them."""
    for family in families():
        if only not in (None, family.name):
            continue
        for case in (c for c in family.cases if c.real):
            yield from ((family, case, dtype) for dtype in DTYPES if dtype in family.tolerance)


def is_first(family: Family, case: Case, dtype: torch.dtype) -> bool:
    """Whether this is the case for which a family's compiled reference is shown."""
    first = next(c for c in family.cases if c.real)
    return case is first and dtype is next(d for d in DTYPES if d in family.tolerance)


def column(family: Family, case: Case, dtype: torch.dtype, name: str, device: str = "cpu") -> Callable[[], None]:
    """The family's public function on the tier ``name``, without gradients."""
    return with_tier(family.make(case, dtype, device).run, name)


def compiled(family: Family, case: Case, dtype: torch.dtype, device: str = "cpu") -> tuple[Callable[[], None], float]:
    """torch.compile of the reference, already run once, and the seconds that took."""
    torch._dynamo.reset()
    run = with_tier(torch.compile(family.make(case, dtype, device).run), "reference")
    start = time.perf_counter()
    run()
    return run, time.perf_counter() - start


def with_tier(call: Callable[[], Any], name: str) -> Callable[[], None]:
    """``call`` on the tier ``name``, without gradients."""
    with tier.using(name):
        chosen = tier.snapshot()

    def run() -> None:
        tier.restore(chosen)
        with torch.no_grad():
            call()

    return run
