"""From a recipe to a run folder: checks what can be known wrong, starts the ranks, and gives every error its line."""

from __future__ import annotations

import dataclasses
import math
import sys
from pathlib import Path

import torch

from imnet import data, defaults, device, launch, models, runfolder
from imnet.console import Console
from imnet.errors import DeviceError, ImnetError, Preempted, UsageError
from imnet.launch import World
from imnet.recipe import Recipe
from imnet.run_options import RunOptions
from imnet.trainer import Trainer
from imnet.watch import Signals


def train(recipe: Recipe, options: RunOptions) -> tuple[int, Path]:
    """Train ``recipe``; returns the exit code (0, or a failed rank's) and the run folder.

    Raises ImnetError in a single process; with several ranks each has printed its own line.
    """
    precision = _check_before_start(recipe, options)
    if options.out is None:
        options = dataclasses.replace(options, out=str(runfolder.default_path(recipe, precision)))
    assert options.out is not None
    num_ranks = options.gpus or options.procs or 1
    if num_ranks > 1 and not launch.inside_launcher():
        code = launch.run_ranks(_rank_entry, (recipe, options), num_ranks, options.max_restarts)
        return code, Path(options.out)
    _run_rank(recipe, options)
    return 0, Path(options.out)


def _check_before_start(recipe: Recipe, options: RunOptions) -> str:
    """What can be known wrong before any process or file is made; returns the resolved precision."""
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
    """A rank that ``launch.run_ranks`` started: errors become one line and the exit code."""
    try:
        _run_rank(recipe, options)
    except ImnetError as error:
        world = launch.current_world()
        if world.is_main or not isinstance(error, Preempted):
            print(f"imnet-train: rank {world.rank}: {error}", file=sys.stderr, flush=True)
        sys.exit(error.exit_code)
    return 0


def _run_rank(recipe: Recipe, options: RunOptions) -> None:
    assert options.out is not None
    run = runfolder.read_run(Path(options.out)) or {}
    options = defaults.keep_deterministic(options, run.get("execution"))
    place = device.resolve(options, launch.current_world().local_rank)
    defaults.choose_kernels(options)
    with (
        device.exact(bool(options.deterministic)),
        Signals() as signals,
        device.threads(options) as threads,
        launch.connected(place.device) as world,
    ):
        console = Console(enabled=world.is_main)
        try:
            Trainer(recipe, options, place, world, console, signals, threads).run()
        except torch.OutOfMemoryError as error:
            raise _out_of_memory(recipe, options, world) from error
        finally:
            console.stop()


def _out_of_memory(recipe: Recipe, options: RunOptions, world: World) -> DeviceError:
    mine = options.micro_batch_images or math.ceil(recipe.data.batch_images / world.size)
    peak = torch.cuda.max_memory_allocated() / 2**30
    what = f"out of memory with {mine} images at once (peak {peak:.1f} GiB)"
    return DeviceError(what, hint=f"try --micro-batch-images {max(1, mine // 2)}: the same result, in more passes")
