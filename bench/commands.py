"""What each command of imnet-bench runs: (its JSON, how its scores for the gate are measured)."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import os
import time
from collections.abc import Callable, Collection
from typing import Any

from imnet import device
from imnet.errors import ImnetError, UsageError
from imnet.recipe import Recipe, replace
from imnet.run_options import RunOptions

from . import data, kernels, probe, reference, runs, scaling, scaling_model, step, tables, throughput, whole
from .case import find_recipe
from .compare import Measure
from .fingerprint import fingerprint, text

Result = tuple[dict[str, Any], Measure]


def run_options(values: argparse.Namespace) -> RunOptions:
    """The command line's, as a run takes them."""
    given: dict[str, Any] = {name: getattr(values, name, None) for name in _OPTIONS}
    try:
        return RunOptions(**{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error


_OPTIONS = ("device", "precision", "threads", "compile", "data_dir", "pipeline", "cuda_graphs")


def throughput_(values: argparse.Namespace) -> Result:
    """One recipe, or those that a card has published figures for."""
    options = run_options(values)
    if values.against is not None:
        return _against(values, options)
    for name in ("models", "picture"):
        if getattr(values, name) is not None:
            raise UsageError(f"got --{name} without --against", hint='e.g. --against "GTX 1080 Ti"')
    recipe = find_recipe(values.recipe, values.model, batch_images=values.batch_size)
    found = throughput.report([recipe], options, values.seconds)
    return found, probes([recipe], options)


def _against(values: argparse.Namespace, options: RunOptions) -> Result:
    if values.recipe or values.model:
        raise UsageError("got --against with --recipe or --model", hint="choose networks with --models a,b")
    card = reference.find_card(values.against)
    models = values.models.split(",") if values.models else None
    chosen = reference.references(card, models)
    on_cpu = options.device == "cpu" or not device.num_gpus()
    rows, machine = [], None
    for one in chosen:
        recipe = reference.smaller_for_cpu(one.recipe) if on_cpu and not values.batch_size else one.recipe
        if values.batch_size:
            recipe = replace(recipe, data=replace(recipe.data, batch_images=values.batch_size))
        row = throughput.measure(recipe, options, values.seconds, parts=("end to end",))
        rows.append(reference.compared(one, row))
        print(reference.table(rows[-1:]).splitlines()[-1], flush=True)
    with device.threads(options):
        machine = fingerprint(rows[0]["precision"], min(row["n"] for row in rows))
    print(f"\n{text(machine)}\n{reference.table(rows)}")
    if values.picture is not None:
        from . import picture

        picture.draw(values.picture, rows, machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores")
        print(f"picture: {values.picture}")
    found = {"benchmark": "reference", "fingerprint": machine, "card": card, "rows": rows}
    return found, probes([one.recipe for one in chosen if one.has_schedule], options)


def probes(recipes: list[Recipe], options: RunOptions, parts: tuple[str, ...] = probe.PARTS) -> Measure:
    """Scores of the recipes' loader and step, each from a process of its own."""

    def measure(names: Collection[str] | None) -> dict[str, float]:
        found: dict[str, float] = {}
        for recipe in recipes:
            wanted = tuple(p for p in parts if names is None or f"{p} {recipe.name}" in names)
            if wanted:
                found |= probe.run(recipe.name, batch_images=recipe.data.batch_images, parts=wanted)
        return found

    return measure


def step_(values: argparse.Namespace) -> Result:
    """The table against timm's step; the gate's scores are those of two recipes' steps."""
    with device.threads(RunOptions(threads=values.threads)):
        found = step.report(values.only, values.rounds, values.compile)
    return found, probes(gate_recipes(), RunOptions(), ("model",))


def gate_recipes() -> list[Recipe]:
    """Small cases of a narrow and of a wide network, for the gate of the step."""
    return [find_recipe(name, None, batch_images=batch) for name, batch in GATE_RECIPES]


GATE_RECIPES = (("fashion-mnist/speedrun", 256), ("tiny-imagenet/resnet18_64", 4))


def kernels_(values: argparse.Namespace) -> Result:
    """The score of a case is its reference's time over its own."""
    take = functools.partial(kernels.report, values.family, values.quick)
    found = take()
    print(tables.kernels(found))
    return found, again(found, take, kernels.scores)


def data_(values: argparse.Namespace) -> Result:
    """The score of a row is its peer's time over its own."""
    take = functools.partial(data.report, values.rounds, values.jpegs, values.idx)
    found = take()
    return found, again(found, take, data.scores)


def whole_(values: argparse.Namespace) -> Result:
    """Two commands of many minutes, in turn."""
    case = {"model": values.model, "image_px": values.image_px, "batch_images": values.batch_size}
    found = whole.report(values.timm_script.resolve(), values.pictures.resolve(), values.rounds, values.epochs, **case)
    print(tables.whole(found))
    return found, _no_scores


def runs_(values: argparse.Namespace) -> Result:
    """Whole trainings, from their run folders."""
    found = runs.report(values.runs)
    print(tables.runs(found))
    return found, _no_scores


def again(
    first: dict[str, Any], take: Callable[[], dict[str, Any]], scores: Callable[[dict[str, Any]], dict[str, float]]
) -> Measure:
    """Scores of a report: of the one at hand at the first asking, of a new one at every later."""
    at_hand = [first]

    def measure(names: Collection[str] | None) -> dict[str, float]:
        return scores(at_hand.pop() if at_hand else take())

    return measure


def scaling_(values: argparse.Namespace) -> Result:
    """Ranks on this machine, or the model of many on paper."""
    if values.model is not None:
        return _on_paper(values), _no_scores
    if values.plot is not None:
        raise UsageError("got --plot without --model", hint="e.g. --model 1024 --plot scaling.png")
    options = run_options(values)
    on_gpu = options.device != "cpu" and values.procs is None and device.num_gpus() > 0
    if values.gpus and not on_gpu:
        device.check_gpus(values.gpus)
    most = (values.gpus or device.num_gpus()) if on_gpu else (values.procs or len(os.sched_getaffinity(0)))
    if not on_gpu:
        options = dataclasses.replace(options, device="cpu")
    recipe = find_recipe(values.recipe, None, batch_images=values.batch_size)
    found = scaling.report(recipe, options, scaling.parse_ranks(most), values.steps)
    print(scaling.text(found))
    return found, _no_scores


def _on_paper(values: argparse.Namespace) -> dict[str, Any]:
    batch = {"global_batch": values.batch_size} if values.batch_size else {}
    found = scaling_model.report(values.model, plot=values.plot, **batch)
    print(found.pop("table"))
    return found | {"fingerprint": fingerprint("none: on paper")}


def _no_scores(names: Collection[str] | None) -> dict[str, float]:
    return {}


def all_(values: argparse.Namespace) -> Result:
    """Small cases of every subject; one that cannot run says why, the others go on."""
    took: dict[str, float] = {}
    found: dict[str, Any] = {}
    for name, run in SMALL.items():
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            found[name] = run()
        except (ImnetError, RuntimeError, OSError) as error:
            found[name] = {"benchmark": name, "error": str(error).splitlines()[0]}
            print(f"not measured: {found[name]['error']}", flush=True)
        took[name] = round(time.perf_counter() - start, 1)
    print("took " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    print("left out:\n" + "\n".join(f"  {line}" for line in LEFT_OUT))
    with device.threads(RunOptions()):
        machine = fingerprint(device.resolve(RunOptions()).precision)
    about = {"benchmark": "all", "fingerprint": machine, "parts": found, "took_s": took, "left_out": LEFT_OUT}
    return about, probes(gate_recipes(), RunOptions())


def _small_throughput() -> dict[str, Any]:
    recipes = [find_recipe("fashion-mnist/speedrun", None), find_recipe(WIDE, None, batch_images=32)]
    return throughput.report(recipes, RunOptions(), seconds=15)


def _small_step() -> dict[str, Any]:
    with device.threads(RunOptions()):
        reports = [step.report(name, SMALL_ROUNDS) for name in ("speednet", "timm:resnet18")]
    return reports[0] | {"rows": [row for found in reports for row in found["rows"]]}


def _small_scaling() -> dict[str, Any]:
    gpus = device.num_gpus()
    options = RunOptions() if gpus else RunOptions(device="cpu")
    recipe = find_recipe("fashion-mnist/speedrun", None, batch_images=128)
    found = scaling.report(recipe, options, scaling.parse_ranks(max(2, gpus)), steps=12)
    print(scaling.text(found))
    return found


WIDE, SMALL_ROUNDS = "tiny-imagenet/resnet18_64", 6
SMALL: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": _small_throughput,
    "step": _small_step,
    "scaling": _small_scaling,
    "kernels": lambda: kernels.report(quick=True),
    "data": lambda: data.report(data.QUICK_ROUNDS),
}
LEFT_OUT = [
    "throughput: two recipes, the second with 32 images a step; `imnet-bench throughput --recipe NAME` takes any",
    f"step: two networks, {SMALL_ROUNDS} rounds; `imnet-bench step` takes the whole table",
    "kernels: fewer rounds and no compiled column; `imnet-bench kernels` takes all",
    f"data: {data.QUICK_ROUNDS} rounds; rows that need files: `imnet-bench data --jpegs ZIP --idx FOLDER`",
    "scaling: up to two processes; the model on paper is `imnet-bench scaling --model 1024`",
    "published hardware: `imnet-bench throughput --against CARD`",
]
COMMANDS: dict[str, Callable[[argparse.Namespace], Result]] = {
    "throughput": throughput_,
    "kernels": kernels_,
    "data": data_,
    "step": step_,
    "whole": whole_,
    "scaling": scaling_,
    "runs": runs_,
    "all": all_,
}
