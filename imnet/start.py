"""From a recipe to a run folder: checks what can be known wrong, starts the ranks, and gives every error its line."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path

import torch

from imnet import data, defaults, device, launch, loggers, models, runfolder
from imnet.console import Console
from imnet.errors import DeviceError, UsageError
from imnet.launch import World
from imnet.ranks import run_ranks
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.trainer import Trainer
from imnet.watch import Signals


def train(recipe: Recipe, options: RunOptions) -> tuple[int, Path]:
    """Train ``recipe``; returns the exit code (0, or 1 where a rank failed with a traceback) and the run folder.

    Raises ImnetError, a rank's as well as this process's.
    """
    options = options.as_ran(recipe)
    precision = _check_before_start(recipe, options)
    if options.out is None:
        options = dataclasses.replace(options, out=str(runfolder.default_path(recipe, precision)))
    assert options.out is not None
    num_ranks = options.gpus or options.procs or 1
    if num_ranks > 1 and launch.current_world(num_ranks).size == 1:
        return run_ranks(_rank_entry, (recipe, options), num_ranks, options.max_restarts), Path(options.out)
    _run_rank(recipe, options)
    return 0, Path(options.out)


def _check_before_start(recipe: Recipe, options: RunOptions) -> str:
    """What can be known wrong before any process or file is made; returns the resolved precision."""
    launch.current_world(options.gpus or options.procs)
    loggers.check(options.logs)
    if options.gpus:
        device.check_gpus(options.gpus)
    if not models.known(recipe.model):
        models.build(recipe.model, recipe.data.num_classes)  # raises with the suggestion
    if recipe.data.name not in data.names() and not recipe.data.name.startswith("packed:"):
        data.load(recipe.data.name)
    kind = "cpu" if options.device == "cpu" or options.procs or not device.num_gpus() else "cuda"
    if options.cuda_graphs and (kind == "cpu" or (options.gpus or 1) > 1):
        raise UsageError("got --cuda-graphs without exactly one GPU", hint="leave --cuda-graphs out")
    return device.resolve_precision(options.precision, kind)[0]


def _rank_entry(recipe: Recipe, options: RunOptions) -> int:
    """A rank that ``run_ranks`` started."""
    _run_rank(recipe, options)
    return 0


def _run_rank(recipe: Recipe, options: RunOptions) -> None:
    assert options.out is not None
    run = runfolder.read_run(Path(options.out)) or {}
    options = defaults.keep_deterministic(options, run.get("execution"))
    world = launch.current_world()
    place = device.resolve(options, world.local_rank)
    defaults.choose_kernels(options)
    with (
        device.exact(bool(options.deterministic)),
        Signals(alone=world.size == 1) as signals,
        device.threads(options) as threads,
        launch.connected(place.device) as world,
    ):
        console = Console(enabled=world.is_main)
        try:
            with _folder(options, world) as folder:
                Trainer(recipe, options, place, world, console, signals, threads, folder).run()
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(recipe, options, world) from error
        finally:
            console.stop()


@contextlib.contextmanager
def _folder(options: RunOptions, world: World) -> Iterator[runfolder.RunFolder | None]:
    """The run folder for a block, at rank 0; free for others afterwards."""
    if not world.is_main:
        yield None
        return
    assert options.out is not None
    with contextlib.closing(runfolder.RunFolder(Path(options.out), options.lock)) as folder:
        yield folder


def _out_of_memory(recipe: Recipe, options: RunOptions, world: World) -> DeviceError:
    mine = options.micro_batch_images or math.ceil(recipe.data.batch_images / world.size)
    peak = torch.cuda.max_memory_allocated() / 2**30
    what = f"out of memory with {mine} images at once (peak {peak:.1f} GiB)"
    fewer = max(1, mine // 2)
    hint = f"try --micro-batch-images {fewer}: the same result in more passes, but for BatchNorm, which sees a pass"
    return DeviceError(what, hint=hint)
