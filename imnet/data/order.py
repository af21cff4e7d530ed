"""Which sample comes when, a pure function of (seed, epoch, position) free of rank, worker and batch layout; and what a
class weighs."""

from __future__ import annotations

from dataclasses import dataclass, field

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
    labels: Tensor | None = field(default=None, compare=False, repr=False)
    """(num_images,) int64 on the CPU, where every class is to come equally often."""

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_images)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int) -> Tensor:
        """(num_images,) int64: the ids of this epoch, in order, on the CPU; of a balanced one, its draws."""
        if self.labels is not None:
            return balanced(self.labels, seed=self.seed, epoch=epoch)
        return philox_permutation(self.num_images, seed=self.seed, epoch=epoch)

    def batch(self, ids: Tensor, step_in_epoch: int) -> Tensor:
        """Ids of one global batch, cut from ``epoch(e)``; fewer than batch_images only in a kept last batch."""
        start = step_in_epoch * self.batch_images
        return ids[start : start + self.batch_images]

    def size(self, step_in_epoch: int) -> int:
        """Images of that global batch."""
        return min(self.batch_images, self.num_images - step_in_epoch * self.batch_images)


def balanced(labels: Tensor, *, seed: int, epoch: int) -> Tensor:
    """(n,) int64 draws of one epoch over images with ``labels`` (n,): every class equally often, give or take one.

    A class goes through its images in a random order, and again where it has too few. Draw d is of image d % n: a later
    draw of the same image is another sample to whatever is random about it.
    """
    n = len(labels)
    shuffled = philox_permutation(n, seed=seed, epoch=epoch)
    by_class = shuffled[labels[shuffled].argsort(stable=True)]
    counts = torch.bincount(labels)
    counts = counts[counts > 0]
    first = counts.cumsum(0) - counts
    place = torch.arange(n)
    which, turn = (place + epoch) % len(counts), place // len(counts)
    size = counts[which]
    draws = by_class[first[which] + turn % size] + n * (turn // size)
    return draws[philox_permutation(n, seed=seed | 1 << 63, epoch=epoch)]


def class_weights(labels: Tensor, num_outputs: int) -> Tensor:
    """(num_outputs,) fp32: n / (classes * n_c) for the labels (n,), as scikit-learn's "balanced"; 1 without images."""
    counts = torch.bincount(labels, minlength=num_outputs)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 1.0).float()


def shard(ids: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The contiguous part of ``ids`` that a rank reads; sizes differ by one at most, no id twice or lost."""
    start, stop = (len(ids) * r // num_ranks for r in (rank, rank + 1))
    return ids[start:stop]


def micro_batches(ids: Tensor, max_images: int | None) -> list[Tensor]:
    """Anything per image in equal pieces of at most ``max_images`` (sizes differ by one at most), without a copy."""
    if not max_images or len(ids) <= max_images:
        return [ids]
    return list(torch.tensor_split(ids, -(-len(ids) // max_images)))
