"""Random choices per image: pure functions of (seed, epoch, sample id), drawn on the host for a whole batch at once.

They are drawn on the host so that images can be grouped by operation without waiting for the device; a batch of 1000
costs well under 1 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from imnet_kernels.philox import philox, uniform_below
from torch import Tensor

# The kernels use streams 0..3. Each augmentation has streams of its own, so that switching one on changes no other.
STREAM_CROP = 16
STREAM_JITTER = 17
STREAM_JITTER_ORDER = 18
STREAM_TRIVIAL = 19
STREAM_RESIZED_CROP = 32  # to 41, one per attempt
STREAM_RAND = 48  # to 63, one per operation
STREAM_ERASING = 64  # to 74: whether to erase, then one per attempt


@dataclass(frozen=True)
class Key:
    """The key of the random choices of a batch: ids (B,) int64 on the CPU, the run's seed and the epoch."""

    ids: Tensor
    seed: int
    epoch: int

    def words(self, stream: int | range) -> tuple[Tensor, ...]:
        """Four independent 32-bit words, (B,) int64 each, or (streams, B) for a range of streams."""
        return philox(self.ids, seed=self.seed, epoch=self.epoch, stream=stream)

    def below(self, stream: int, *counts: int) -> tuple[Tensor, ...]:
        """Up to four uniform integers, (B,) int64 each, in 0 .. count - 1."""
        return tuple(uniform_below(word, n) for word, n in zip(self.words(stream), counts, strict=False))


def unit(word: Tensor) -> Tensor:
    """A 32-bit word as fp64 in [0, 1)."""
    return word.double() / 2.0**32


def groups(kinds: Tensor, num_kinds: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each kind in 0 .. num_kinds - 1, its positions in ``kinds`` (B,), on the CPU and on ``device``."""
    rows = [(kinds == kind).nonzero()[:, 0] for kind in range(num_kinds)]
    return [(row, row.to(device, non_blocking=True)) for row in rows]
