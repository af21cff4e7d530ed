"""A recipe's network, training step and data on this machine, built as the trainer builds them, without its loop."""

from __future__ import annotations

import argparse
import contextlib
import itertools
from collections.abc import Generator, Iterator
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

# The approximate size of the random images that replace a data set: larger than any cache.
SYNTHETIC_BYTES = 128 << 20


@dataclass
class Case:
    """The objects that one rank trains with."""

    recipe: Recipe
    place: device.Place
    pipeline: Pipeline
    step: TrainStep
    mixing: Mixing

    @property
    def lr(self) -> float:
        """The learning rate of the timed steps: a hundredth of the recipe's, which could diverge on random labels."""
        return self.recipe.optim.lr * 0.01

    @property
    def batch_images(self) -> int:
        return self.recipe.data.batch_images

    def batches(self) -> Generator[Batch, None, None]:
        """This rank's batches, epoch after epoch, without end; close the generator when done."""
        for epoch in itertools.count():
            yield from self.pipeline.epoch(epoch)

    def train(self, batch: Batch, step: int = 0) -> None:
        """Run one optimiser step on a batch, after mixing it (mixup and the like) if the recipe does."""
        self.step([self.mixing(*batch, step)], self.batch_images, step, self.lr)


def train_flops(recipe: Recipe) -> int:
    """FLOPs of training on one image, forward and backward, counted on the meta device without computing anything."""
    with torch.device("meta"):
        net = build_network(recipe)
    return flops(net, (recipe.data.channels, recipe.input_px, recipe.input_px), backward=True)


@contextlib.contextmanager
def checked() -> Iterator[None]:
    """Turn the ValueError of a recipe or of options into a UsageError: their values come from the command line."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


@checked()
def find_recipe(
    recipe: str | None,
    model: str | None,
    *,
    batch_images: int | None = None,
    image_px: int | None = None,
    default: str = "fashion-mnist/speedrun",
) -> Recipe:
    """The recipe that imnet-train would choose, or a plain recipe for a network that no recipe uses.

    With ``image_px`` the recipe's crops and resizing are removed, because they would not fit the new size.
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


@checked()
def with_batch(recipe: Recipe, batch_images: int) -> Recipe:
    return replace(recipe, data=replace(recipe.data, batch_images=batch_images))


def _around(model: str) -> Recipe:
    if not models.known(model):
        models.build(model, 10)  # raises with the suggestion
    entry = CATALOG.get(model)
    px, channels, classes = (entry.image_px, entry.in_channels, entry.num_classes) if entry else (224, 3, 1000)
    return plain(model, px, channels, classes, batch_images=128)


def plain(model: str, px: int, channels: int, classes: int, batch_images: int) -> Recipe:
    """A plain recipe for any network: synthetic images without augmentation, SGD with Nesterov momentum."""
    data = Data(name="synthetic", image_px=px, channels=channels, num_classes=classes, batch_images=batch_images)
    optim = SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    name = f"no recipe: {model}"
    return Recipe(name=name, model=model, data=data, optim=optim, schedule=Constant(), epochs=1)


@checked()
def synthetic(recipe: Recipe, num_ranks: int = 1) -> Recipe:
    """The recipe with its data set replaced by random images of the same shape."""
    d = recipe.data
    bytes_an_image = d.image_px * d.image_px * d.channels
    least = 4 * d.batch_images * num_ranks
    images = max(least, min(16 * d.batch_images, SYNTHETIC_BYTES // bytes_an_image))
    images -= images % d.batch_images  # no smaller last batch, so that every step is the same work
    named = replace(d, name="synthetic", split=None, train_images=images, test_images=min(64, images))
    return replace(recipe, data=named)


def build(recipe: Recipe, options: RunOptions, world: World | None = None) -> Case:
    """Build everything that a step needs; the data set is loaded according to ``options.data_dir`` and the recipe."""
    world = world or World()
    place = device.resolve(options, world.local_rank)
    setup, step = prepare(recipe, options, place, world, torch.get_num_threads())
    return Case(recipe, place, setup.train, step, Mixing(recipe, world.rank))


@checked()
def run_options(values: argparse.Namespace) -> RunOptions:
    """The command line's options as RunOptions; raises UsageError for invalid ones."""
    names = ("device", "gpus", "procs", "precision", "threads", "compile", "data_dir", "pipeline", "cuda_graphs")
    given = {name: value for name in names if (value := getattr(values, name, None)) is not None}
    return RunOptions(**given)


def make_step(
    recipe: Recipe, options: RunOptions, place: device.Place, world: World, kind: type[Step] = TrainStep
) -> Step:
    """The trainer's step as an instance of ``kind``, which may mark its phases. It is compiled and captured only if
    ``options`` ask for it."""
    chosen = {"compile": bool(options.compile), "graphs": bool(options.cuda_graphs), "backend": options.optim_backend}
    return build_step(recipe, build_network(recipe, place), place, world, kind, **chosen)
