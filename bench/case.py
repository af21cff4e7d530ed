"""A recipe's run without the loop: its network, its step and its data, on this machine, as the trainer makes them."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Generator
from dataclasses import dataclass

import torch

from imnet import device, models
from imnet.data.pipelines import Batch, Pipeline
from imnet.errors import UsageError
from imnet.from_recipe import Step, build_network, build_step, prepare
from imnet.launch import World
from imnet.mixing import Mixing
from imnet.models.catalog import CATALOG
from imnet.models.count import flops
from imnet.recipe import SGD, Constant, Data, Recipe, replace
from imnet.recipes import by_model, by_name
from imnet.run_options import RunOptions
from imnet.step import TrainStep

# Random images of about this many bytes stand in for a set: more than any cache holds.
SYNTHETIC_BYTES = 128 << 20


@dataclass
class Case:
    """What one rank holds."""

    recipe: Recipe
    place: device.Place
    pipeline: Pipeline
    step: TrainStep
    mixing: Mixing

    @property
    def lr(self) -> float:
        """Small, since random labels at a recipe's own rate would end in NaN."""
        return self.recipe.optim.lr * 0.01

    @property
    def batch_images(self) -> int:
        return self.recipe.data.batch_images

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's batches, epoch after epoch, without end; close it when done."""
        for epoch in itertools.count():
            yield from self.pipeline.epoch(epoch)

    def train(self, batch: Batch, step: int = 0) -> None:
        """One optimiser step on a batch, mixed first where the recipe mixes."""
        self.step([self.mixing(*batch, step)], self.batch_images, step, self.lr)


def train_flops(recipe: Recipe) -> int:
    """FLOPs of one image, forward and backward; nothing is computed."""
    with torch.device("meta"):
        net = build_network(recipe)
    return flops(net, (recipe.data.channels, recipe.input_px, recipe.input_px), backward=True)


def find_recipe(
    recipe: str | None,
    model: str | None,
    *,
    batch_images: int | None = None,
    image_px: int | None = None,
    default: str = "fashion-mnist/speedrun",
) -> Recipe:
    """The recipe that imnet-train would take, or a plain one around a network that no recipe has.

    With ``image_px`` the network gets the images as they are: a recipe's crops and resizing would not fit.
    """
    if recipe is not None and model is not None:
        raise UsageError(f"got --recipe {recipe} and --model {model}; allowed: one of them", hint="leave one out")
    found = by_name(recipe or default) if model is None else by_model(model) or _around(model)
    if batch_images is not None:
        found = with_batch(found, batch_images)
    if image_px is None:
        return found
    whole = replace(found.augment, resize_px=None, resize_eval_px=None, crop_px=None, crop_scale=None)
    return replace(found, data=replace(found.data, image_px=image_px), augment=whole)


def with_batch(recipe: Recipe, batch_images: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, batch_images=batch_images))


def _around(model: str) -> Recipe:
    if not models.known(model):
        models.build(model, 10)  # raises with the suggestion
    entry = CATALOG.get(model)
    px, channels, classes = (entry.image_px, entry.in_channels, entry.num_classes) if entry else (224, 3, 1000)
    return plain(model, px, channels, classes, batch_images=128)


def plain(model: str, px: int, channels: int, classes: int, batch_images: int) -> Recipe:
    """A recipe around a network that no recipe has: synthetic images as they are, SGD with Nesterov momentum."""
    data = Data(name="synthetic", image_px=px, channels=channels, num_classes=classes, batch_images=batch_images)
    optim = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    name = f"no recipe: {model}"
    return Recipe(name=name, model=model, data=data, optim=optim, schedule=Constant(), epochs=1)


def synthetic(recipe: Recipe, num_ranks: int = 1) -> Recipe:
    """The recipe on random images of its set's shape."""
    d = recipe.data
    bytes_an_image = d.image_px * d.image_px * d.channels
    least = 4 * d.batch_images * num_ranks
    images = max(least, min(16 * d.batch_images, SYNTHETIC_BYTES // bytes_an_image))
    images -= images % d.batch_images  # no odd last batch: every step is the same work
    named = replace(d, name="synthetic", split=None, train_images=images, test_images=min(64, images))
    return replace(recipe, data=named)


def build(recipe: Recipe, options: RunOptions, world: World | None = None) -> Case:
    """Everything a step needs; the data set is loaded as ``options.data_dir`` and the recipe say."""
    world = world or World()
    place = device.resolve(options, world.local_rank)
    setup, step = prepare(recipe, options, place, world, torch.get_num_threads())
    return Case(recipe, place, setup.train_data, step, Mixing(recipe, world.rank))


def run_options(values: argparse.Namespace) -> RunOptions:
    """The command line's, as a run takes them."""
    names = ("device", "gpus", "procs", "precision", "threads", "compile", "data_dir", "pipeline", "cuda_graphs")
    given = {name: value for name in names if (value := getattr(values, name, None)) is not None}
    try:
        return RunOptions(**given)
    except ValueError as error:
        raise UsageError(str(error)) from error


def make_step(
    recipe: Recipe, options: RunOptions, place: device.Place, world: World, kind: type[Step] = TrainStep
) -> Step:
    """The trainer's step, of a class that may mark its phases; compiled and captured only where that is asked for."""
    chosen = {"compile": bool(options.compile), "graphs": bool(options.cuda_graphs), "backend": options.optim_backend}
    return build_step(recipe, build_network(recipe, place), place, world, kind, **chosen)
