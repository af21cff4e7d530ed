"""augment through the CUDA library."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import cudalib
from ._host import FLIPS, box
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
    seed = spec.seed - (1 << 64) if spec.seed >> 63 else spec.seed
    crop = [seed, spec.epoch, spec.pad_px, int(spec.pad_mode == "reflect"), FLIPS[spec.hflip], spec.flip_threshold]
    integers = [*crop, spec.cutout_px, *box(spec, height, width)]
    cudalib.ops().augment(store, ids.contiguous(), sample_ids.contiguous(), scale, shift.contiguous(), integers, out)
    return out
