"""imnet-train --dry-run: everything that can be known before training, on the meta device; nothing is written."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from imnet import device, ensemble, loggers, models, prescribed, runfolder, weights
from imnet.data import AbsentError, DataSet, Unpacked, pipelines
from imnet.data.order import Order
from imnet.errors import ImnetError
from imnet.from_recipe import build_network, check_fills, load_data
from imnet.models.count import activation_bytes, flops, num_params
from imnet.recipe import AdamCPR, AdamW, Lamb, Recipe
from imnet.run_options import RunOptions

_BARS = "▁▂▃▄▅▆▇█"


def text(recipe: Recipe, options: RunOptions) -> str:
    """The whole dry run. Raises what would fail at once, wrong data too; absent data are a line of it."""
    d, options, bands = recipe.data, options.as_ran(recipe), options.bands_of(recipe)
    loggers.check(options.logs)
    kind = "cpu" if options.device == "cpu" or options.procs or not device.num_gpus() else "cuda"
    precision, why = device.resolve_precision(options.precision, kind)
    with torch.device("meta"):
        net = models.build(recipe.model, recipe.num_outputs, d.channels, **recipe.model_options)
    shape = (d.channels, recipe.input_px, recipe.input_px)
    with models.seeing(recipe.model, recipe.input_px):
        forward, both = flops(net, shape), flops(net, shape, backward=True)
    ranks = options.gpus or options.procs or 1
    folder = Path(options.out or runfolder.default_path(recipe, precision, bands))
    lines = [
        f"recipe       {recipe.name}: {recipe.source}",
        f"network      {recipe.model}: {num_params(net):,} parameters",
        f"FLOPs        {forward / 1e9:.3f} GFLOP an image forward, {both / 1e9:.3f} forward and backward",
        *_weights(recipe, folder),
        *_ensemble(recipe, bands, ranks, num_params(net), forward),
        f"precision    {precision} ({why})",
        *prescribed.lines(recipe, net, bands),
        *_memory(net, recipe, options, bands, precision),
        f"run folder   {folder}",
        *_data(recipe, options, both * max(1, len(bands))),
    ]
    return "\n".join(lines)


def _weights(recipe: Recipe, folder: Path) -> list[str]:
    """What would be taken of a file or a run, read as training reads it; a hub's are not fetched for this. A run that
    goes on has weights of its own."""
    if recipe.weights is None or runfolder.read_run(folder) is not None:
        return []
    if weights.of_hub(recipe.weights):
        return [f"weights      {recipe.weights}: not looked at, training fetches them"]
    return [f"weights      {recipe.weights}: {weights.put(build_network(recipe), weights.read(recipe.weights))}"]


def _ensemble(recipe: Recipe, bands: tuple[int, ...], ranks: int, parameters: int, forward: int) -> list[str]:
    if not bands:
        return []
    ensemble.shares(bands, ranks)  # refuses what does not come out even
    sums = f"{parameters * len(bands):,} parameters, {forward * len(bands) / 1e9:.3f} GFLOP an image forward"
    return [f"ensemble     {ensemble.told(recipe, bands, ranks)}", f"together     {sums}"]


def _memory(
    net: nn.Module, recipe: Recipe, options: RunOptions, bands: tuple[int, ...], precision: str
) -> list[str]:  # fmt: skip
    """Weights, gradients, optimiser state and EMA in fp32; activations as autograd would keep them. A rank with
    several bands is counted as holding those of one step at a time, which captured steps do not."""
    copies = 3 + isinstance(recipe.optim, AdamW | AdamCPR | Lamb) + (recipe.ema_decay is not None)
    d, ranks = recipe.data, options.gpus or options.procs or 1
    networks = max(map(len, ensemble.shares(bands, ranks))) if bands else 1
    fixed, ranks = copies * 4 * num_params(net) * networks, ensemble.ranks_a_band(bands, ranks) if bands else ranks
    images = min(-(-d.batch_images // ranks), options.micro_batch_images or d.batch_images)
    shape = (d.channels, recipe.input_px, recipe.input_px)
    per_image = activation_bytes(net, shape) // (1 if precision == "fp32" else 2)
    total = fixed + images * per_image
    return [
        f"batch        {d.batch_images} images a step over {ranks} rank(s), {images} at once",
        f"memory       about {total / 2**30:.2f} GiB a rank: {fixed / 2**30:.2f} weights and optimiser, "
        f"{images * per_image / 2**30:.2f} activations ({per_image / 2**20:.1f} MiB an image)",
    ]


def _data(recipe: Recipe, options: RunOptions, flops_per_image: int) -> list[str]:
    """What lies there, or that nothing does; what is wrong with it is raised."""
    try:
        found = load_data(recipe, options, look=True)
    except AbsentError as error:
        return [*_schedule(recipe, None), f"data         NOT FOUND: {error}"]
    except Unpacked as todo:
        return _unpacked(recipe, todo, flops_per_image)
    val = "" if found.val is None else f"{len(found.val):,} validation, "
    sizes = f"{len(found.train):,} train, {val}{len(found.test):,} test, {len(found.class_names)} classes"
    return [
        *_steps(recipe, len(found.train), flops_per_image),
        f"data         {found.name}: {sizes}, {found.image_shape}, fingerprint {found.fingerprint[:12]}",
        *(f"note         {note}" for note in found.notes),
        f"pipeline     {_pipeline(found, options)}",
    ]


def _unpacked(recipe: Recipe, todo: Unpacked, flops_per_image: int) -> list[str]:
    """A set that training would pack first."""
    splits, d = todo.found.splits, recipe.data
    train = d.train_images or len(splits["train"])
    test = d.test_images or (len(splits["test"]) if "test" in splits else round(d.hold_out * train))
    train -= (0 if "test" in splits else test) + (d.val_images or 0)
    val = f"{d.val_images:,} validation, " if d.val_images else ""
    sizes = f"{train:,} train, {val}{test:,} test, {len(todo.found.class_names)} classes"
    return [
        *_steps(recipe, train, flops_per_image),
        f"data         {todo.found.path}: {todo.found.kind}, {sizes}; training packs it once into {todo.target}",
        *(f"note         {note}" for note in todo.found.remarks()),
    ]


def _steps(recipe: Recipe, train: int, flops_per_image: int) -> list[str]:
    d = recipe.data
    order = Order(train, d.batch_images, recipe.seed, drop_last=d.drop_last)
    check_fills(recipe, train, order)
    total = recipe.epochs * order.steps_per_epoch * d.batch_images * flops_per_image
    return [
        *_schedule(recipe, order.steps_per_epoch),
        f"arithmetic   {total / 1e15:.3f} PFLOP for the whole training",
    ]


def _pipeline(found: DataSet, options: RunOptions) -> str:
    kind = "cpu" if options.device == "cpu" or options.procs or not device.num_gpus() else "cuda"
    try:
        return "{} ({})".format(*pipelines.choose(options.pipeline, (found.train, found.test), torch.device(kind)))
    except ImnetError as error:
        return str(error)


def _schedule(recipe: Recipe, steps_per_epoch: int | None) -> list[str]:
    """The learning rate over the run, as a line of bars."""
    per_epoch = steps_per_epoch or 1000
    steps = recipe.epochs * per_epoch
    rates = [recipe.lr_at(int(i * (steps - 1) / 59), per_epoch) for i in range(60)]
    top = max(rates)
    bars = "".join(_BARS[min(7, int(8 * r / top))] for r in rates)
    length = f"{recipe.epochs} epochs" + (f" of {steps_per_epoch} steps" if steps_per_epoch else "")
    return [f"schedule     {recipe.schedule.kind}, {length}", f"lr           {bars}  largest {top:.4g}"]
