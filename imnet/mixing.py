"""Mixup and CutMix by torchvision, applied to the finished batch of any pipeline."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from imnet.recipe import Recipe

# Separates these seeds from those of the steps themselves, which are multiples of other odd numbers.
_SALT = 0x632BE59BD9B4E019


class Mixing:
    """Mixes images with others of the rank's batch; labels (B,) become fp32 targets (B, num_outputs).

    The choices are a pure function of (seed, step, rank), so a resumed run mixes as an uninterrupted one would. Pairs
    lie within a rank's batch, so a different number of ranks is a different random sample of the same experiment.
    """

    def __init__(self, recipe: Recipe, rank: int):
        self.seed, self.rank, self.num_classes = recipe.seed, rank, recipe.num_outputs
        alphas = {"MixUp": recipe.mixup_alpha, "CutMix": recipe.cutmix_alpha}
        self.ways = [_way(name, alpha, self.num_classes) for name, alpha in alphas.items() if alpha]

    def __call__(self, images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) and labels (B,) of this rank; both are unchanged if the recipe mixes nothing."""
        if not self.ways:
            return images, labels
        if not len(labels):  # targets of the same kind as on the other ranks, since the loss depends on their kind
            return images, images.new_zeros(0, self.num_classes, dtype=torch.float32)
        # Cut to the 64 bits that torch takes, which the product exceeds for a seed of eight digits.
        seed = (((self.seed * 1_000_003 + step) * 1_000_003 + self.rank) ^ _SALT) & (2**64 - 1)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            way = self.ways[int(torch.randint(len(self.ways), ()))]
            mixed, targets = way(images, labels)
        return mixed.contiguous(memory_format=torch.channels_last), targets


def _way(name: str, alpha: float, num_classes: int) -> Any:
    # Imported only when needed, because it takes seconds: torchvision imports torch's compiler.
    from torchvision.transforms import v2

    return getattr(v2, name)(alpha=alpha, num_classes=num_classes)
