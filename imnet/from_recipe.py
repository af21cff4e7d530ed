"""Builds what a recipe describes: its data set, network, training step and pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch

from imnet import change, data, defaults, fits, models, weights
from imnet.data import pipelines
from imnet.data.base import AnySplit
from imnet.data.order import Order, class_weights
from imnet.data.pipelines import Pipeline, Setting
from imnet.data.pipelines.batches import as_tensor, mean_image
from imnet.device import Place
from imnet.errors import UsageError
from imnet.launch import World
from imnet.parallel import has_batch_norm
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.run_state import Setup, Sources
from imnet.step import TrainStep

Step = TypeVar("Step", bound=TrainStep)


def load_sources(
    recipe: Recipe,
    options: RunOptions,
    place: Place,
    world: World,
    bands: tuple[int, ...] = (),
    dataset: data.DataSet | None = None,
) -> Sources:
    """Load the recipe's images for one rank, as spectral ``bands`` if any are given. ``dataset`` is used if given."""
    dataset = dataset or load_data(recipe, options, world)
    order = order_of(recipe, dataset)
    fits.check_fills(order)
    train, test, reason = build_pipelines(recipe, options, dataset, place, world, order, bands)
    val = None if dataset.val is None else pipelines.build(test.kind, dataset.val, test.setting)
    return Sources(dataset=dataset, order=order, train=train, test=test, val=val, pipeline_reason=reason)


def prepare(
    recipe: Recipe,
    options: RunOptions,
    place: Place,
    world: World,
    threads: int,
    began: Mapping[str, Any] | None = None,
    saved: bool = False,
    sources: Sources | None = None,
) -> tuple[Setup, TrainStep]:
    """Build everything that a rank needs before its first step. On rank 0 of a resumed run, ``began`` is its run.json
    and ``saved`` tells whether it has a checkpoint. ``sources`` are the recipe's, if they are loaded already.

    How steps are executed is decided by rank 0: by the options, else as the run began, else by the measured defaults.
    """
    # The network comes first: it takes seconds and may be refused, while packing the pictures can take an hour.
    fits.check_forward(recipe)
    net = build_network(recipe)
    given = first_weights(recipe, net, world, saved)
    sources = sources or load_sources(recipe, options, place, world)
    order = sources.order
    kept = began if began is not None and began.get("device") == place.device.type else {}
    images = order.steps_per_epoch * recipe.data.batch_images
    net = net.to(place.device).to(memory_format=torch.channels_last)
    how = (recipe, net, options, place, world, images, kept.get("execution"))
    execution = world.share(defaults.decide(*how) if world.is_main else None)
    defaults.choose_kernels(options, execution, world.share(kept.get("kernels")))
    chosen = {"compile": execution.compile, "graphs": execution.cuda_graphs, "backend": options.optim_backend}
    step = build_step(recipe, net, place, world, **chosen)
    fits.check_passes(recipe, net, order, world.size, options.micro_batch_images)
    if recipe.class_weights == "balanced":
        labels = as_tensor(sources.dataset.train.labels)
        step.class_weights = class_weights(labels, recipe.num_outputs).to(place.device)
    setup = Setup(
        **vars(sources),
        recipe=recipe,
        options=options,
        place=place,
        world=world,
        threads=threads,
        execution=execution,
        parameters=sum(p.numel() for p in net.parameters()),
        weights=given or (began or {}).get("weights"),
        has_batch_norm=has_batch_norm(net),
        before=change.history(began, recipe, place.precision),
    )
    return setup, step


def order_of(recipe: Recipe, dataset: data.DataSet) -> Order:
    """The order in which the recipe sees the training images of ``dataset``."""
    d = recipe.data
    labels = as_tensor(dataset.train.labels) if d.sampler == "balanced" else None
    return Order(len(dataset.train), d.batch_images, recipe.seed, drop_last=d.drop_last, labels=labels)


def first_weights(recipe: Recipe, net: torch.nn.Module, world: World, saved: bool) -> dict[str, Any] | None:
    """Put the recipe's ``weights`` into a network on the CPU; return a description of them for run.json.

    Nothing is read if the run has a checkpoint (``saved``, on rank 0): the source may be gone by then.
    """
    if recipe.weights is None or world.share(saved):
        return None
    with world.main_first():  # rank 0 downloads before the others look
        found = weights.read(recipe.weights)
    put = weights.put(net, found)
    about = {"source": found.source, "sha256": found.sha256, "licence": found.licence, "text": str(put)}
    return about | put.as_dict()


def load_data(
    recipe: Recipe, options: RunOptions, world: World | None = None, *, look: bool = False
) -> data.DataSet:  # fmt: skip
    """Load the recipe's data set. Rank 0 loads (and perhaps downloads) it before the other ranks.

    With ``look`` nothing is written or downloaded; a set that would have to be packed first raises data.Unpacked.
    """
    d, world = recipe.data, world or World()
    if not options.lock:
        data.without_locks()
    with world.main_first():
        loaded = data.load(
            d.name,
            options.data_dir,
            image_px=d.image_px,
            split=d.split,
            num_classes=d.num_classes,
            channels=d.channels,
            train_images=d.train_images,
            test_images=d.test_images,
            hold_out=d.hold_out,
            val_images=d.val_images,
            val_seed=d.val_seed,
            val_stratified=d.val_stratified,
            seed=recipe.seed if d.hold_out else 0,
            whole=recipe.augment.crop_scale is not None,
            look=look,
            on_bad=options.on_bad_image,
        )
    if recipe.patience is not None and loaded.val is None and loaded.final is None and not d.hold_out:
        what = "got --patience without held-out images: the end would be chosen on the test set"
        raise UsageError(what, hint="hold some out: --data.val_images N")
    fits.check_alike(loaded, world)
    return loaded


def choose_pipeline(options: RunOptions, dataset: data.DataSet, device: torch.device) -> tuple[str, str]:
    """(the kind of pipeline for all splits that training reads, the reason)."""
    splits = [split for split in (dataset.train, dataset.test, dataset.val) if split is not None]
    return pipelines.choose(options.pipeline, splits, device)


def build_pipelines(
    recipe: Recipe,
    options: RunOptions,
    dataset: data.DataSet,
    place: Place,
    world: World,
    order: Order | None,
    bands: tuple[int, ...] = (),
) -> tuple[Pipeline, Pipeline, str]:
    """Return the training pipeline, the test pipeline and the reason for their kind; for ``bands`` see ``Setting``."""
    kind, reason = choose_pipeline(options, dataset, place.device)
    setting = replace(_setting(recipe, options, dataset, place, world, order), bands=bands)
    train, test = (pipelines.build(kind, split, setting) for split in (dataset.train, dataset.test))
    return train, test, reason


def build_pipeline(
    recipe: Recipe, options: RunOptions, dataset: data.DataSet, split: AnySplit, place: Place
) -> Pipeline:  # fmt: skip
    """Return the pipeline for evaluating one ``split`` of a data set."""
    kind, _ = pipelines.choose(options.pipeline, (split,), place.device)
    return pipelines.build(kind, split, _setting(recipe, options, dataset, place, World(), None))


def _setting(
    recipe: Recipe, options: RunOptions, dataset: data.DataSet, place: Place, world: World, order: Order | None
) -> Setting:
    return Setting(
        augment=recipe.augment,
        seed=recipe.seed,
        device=place.device,
        dtype=place.dtype,
        mean=mean_image(dataset.train) if recipe.augment.mean == "image" else None,
        order=order,
        rank=world.rank,
        num_ranks=world.size,
        workers=options.workers or torch.get_num_threads(),
        on_bad=options.on_bad_image,
    )


def build_network(recipe: Recipe, place: Place | None = None) -> torch.nn.Module:
    """Build the recipe's network in fp32, initialised from the recipe's seed: the same on every rank and device.

    With ``place`` it is moved there, in channels_last.
    """
    # Weights are drawn on the CPU, so only its generator is seeded: the GPUs' generators belong to the caller.
    torch.default_generator.manual_seed(recipe.seed)
    net = models.build(recipe.model, recipe.num_outputs, recipe.data.channels, **recipe.model_options)
    return net if place is None else net.to(place.device).to(memory_format=torch.channels_last)


def build_step(
    recipe: Recipe,
    net: torch.nn.Module,
    place: Place,
    world: World,
    kind: type[Step] = TrainStep,
    *,
    compile: bool,
    graphs: bool,
    backend: str = "auto",
) -> Step:
    """Return the training step of ``net``, with an average (EMA) of its weights if the recipe asks for one."""
    step = kind(net, recipe, place, world, compile=compile, graphs=graphs, backend=backend)
    if recipe.ema_decay is not None:
        averaged = build_network(recipe, place)
        averaged.load_state_dict(net.state_dict())
        step.add_ema(averaged, recipe.ema_decay)
    return step
