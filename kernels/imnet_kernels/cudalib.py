"""Loading the CUDA library (`python -m imnet_kernels.build`) with one clear line where it does not fit this torch."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import torch

from .build import CUDA_MODULE, PACKAGE


@lru_cache(maxsize=1)
def ops(folder: Path = PACKAGE):
    """torch.ops.imnet_cuda, loaded once."""
    library = folder / CUDA_MODULE.format(torch.__version__)
    if not library.is_file():
        found = ", ".join(sorted(p.name for p in folder.glob("_C.torch*.so"))) or "none"
        remedy = "run `python -m imnet_kernels.build` again"
        raise RuntimeError(f"CUDA kernels built: {found}; allowed {library.name}, for this torch; {remedy}")
    torch.ops.load_library(str(library))
    return torch.ops.imnet_cuda
