"""Which sample comes when: a pure function of (seed, epoch, position), free of rank, worker and batch layout."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from imnet_kernels import philox_permutation
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """The order of ``num_images`` samples in every epoch, cut into global batches of ``batch_images``."""

    num_images: int
    batch_images: int
    seed: int
    drop_last: bool = True

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_images)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int) -> Tensor:
        """(num_images,) int64: the ids of this epoch, in order, on the CPU."""
        return philox_permutation(self.num_images, seed=self.seed, epoch=epoch)

    def batch(self, ids: Tensor, step_in_epoch: int) -> Tensor:
        """Ids of one global batch, cut from ``epoch(e)``; fewer than batch_images only in a kept last batch."""
        start = step_in_epoch * self.batch_images
        return ids[start : start + self.batch_images]

    def size(self, step_in_epoch: int) -> int:
        """Images of that global batch."""
        return min(self.batch_images, self.num_images - step_in_epoch * self.batch_images)


def shard(ids: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The contiguous part of ``ids`` that a rank reads; sizes differ by one at most, no id twice or lost."""
    start, stop = (len(ids) * r // num_ranks for r in (rank, rank + 1))
    return ids[start:stop]


def micro_batches(ids: Tensor, max_images: int | None) -> list[Tensor]:
    """Anything per image in equal pieces of at most ``max_images`` (sizes differ by one at most), without a copy."""
    if not max_images or len(ids) <= max_images:
        return [ids]
    return list(torch.tensor_split(ids, -(-len(ids) // max_images)))
