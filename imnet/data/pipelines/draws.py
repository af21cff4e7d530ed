"""Random choices per image: pure functions of (seed, epoch, sample id), made on the host for a whole batch at once.

On the host, because the operations are then grouped without asking the device; a batch of 1000 costs well under 1 ms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from imnet_kernels.philox import philox, uniform_below
from torch import Tensor

# Beyond those of the kernels (0..3), so that switching one thing on does not move another.
STREAM_CROP = 16
STREAM_JITTER = 17
STREAM_JITTER_ORDER = 18
STREAM_TRIVIAL = 19
STREAM_RESIZED_CROP = 32  # and the nine after it, one an attempt
STREAM_RAND = 48  # and the fifteen after it, one an operation
STREAM_ERASING = 64  # and the ten after it: whether, and one an attempt


@dataclass(frozen=True)
class Key:
    """Who draws: the ids (B,) int64 on the CPU, in one epoch of one run."""

    ids: Tensor
    seed: int
    epoch: int

    def words(self, stream: int | range) -> tuple[Tensor, ...]:
        """Four independent words of 32 bits, (B,) int64 each; of several streams (streams, B)."""
        return philox(self.ids, seed=self.seed, epoch=self.epoch, stream=stream)

    def below(self, stream: int, *counts: int) -> tuple[Tensor, ...]:
        """Up to four uniform integers, (B,) int64 each, in 0 .. count - 1."""
        return tuple(uniform_below(word, n) for word, n in zip(self.words(stream), counts, strict=False))


def unit(word: Tensor) -> Tensor:
    """A word -> fp64 in [0, 1)."""
    return word.double() / 2.0**32


def groups(kinds: Tensor, num_kinds: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each kind in 0 .. num_kinds - 1: where it stands in ``kinds`` (B,), on the CPU and on ``device``."""
    rows = [(kinds == kind).nonzero()[:, 0] for kind in range(num_kinds)]
    return [(row, row.to(device, non_blocking=True)) for row in rows]
