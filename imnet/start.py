"""Trains a recipe into a run folder: makes the early checks, starts the ranks, and raises their errors."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import math
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import torch
from imnet_kernels import tier

from imnet import data, defaults, device, ensemble, fits, launch, loggers, models, optim, runfolder
from imnet.console import Console
from imnet.data.readers.rule import is_picture
from imnet.data.store import is_store
from imnet.errors import DeviceError, ImnetError, UsageError, quoted
from imnet.files import exists, is_dir
from imnet.ranks import run_ranks
from imnet.recipe import Recipe
from imnet.resources import lacking
from imnet.run_options import RunOptions
from imnet.trainer import Trainer
from imnet.watch import SIGNALS, Signals

T = TypeVar("T")


def train(recipe: Recipe, options: RunOptions) -> tuple[int, Path]:
    """Train ``recipe``; returns the exit code (0, or 1 if a rank failed with a traceback) and the run folder.

    Raises the ImnetError of this process or of a rank.
    """
    options, bands = options.as_ran(recipe), options.bands_of(recipe)
    path = check(recipe, options)[1]
    check_machine(options)
    options = dataclasses.replace(options, out=str(path))
    code = 0
    if options.num_ranks > 1 and launch.current_world(options.num_ranks).size == 1:
        print(*(f"note       {told}\n" for told in device.crowded(options.procs)), end="", flush=True)
        environment = ensemble.RANKS_ENVIRONMENT if bands else None
        code = run_ranks(_rank_entry, (recipe, options), options.num_ranks, options.max_restarts, environment)
    else:
        with launch.named_loss(launch.current_world()), _alone():
            _run_rank(recipe, options)
    if bands and code == 0 and launch.current_world().is_main:
        print(ensemble.closing(path, bands), flush=True)
    return code, path


_TRAINING = threading.Lock()


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """UsageError if another thread of this process is training: both would draw from torch's global generator and set
    the same thread counts and kernels, so that neither run would be reproducible."""
    if not _TRAINING.acquire(blocking=False):
        hint = "wait for it, or train in a process of its own"
        raise UsageError("another run is being trained in this process", hint=hint)
    try:
        yield
    finally:
        _TRAINING.release()


@contextlib.contextmanager
def memory_freed() -> Iterator[None]:
    """Free the memory of a training in the block, however it ends: a notebook goes on afterwards, and may train again.

    A trainer and its parts refer to each other, and would stay, with all that they hold on a GPU, until Python happens
    to collect them. The frames of an error, which a notebook keeps, refer to them too. Those of a bug are left alone,
    to be looked at. A rank of a launch frees nothing: its GPU may be waiting for a rank that is lost, and it would too.
    """
    alone, callers = launch.current_world().size == 1, sys.exception()
    try:
        yield
    except ImnetError as error:
        cause: BaseException | None = error if alone else None
        while cause is not None and cause is not callers:
            traceback.clear_frames(cause.__traceback__)
            cause = cause.__cause__ or cause.__context__
        raise
    finally:
        if alone:
            gc.collect()
            if torch.cuda.is_initialized():
                with contextlib.suppress(RuntimeError):  # of a GPU that has failed, which the run has told
                    torch.cuda.empty_cache()


def _check_folder(path: Path, bands: tuple[int, ...]) -> None:
    """UsageError if one network would be trained in the folder of an ensemble, or an ensemble in that of one run."""
    if bands and runfolder.read_run(path) is not None:
        what = "the folder holds the run of one network, not an ensemble's"
        raise UsageError(what, file=path, hint="choose another --out, or give --band K")
    there = runfolder.bands_in(path)
    if there and not bands:
        hint = f"--bands trains them; --out {quoted(next(iter(there.values())))} is the run of one"
        raise UsageError("the folder holds an ensemble", file=path, hint=hint)


def _check_beside_data(path: Path, data_dir: str | None) -> None:
    """UsageError if a new run's folder would be a packed store, the data folder, or a folder in it that has data: the
    run would be read as a class, or hide one. A separate run folder inside the data is fine: the readers skip it."""
    if runfolder.read_run(path) is not None:
        return
    if is_store(path):
        raise UsageError("the folder is a packed store, beside which a run would lie", file=path,
                         hint="choose another --out")  # fmt: skip
    if data_dir is None:
        return
    place, out = Path(os.path.realpath(data_dir)), Path(os.path.realpath(path))
    inside = sorted(out.iterdir()) if place in out.parents and is_dir(out) else []
    hidden = [p for p in inside if p.name.startswith((".", "band-"))]
    if place == out or any(is_dir(p) or is_picture(p.name) for p in inside if p not in hidden):
        what = "the run would lie among the data that it trains on"
        raise UsageError(what, file=path, hint="choose another --out, outside of them")


def _check_begun(path: Path, bands: Sequence[int]) -> None:
    """UsageError if --allow-change would start a new run: the name of the folder follows from the configuration, so
    another configuration without --out has a folder of its own. Asked on rank 0 alone, where the run folder is."""
    if not any(exists(run / "run.json") for run in runfolder.runs_of(path, bands)):
        what = f"got --allow-change without --out, and there is no run yet in {path}, the folder of this configuration"
        raise UsageError(what, hint="name the folder of the run that goes on: --out RUN")


def check(recipe: Recipe, options: RunOptions) -> tuple[str, Path]:
    """Check what can be checked before any process or file is created; returns (resolved precision, run folder).
    ``options`` must come from ``as_ran``. A dry run makes the same checks."""
    world, bands = launch.current_world(options.gpus or options.procs), options.bands_of(recipe)
    ranks = max(world.size, options.num_ranks)
    if bands:
        ensemble.shares(bands, ranks)
    synced = recipe.comm.sync_bn and ensemble.ranks_a_band(bands, ranks) > 1
    if synced and options.compile and device.kind_of(options) == "cpu":
        what = "got --compile with --sync-bn on CPU ranks, whose norms the compiler cannot follow"
        raise UsageError(what, hint="leave one of them out")
    loggers.check(options.logs)
    optim.check_backend(options.optim_backend)
    if not models.known(recipe.model):
        models.build(recipe.model, recipe.data.num_classes)  # raises with the suggestion
    if recipe.data.name not in data.names() and not recipe.data.name.startswith("packed:"):
        data.load(recipe.data.name)
    precision = device.resolve_precision(options.precision, device.kind_of(options))[0]
    path = Path(options.out or runfolder.default_path(recipe, precision, bands))
    _check_folder(path, bands)
    _check_beside_data(path, options.data_dir)
    if options.allow_change and options.out is None and world.rank == 0:
        _check_begun(path, bands)
    return precision, path


def check_machine(options: RunOptions) -> None:
    """DeviceError if the options need a device that this machine lacks, UsageError if no machine could satisfy them."""
    if options.gpus or options.device == "cuda":
        device.check_gpus(device.gpus_here(options), None if options.gpus else "--device cuda")
    if options.cuda_graphs and device.kind_of(options) == "cpu":
        raise DeviceError("got --cuda-graphs without a GPU", hint="leave --cuda-graphs out")
    defaults.check_compiler(options, device.kind_of(options))
    with tier.using("auto"):
        defaults.choose_kernels(options)


def of_each(recipe: Recipe, options: RunOptions, path: Path, look: Callable[[Recipe, Path], T]) -> list[T]:
    """The results of ``look`` for the recipe and the folder of the run, or of each run of an ensemble."""
    bands = options.bands_of(recipe)
    if not bands:
        return [look(recipe, path)]
    found = []
    for band in bands:
        with ensemble.named(band):
            found.append(look(ensemble.of_band(recipe, band), runfolder.band_folder(path, band)))
    return found


def check_folders(recipe: Recipe, options: RunOptions, precision: str, path: Path) -> None:
    """Raise the errors that a run, or each run of an ensemble, would raise about its folder; creates nothing there."""

    def look(own: Recipe, folder: Path) -> None:
        runfolder.check_writable(folder)
        runfolder.check_same(folder, own, options, precision)

    of_each(recipe, options, path, look)


def _rank_entry(recipe: Recipe, options: RunOptions) -> int:
    """The entry function of a rank that ``run_ranks`` starts."""
    _run_rank(recipe, options)
    return 0


def _run_rank(recipe: Recipe, options: RunOptions) -> None:
    assert options.out is not None
    path, bands = Path(options.out), options.bands_of(recipe)
    options = ensemble.of_rank(options, bands) if bands else options
    run = runfolder.read_run(runfolder.band_folder(path, bands[0]) if bands else path) or {}
    options = defaults.keep_deterministic(options, run.get("execution"))
    world = launch.current_world()
    place = device.resolve(options, world.local_rank)
    defaults.choose_kernels(options)
    signals = Signals(alone=world.size == 1)
    with (
        device.undisturbed(place),
        device.exact(bool(options.deterministic)),
        launch.handled(SIGNALS, signals.note),
        device.threads(options) as threads,
        models.seeing(recipe.model, recipe.input_px),
    ):
        try:
            if bands:
                ensemble.train(recipe, options, place, signals, threads)
            else:
                _run_alone(recipe, options, place, signals, threads)
        except (RuntimeError, MemoryError) as error:
            failure = _out_of_memory(error, recipe, options, ensemble.ranks_a_band(bands, world.size))
            if failure is None:
                raise
            raise failure from error


def _run_alone(recipe: Recipe, options: RunOptions, place: device.Place, signals: Signals, threads: int) -> None:
    """Train one network on all ranks."""
    assert options.out is not None
    with (
        launch.connected(place.device, fits.settings(recipe, options, place)) as world,
        contextlib.ExitStack() as stack,
    ):
        console, folder = Console(enabled=world.is_main, signals=signals), None
        stack.callback(console.stop)
        if world.is_main:
            folder = stack.enter_context(contextlib.closing(runfolder.RunFolder(Path(options.out), options.lock)))
        trainer = Trainer(recipe, options, place, world, console, signals, threads, folder)
        stack.callback(trainer.step_fn.release)
        trainer.run()


def _out_of_memory(error: Exception, recipe: Recipe, options: RunOptions, ranks: int) -> DeviceError | None:
    """The error if a GPU or the host has run out of memory; None for any other ``error``."""
    size = lacking(error)
    frames = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    if size is not None and (isinstance(error, MemoryError) or Trainer.steps.__code__ not in frames):
        # It was the data, or the network: a batch is only made when the trainer goes through its steps.
        off = "; --pipeline host keeps the images off the GPU" if isinstance(error, torch.OutOfMemoryError) else ""
        return DeviceError(f"out of memory{size}", hint=f"train on fewer or smaller images, or a smaller network{off}")
    if isinstance(error, torch.OutOfMemoryError):
        size = f": peak {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
    if size is None:
        return None
    mine = options.micro_batch_images or math.ceil(recipe.data.batch_images / ranks)
    what = f"out of memory with {mine} images at once{size}"
    fewer = max(1, mine // 2)
    hint = f"try --micro-batch-images {fewer}: the same result in more passes, but for BatchNorm, which sees a pass"
    return DeviceError(what, hint=hint)
