"""augment through the CUDA library."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import native
from .reference import Spec, empty_batch


def augment(
    store: Tensor,
    ids: Tensor,
    sample_ids: Tensor,
    scale: Tensor,
    shift: Tensor,
    spec: Spec,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """See reference.augment. An id out of range gives an image of NaN."""
    _, height, width, _ = store.shape
    out = empty_batch(store, ids, dtype) if out is None else out
    given = spec.arguments(height, width)
    given["seed"] -= given["seed"] >> 63 << 64  # an op's int is a signed 64-bit integer
    arguments = (store, ids.contiguous(), sample_ids.contiguous(), scale, shift.contiguous())
    native.cuda().augment(*arguments, **given, out=out)
    return out
