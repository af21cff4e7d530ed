"""Mixup and CutMix, by torchvision, on the batch that a pipeline made: whichever pipeline that was."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imnet.recipe import Recipe

# Apart from the seeds of the steps themselves, which are multiples of other odd numbers.
_SALT = 0x632BE59BD9B4E019


class Mixing:
    """Images mixed with their neighbours in the rank's batch; labels (B,) become targets (B, classes), fp32.

    A pure function of (seed, step, rank): a resumed run mixes as the uninterrupted one. Pairs are made within a rank's
    batch, so another number of ranks is another sample of the same experiment.
    """

    def __init__(self, recipe: Recipe, rank: int):
        self.seed, self.rank, self.num_classes = recipe.seed, rank, recipe.num_outputs
        self.ways = [_way(*named, self.num_classes) for named in _alphas(recipe) if named[1]]

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """images (B, C, H, W) and labels (B,) of this rank; unchanged where the recipe mixes nothing."""
        if not self.ways:
            return images, labels
        if not len(labels):  # targets as the other ranks have: the loss of all depends on what they are
            return images, images.new_zeros(0, self.num_classes, dtype=torch.float32)
        # torch takes 64 bits, which a seed of eight digits exceeds here.
        seed = (((self.seed * 1_000_003 + step) * 1_000_003 + self.rank) ^ _SALT) & (2**64 - 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            way = self.ways[int(torch.randint(len(self.ways), ()))]
            mixed, targets = way(images, labels)
        return mixed.contiguous(memory_format=torch.channels_last), targets


def _alphas(recipe: Recipe) -> list[tuple[str, float]]:
    return [("MixUp", recipe.mixup_alpha), ("CutMix", recipe.cutmix_alpha)]


def _way(name: str, alpha: float, num_classes: int) -> Any:
    # Here, because it takes seconds: torchvision brings torch's compiler with it.
    from torchvision.transforms import v2

    return getattr(v2, name)(alpha=alpha, num_classes=num_classes)
