"""torch.ops.imnet.augment: the opaque op behind the tiers that are not plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import tier
from .reference import Spec, empty_batch

_SIGN = 1 << 63


@torch.library.custom_op("imnet::augment", mutates_args=())
def augment_op(
    store: Tensor,
    ids: Tensor,
    sample_ids: Tensor,
    scale: Tensor,
    shift: Tensor,
    seed: int,
    epoch: int,
    pad_px: int,
    pad_mode: str,
    hflip: str,
    hflip_p: float,
    cutout_px: int,
    cutout_inside: bool,
    dtype: torch.dtype,
) -> Tensor:
    """seed is signed here (an op's int is 64 bits with a sign)."""
    spec = Spec(seed % (2 * _SIGN), epoch, pad_px, pad_mode, hflip, hflip_p, cutout_px, cutout_inside)
    return tier.implementation("augment", store.device.type).augment(store, ids, sample_ids, scale, shift, spec, dtype)


@augment_op.register_fake
def _(store, ids, sample_ids, scale, shift, seed, epoch, pad_px, pad_mode, hflip, hflip_p, cutout_px, inside, dtype):
    return empty_batch(store, ids, dtype)


def call(store: Tensor, ids: Tensor, sample_ids: Tensor, scale: Tensor, shift: Tensor, spec: Spec, dtype: torch.dtype):
    """The op with reference.augment's signature."""
    seed = spec.seed - 2 * _SIGN if spec.seed >= _SIGN else spec.seed
    return augment_op(store, ids, sample_ids, scale, shift, seed, *spec[1:], dtype)
