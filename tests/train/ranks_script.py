"""Used by test_ranks.py and test_balance.py: trains a network without BatchNorm.

Every rank imports this file, which registers the network there."""

import atexit
import os
from dataclasses import replace

from torch import nn

from imnet import models
from imnet.recipe import SGD, Augment, Constant, Data, Recipe
from imnet.run_options import RunOptions
from imnet.start import train


@models.model
def test_mlp(num_classes: int, in_channels: int) -> nn.Module:
    """A network without batch statistics, so that the number of ranks changes only rounding."""
    return nn.Sequential(nn.Flatten(), nn.Linear(in_channels * 144, 32), nn.ReLU(), nn.Linear(32, num_classes))


RECIPE = Recipe(
    name="ranks",
    model="test_mlp",
    # 211 images in batches of 49: an incomplete last batch, and shards of unequal size.
    data=Data(
        name="shapes", image_px=12, num_classes=4, batch_images=49, train_images=211, test_images=53, drop_last=False
    ),
    augment=Augment(crop_pad_px=1, hflip="random", mean=(0.5,), std=(0.25,)),
    optim=SGD(lr=0.05, momentum=0.9, weight_decay=1e-3),
    schedule=Constant(),
    epochs=3,
)


def trained(folder, procs, micro, data_dir=None, balanced=None):
    """Trains and returns the exit code; with ``data_dir``, ``balanced`` is "class_weights" or "sampler"."""
    recipe = RECIPE
    if data_dir is not None:
        sampler = "balanced" if balanced == "sampler" else "shuffled"
        own = Data(name="folder", image_px=12, num_classes=3, batch_images=25, drop_last=False, sampler=sampler)
        recipe = replace(recipe, data=own, class_weights="balanced" if sampler == "shuffled" else "none")
    options = RunOptions(
        out=str(folder),
        data_dir=data_dir,
        device="cpu",
        precision="fp32",
        procs=procs if procs > 1 else None,
        threads=1,
        log_every_steps=1,
        micro_batch_images=micro or None,
    )
    return train(recipe, options)[0]


def trained_and_aborting(*arguments):
    """Torch's threads have been seen to abort an ending process; here every rank aborts at its end."""
    atexit.register(os.abort)
    return trained(*arguments)
