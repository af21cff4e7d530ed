"""imnet-train --dry-run: everything that can be known before training, on the meta device; nothing is written."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import nn

from imnet import change, checkpoint, device, ensemble, fits, hubs, models, prescribed, runfolder, start, weights
from imnet.announce import sizes
from imnet.data import AbsentError, DataSet, Unpacked
from imnet.data.base import held_of_each_class
from imnet.data.order import Order
from imnet.data.readers import Blocks, Items
from imnet.data.readers.headers import refusals
from imnet.errors import DeviceError, ImnetError
from imnet.from_recipe import choose_pipeline, load_data, order_of
from imnet.models.count import num_params, passes
from imnet.recipe import Recipe
from imnet.run_options import RunOptions

_BARS = "▁▂▃▄▅▆▇█"


def text(recipe: Recipe, options: RunOptions) -> str:
    """Return the whole dry run as text. Raises the errors with which the run would fail at once, wrong data included.
    Absent data, GPUs or kernels are only lines in it, so that one machine can plan for another."""
    d, options, bands = recipe.data, options.as_ran(recipe), options.bands_of(recipe)
    precision, folder = start.check(recipe, options)
    start.check_folders(recipe, options, precision, folder)
    lacks, why = _lacks(options), device.resolve_precision(options.precision, device.kind_of(options))[1]
    fits.check_forward(recipe)
    with torch.device("meta"):
        net = models.build(recipe.model, recipe.num_outputs, d.channels, **recipe.model_options)
    shape = (d.channels, recipe.input_px, recipe.input_px)
    with models.seeing(recipe.model, recipe.input_px):
        forward, both = passes(net, shape)
    entered = partial(_entered, recipe, options, precision, net, folder)
    lines = [
        f"recipe       {recipe.name}: {recipe.source}",
        f"network      {recipe.model}: {num_params(net):,} parameters",
        f"FLOPs        {forward / 1e9:.3f} GFLOP an image forward, {both / 1e9:.3f} forward and backward",
        *_ensemble(recipe, bands, options.num_ranks, num_params(net), forward),
        *lacks,
        f"precision    {precision} ({why})",
        *prescribed.lines(recipe, net, bands),
        *_first_weights(recipe, net, runfolder.runs_of(folder, bands)),
        *_memory(recipe, options, bands, precision),
        f"run folder   {_folder(folder, bands)}",
        *_data(recipe, options, partial(_steps, recipe, options, net, both * max(1, len(bands))), entered),
    ]
    # This comes last because it changes the network.
    fits.check_parts(recipe, net, ensemble.ranks_a_band(bands, options.num_ranks))
    return "\n".join(lines)


def _lacks(options: RunOptions) -> list[str]:
    """Lines about what the run needs and this machine lacks: GPUs, or a core for each process."""
    crowded = [f"note         {told}" for told in device.crowded(options.procs)]
    try:
        start.check_machine(options)
    except DeviceError as error:
        return [*crowded, f"machine      NOT HERE: {error}"]
    return crowded


def _folder(path: Path, bands: tuple[int, ...]) -> str:
    """The run folder, and the process that is writing to it, if any."""
    holder = next(filter(None, map(runfolder.writer, runfolder.runs_of(path, bands))), None)
    return f"{path}" + (f" ({runfolder.BUSY}: {holder})" if holder else "")


def _ensemble(recipe: Recipe, bands: tuple[int, ...], ranks: int, parameters: int, forward: int) -> list[str]:
    if not bands:
        return []
    ensemble.shares(bands, ranks)  # raises UsageError if ranks and bands do not fit
    sums = f"{parameters * len(bands):,} parameters, {forward * len(bands) / 1e9:.3f} GFLOP an image forward"
    return [f"ensemble     {ensemble.told(recipe, bands, ranks)}", f"together     {sums}"]


def _first_weights(recipe: Recipe, net: nn.Module, folders: list[Path]) -> list[str]:
    """A line about which of ``recipe.weights`` fit; none for a resumed run, which has its own and whose source may be
    gone."""
    source = recipe.weights
    if source is None or all(checkpoint.newest(folder / "checkpoints") for folder in folders):
        return []
    if source.startswith(hubs.PREFIXES) and not hubs.is_here(source):
        weights.preprocessing(source)  # raises UsageError for an unknown name
        return [f"begins with  {source}, fetched when training begins"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that a copy to the meta device is a no-op
        return [f"begins with  {source}: {weights.put(net, weights.read(source))}"]


def _memory(recipe: Recipe, options: RunOptions, bands: tuple[int, ...], precision: str) -> list[str]:
    networks = max(map(len, ensemble.shares(bands, options.num_ranks))) if bands else 1
    ranks = ensemble.ranks_a_band(bands, options.num_ranks)
    batch = recipe.data.batch_images
    images = min(-(-batch // ranks), options.micro_batch_images or batch)
    needed = fits.memory(recipe, options, images, precision, ranks, networks)
    on_cpu = device.kind_of(options) == "cpu"
    return [
        f"batch        {batch} images a step over {ranks} rank(s), {images} at once",
        f"memory       about {needed.total / 2**30:.2f} GiB a rank: {needed.fixed / 2**30:.2f} weights and optimiser, "
        f"{f'{needed.cast / 2**30:.2f} copies in {precision}, ' if needed.cast else ''}"
        f"{images * needed.per_image / 2**30:.2f} activations ({needed.per_image / 2**20:.1f} MiB an image)",
        *(f"note         {told}" for told in fits.beyond(needed, options.procs or 1) if on_cpu),
    ]


def _data(
    recipe: Recipe, options: RunOptions, steps: Callable[[int], list[str]], entered: Callable[[DataSet], list[str]]
) -> list[str]:  # fmt: skip
    """Lines about the data and what depends on them, or that they were not found. Raises what is wrong with them."""
    try:
        found = load_data(recipe, options, look=True)
    except AbsentError as error:
        return [*_schedule(recipe, None), f"data         NOT FOUND: {error}"]
    except Unpacked as todo:
        return _unpacked(recipe, todo, steps)
    val, final = (None if part is None else len(part) for part in (found.val, found.final))
    counts = f"{sizes(len(found.train), val, len(found.test), final)}, {len(found.class_names)} classes"
    return [
        *steps(len(found.train)),
        f"data         {found.name}: {counts}, {found.image_shape}, fingerprint {found.fingerprint[:12]}",
        *(f"note         {note}" for note in found.notes),
        f"pipeline     {_pipeline(found, options)}",
        *entered(found),
    ]


def _entered(
    recipe: Recipe, options: RunOptions, precision: str, net: nn.Module, path: Path, dataset: DataSet
) -> list[str]:  # fmt: skip
    """Lines about where existing runs would resume, and about changes. Raises what they would be refused for."""
    order = order_of(recipe, dataset)

    def look(own: Recipe, folder: Path) -> list[str]:
        run, course = runfolder.read_run(folder), change.Course(own, precision, order, dataset.fingerprint)
        if run is None or runfolder.writer(folder):  # a writer may delete checkpoints meanwhile
            return []
        found, step, notes = change.enter(folder, run, course, net.state_dict(), allowed=options.allow_change)
        if found is None:
            return [f"{line[:11]:13}{line[11:]}" for line in notes]
        skipped = [f"skipped    checkpoint {line}" for line in found.skipped]
        told = f"goes on    at step {step} of {course.num_steps} from {found.path}"
        if runfolder.is_complete(folder) and not (found.skipped or notes):
            told = f"complete   already: {folder}"
        return [f"{line[:11]:13}{line[11:]}" for line in (*skipped, *notes, told)]

    return [line for lines in start.of_each(recipe, options, path, look) for line in lines]


def _unpacked(recipe: Recipe, todo: Unpacked, steps: Callable[[int], list[str]]) -> list[str]:
    """Lines about a set that training would pack first."""
    splits, d = todo.found.splits, recipe.data
    train = d.train_images or len(splits["train"])
    test = d.test_images or (len(splits["test"]) if "test" in splits else _held_out(splits["train"], d.hold_out))
    train -= (0 if "test" in splits else test) + (d.val_images or 0)
    final = len(splits["final"]) if "final" in splits else None
    counts = f"{sizes(train, d.val_images or None, test, final)}, {len(todo.found.class_names)} classes"
    return [
        *steps(train),
        f"data         {todo.found.path}: {todo.found.kind}, {counts}; training packs it once into {todo.target}",
        *(f"note         {note}" for note in [*todo.found.remarks(), *refusals(todo.found)]),
    ]


def _held_out(train: Items | Blocks, share: float) -> int:
    """How many images training would hold out; only about as many for pixel arrays, whose labels are not read yet."""
    if isinstance(train, Blocks):
        return round(share * len(train))
    return int(held_of_each_class(train.labels(), share).sum())


def _steps(recipe: Recipe, options: RunOptions, net: nn.Module, flops_per_image: int, train: int) -> list[str]:
    d, bands, ranks = recipe.data, options.bands_of(recipe), options.num_ranks
    order = Order(train, d.batch_images, recipe.seed, drop_last=d.drop_last)
    fits.check_fills(order)
    fits.check_passes(recipe, net, order, ensemble.ranks_a_band(bands, ranks), options.micro_batch_images)
    total = recipe.epochs * order.steps_per_epoch * d.batch_images * flops_per_image
    return [
        *_schedule(recipe, order.steps_per_epoch),
        f"arithmetic   {total / 1e15:.3f} PFLOP for the whole training",
    ]


def _pipeline(found: DataSet, options: RunOptions) -> str:
    kind = torch.device(device.kind_of(options))
    if kind.type == "cuda" and not device.num_gpus():
        return f"{options.pipeline} (for GPUs that are not here)"
    try:
        return "{} ({})".format(*choose_pipeline(options, found, kind))
    except ImnetError as error:
        return str(error)


def _schedule(recipe: Recipe, steps_per_epoch: int | None) -> list[str]:
    """The schedule, and the learning rate over the run as a line of bars."""
    per_epoch = steps_per_epoch or 1000
    steps = recipe.epochs * per_epoch
    rates = [recipe.lr_at(int(i * (steps - 1) / 59), per_epoch) for i in range(60)]
    top = max(rates)
    bars = "".join(_BARS[min(7, int(8 * r / top))] for r in rates)
    length = f"{recipe.epochs} epoch{'s' * (recipe.epochs != 1)}" + (
        f" of {steps_per_epoch} steps" if steps_per_epoch else ""
    )
    return [f"schedule     {recipe.schedule.kind}, {length}", f"lr           {bars}  largest {top:.4g}"]
