"""augment on the CPU through imnet_kernels._host."""

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
    """See reference.augment; ``out`` (B, C, H, W) channels_last is written to if given."""
    num_stored, height, width, channels = store.shape
    ids, sample_ids, shift = ids.contiguous(), sample_ids.contiguous(), shift.contiguous()
    out = empty_batch(store, ids, dtype) if out is None else out
    per_pixel = shift.dim() == 3
    native.host().augment(
        store=store.data_ptr(),
        ids=ids.data_ptr(),
        sample_ids=sample_ids.data_ptr(),
        out=out.data_ptr(),
        mean_shift=shift.data_ptr() if per_pixel else 0,
        num_stored=num_stored,
        batch=ids.numel(),
        height=height,
        width=width,
        channels=channels,
        dtype=native.CODES[dtype],
        scale=scale.tolist(),
        shift=[0.0] * channels if per_pixel else shift.tolist(),
        num_threads=torch.get_num_threads(),
        **spec.arguments(height, width),
    )
    return out
