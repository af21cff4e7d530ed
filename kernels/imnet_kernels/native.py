"""Helpers of the host and CUDA tiers: loading the libraries, dtype codes, memory layouts.

Host kernels use torch's number of threads, so that torch.set_num_threads and OMP_NUM_THREADS apply to them too.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from .build import CUDA_MODULE, PACKAGE
from .implementations import TIERS, find_host

CODES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.uint8: 3}


def host() -> ModuleType:
    """imnet_kernels._host; raises RuntimeError if it is not installed, which choosing the tier has ruled out."""
    found = find_host()
    if found is None:
        raise RuntimeError(f"the host kernels are not installed; {TIERS['host'].remedy}")
    return found


def dense(like: Tensor, *tensors: Tensor) -> list[Tensor]:
    """The tensors in the layout of ``like``; those with another layout are copied."""
    return [t.contiguous(memory_format=memory_format(like)) for t in tensors]


def memory_format(like: Tensor) -> torch.memory_format:
    """channels_last if ``like`` (B, C, H, W) is channels_last and not also contiguous, else contiguous."""
    last = like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


@lru_cache(maxsize=1)
def cuda(folder: Path = PACKAGE):
    """torch.ops.imnet_cuda, loaded once; raises RuntimeError if it was not built for this version of torch."""
    library = folder / CUDA_MODULE.format(torch.__version__)
    if not library.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("_C.torch*.so"))) or "none"
        remedy = "run `python -m imnet_kernels.build` again"
        raise RuntimeError(f"CUDA kernels built: {found}; allowed {library.name}, for this torch; {remedy}")
    torch.ops.load_library(str(library))
    return torch.ops.imnet_cuda
