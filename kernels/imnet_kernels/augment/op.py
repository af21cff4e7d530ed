"""torch.ops.imnet.augment: the opaque op behind the tiers that are not plain PyTorch."""

from __future__ import annotations

import importlib

import torch
from torch import Tensor

from .. import tier
from .reference import Spec

_SIGN = 1 << 63


def implementation(device_type: str):
    """The tier's function with reference.augment's signature."""
    name = tier.choose("augment", device_type)
    return importlib.import_module(
        f"imnet_kernels.augment.{'reference' if name == 'reference' else '_' + name}"
    ).augment


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
    return implementation(store.device.type)(store, ids, sample_ids, scale, shift, spec, dtype)


@augment_op.register_fake
def _(store, ids, sample_ids, scale, shift, seed, epoch, pad_px, pad_mode, hflip, hflip_p, cutout_px, inside, dtype):
    _, height, width, channels = store.shape
    return store.new_empty((ids.shape[0], height, width, channels), dtype=dtype).permute(0, 3, 1, 2)


def call(store: Tensor, ids: Tensor, sample_ids: Tensor, scale: Tensor, shift: Tensor, spec: Spec, dtype: torch.dtype):
    """The op with reference.augment's signature."""
    seed = spec.seed - 2 * _SIGN if spec.seed >= _SIGN else spec.seed
    return augment_op(store, ids, sample_ids, scale, shift, seed, *spec[1:], dtype)
