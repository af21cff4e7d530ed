"""Kernel families: each has a plain PyTorch definition (the reference) and faster tiers that must agree with it."""

from . import tier
from .augment import augment
from .batch_norm import add_batch_norm, batch_norm
from .dense_stage import dense_stage
from .philox import philox, philox_permutation
from .sgd_ema import sgd_ema_
from .shake_batch_norm import shake_batch_norm
from .shake_shake import shake_shake
from .spectral import spectral

__all__ = [
    "add_batch_norm",
    "augment",
    "batch_norm",
    "dense_stage",
    "philox",
    "philox_permutation",
    "sgd_ema_",
    "shake_batch_norm",
    "shake_shake",
    "spectral",
    "tier",
]
