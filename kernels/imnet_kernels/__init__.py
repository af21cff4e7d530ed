"""Kernel families with a plain PyTorch definition each and faster tiers that must agree with it."""

from .augment import augment
from .philox import philox, philox_permutation

__all__ = ["augment", "philox", "philox_permutation"]
