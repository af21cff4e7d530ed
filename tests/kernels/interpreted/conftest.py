"""For the Triton tier on CPU tensors; test_triton.py runs this folder with TRITON_INTERPRET=1."""

from __future__ import annotations

import numpy as np
import pytest
import torch


@pytest.fixture(autouse=True)
def to_nearest(monkeypatch):
    """fp32 becomes bf16 as on hardware, by rounding to nearest, where the interpreter cuts: a chain of layers would be
    off by more than a wrong one is."""
    import triton.language as tl
    from triton.runtime import interpreter

    cut = interpreter._convert_float

    def convert(value, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return cut(value, source, target, mode)
        exact = torch.from_numpy(np.array(value).view(np.float32))
        return exact.bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
