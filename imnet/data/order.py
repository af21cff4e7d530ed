"""The order of the samples, a pure function of (seed, epoch, position) that does not depend on ranks, workers or batch
sizes; and class weights."""

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
    """(num_images,) int64 on the CPU, if every class is to be drawn equally often; else None."""

    @property
    def steps_per_epoch(self) -> int:
        whole, rest = divmod(self.num_images, self.batch_images)
        return whole if self.drop_last or rest == 0 else whole + 1

    def epoch(self, epoch: int) -> Tensor:
        """This epoch's sample ids in order, (num_images,) int64 on the CPU; with ``labels``, draws of ``balanced``."""
        if self.labels is not None:
            return balanced(self.labels, seed=self.seed, epoch=epoch)
        return philox_permutation(self.num_images, seed=self.seed, epoch=epoch)

    def batch(self, ids: Tensor, step_in_epoch: int) -> Tensor:
        """The part of ``ids``, a result of ``epoch``, in one global batch; a last batch that is kept may be smaller."""
        start = step_in_epoch * self.batch_images
        return ids[start : start + self.batch_images]

    def size(self, step_in_epoch: int) -> int:
        """Number of images in that global batch."""
        return min(self.batch_images, self.num_images - step_in_epoch * self.batch_images)


def balanced(labels: Tensor, *, seed: int, epoch: int) -> Tensor:
    """(n,) int64 draws for one epoch from images with ``labels`` (n,); the counts of the classes differ by one at most.

    The images of a class are drawn in a random order, repeatedly if there are too few. Draw d stands for image d % n:
    repeated draws of an image have different ids, so that they are augmented differently.
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
    """(num_outputs,) fp32 weights for ``labels`` (n,): n / (classes * n_c), as scikit-learn's "balanced". Only classes
    with images are counted; the others get 1."""
    counts = torch.bincount(labels, minlength=num_outputs)
    weights = len(labels) / ((counts > 0).sum() * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 1.0).float()


def shard(ids: Tensor, rank: int, num_ranks: int) -> Tensor:
    """The contiguous part of ``ids`` that belongs to ``rank``. Each id is in one part; sizes differ by one at most."""
    start, stop = (len(ids) * r // num_ranks for r in (rank, rank + 1))
    return ids[start:stop]


def micro_batches(ids: Tensor, max_images: int | None) -> list[Tensor]:
    """Views of a tensor with one entry per image, at most ``max_images`` each; their sizes differ by one at most."""
    if not max_images or len(ids) <= max_images:
        return [ids]
    return list(torch.tensor_split(ids, -(-len(ids) // max_images)))
