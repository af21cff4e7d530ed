"""The commands of imnet-bench. Each returns its JSON report and a function that measures its scores for the gate."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any

from imnet import device
from imnet.environment import version
from imnet.errors import ImnetError, UsageError
from imnet.recipe import Recipe
from imnet.report import expand
from imnet.resources import num_cores
from imnet.run_options import RunOptions

from . import data, gate, kernels, scaling, step, tables, throughput, whole
from .case import find_recipe, run_options, with_batch
from .form import Row
from .gate import Measure
from .machine import fingerprint

Result = tuple[Row, Measure]
ONE_THREAD = RunOptions(threads=1)
GATE_RECIPES = (("fashion-mnist/speedrun", 256), ("tiny-imagenet/resnet18_64", 4))
# `imnet-bench all`: small cases of a narrow and a wide network, with few rounds and without files.
SMALL = (
    "throughput --recipe fashion-mnist/speedrun --seconds 7",
    "throughput --recipe tiny-imagenet/resnet18_64 --batch-size 32 --seconds 7",
    "step --only speednet --rounds 6",
    "step --only timm:resnet18 --rounds 6",
    "scaling --batch-size 128 --steps 12",
    "kernels --quick",
    "data --rounds 6",
)


def report(
    benchmark: str,
    rows: Iterable[Row],
    precision: str | None = None,
    n: int | None = None,
    options: RunOptions | None = None,
    about: Callable[[], Row] = dict,
) -> Row:
    """Collect a benchmark's rows into its JSON and print each as soon as it is measured. Without ``precision`` the
    fingerprint has that of the first row."""
    found: list[Row] = []
    with device.threads(options or RunOptions()):
        for row in rows:
            found.append(row)
            print(tables.shown(benchmark, row), flush=True)
        machine = fingerprint(precision or found[0]["precision"], n)
        made = {"benchmark": benchmark, "fingerprint": machine, **about(), "rows": found}
    if where := tables.SECTIONS[benchmark].about(made):
        print(where)
    return made


def throughput_(values: argparse.Namespace) -> Result:
    """Measure one recipe, or with --against the networks with published figures for a card."""
    options = run_options(values)
    if values.against is not None:
        return _against(values, options)
    for name in ("models", "picture"):
        if getattr(values, name) is not None:
            raise UsageError(f"got --{name} without --against", hint='e.g. --against "GTX 1080 Ti"')
    recipe = find_recipe(values.recipe, values.model, batch_images=values.batch_size)
    rows = (throughput.measure(one, options, values.seconds) for one in [recipe])
    found = report("throughput", rows, options=options)
    found["fingerprint"]["n"] = found["rows"][0]["rates"]["model"]["n"]
    return found, _probes([recipe])


def _against(values: argparse.Namespace, options: RunOptions) -> Result:
    if values.recipe or values.model:
        raise UsageError("got --against with --recipe or --model", hint="choose networks with --models a,b")
    card = throughput.find_card(values.against)
    chosen = throughput.references(card, values.models.split(",") if values.models else None)
    scored = [one for one in chosen if one.has_schedule]
    if not scored and (values.save or values.compare):
        gate_option = "--save" if values.save else "--compare"
        raise UsageError(f"got {gate_option} for networks without a recipe, which have no scores", hint="leave it out")
    on_cpu = options.device == "cpu" or not device.num_gpus()

    def sized(recipe: Recipe) -> Recipe:
        if values.batch_size:
            return with_batch(recipe, values.batch_size)
        return throughput.smaller_for_cpu(recipe) if on_cpu else recipe

    def measured(one: throughput.Reference) -> Row:
        row = throughput.measure(sized(one.recipe), options, values.seconds, parts=("end to end",))
        return throughput.compared(one, row)

    found = report("reference", map(measured, chosen), options=options, about=lambda: {"card": card})
    machine = found["fingerprint"]
    machine["n"] = min(row["n"] for row in found["rows"])
    if values.picture is not None:
        from . import pictures

        pictures.bars(values.picture, found["rows"], machine["gpu"] or f"{machine['cpu']}, {machine['cores']} cores")
        print(f"picture: {values.picture}")
    return found, _probes([sized(one.recipe) for one in scored])


def _probes(recipes: list[Recipe], parts: tuple[str, ...] = gate.PARTS) -> Measure:
    """A function that measures the scores of the recipes' loader and step, each recipe in its own process."""

    def measure(names: Collection[str] | None) -> dict[str, float]:
        found: dict[str, float] = {}
        for recipe in recipes:
            wanted = tuple(p for p in parts if names is None or f"{p} {recipe.name}" in names)
            if wanted:
                found |= gate.probe(recipe, wanted)
        return found

    return measure


def _gate_recipes() -> list[Recipe]:
    """The recipes that the gate measures: small cases of a narrow and a wide network."""
    return [find_recipe(name, None, batch_images=batch) for name, batch in GATE_RECIPES]


def _again(take: Callable[[], Row], scores: Callable[[Row], dict[str, float]]) -> Result:
    """A report, and a function for its scores: the first call uses this report, every later call measures anew."""
    first = take()
    at_hand = [first]

    def measure(names: Collection[str] | None) -> dict[str, float]:
        found = at_hand.pop() if at_hand else take()
        return {name: score for row in found["rows"] for name, score in scores(row).items()}

    return first, measure


def kernels_(values: argparse.Namespace) -> Result:
    """Kernels of the CPU; a kernel's score is its reference's time over its own."""
    rounds = kernels.QUICK_ROUNDS if values.quick else kernels.ROUNDS
    about = functools.partial(kernels.about, rounds)

    def take() -> Row:
        rows = kernels.rows(values.family, rounds, values.quick)
        return report("kernels", rows, "fp32, bf16", rounds, ONE_THREAD, about)

    return _again(take, kernels.scores)


def data_(values: argparse.Namespace) -> Result:
    """The data path; a row's score is its peer's time over ours."""
    n = values.rounds
    return _again(lambda: report("data", data.rows(n, values.jpegs), "bf16", n, ONE_THREAD), data.scores)


def step_(values: argparse.Namespace) -> Result:
    """The step against timm's; the scores for the gate are those of two recipes' steps."""
    about = {"compile": values.compile, "timm": version("timm") or "not measured: not installed"}
    rows = step.rows(values.only, values.rounds, values.compile)
    options = RunOptions(threads=values.threads)
    return report("step", rows, "bf16", values.rounds, options, lambda: about), _probes(_gate_recipes(), ("model",))


def whole_(values: argparse.Namespace) -> Result:
    """The whole command against timm's: several runs of many minutes, alternating; no scores."""
    case = {"model": values.model, "image_px": values.image_px, "batch_images": values.batch_size}
    files = values.timm_script.resolve(), values.pictures.resolve()
    return report("whole", whole.rows(*files, values.rounds, values.epochs, **case), "bf16", values.rounds), _no_scores


def scaling_(values: argparse.Namespace) -> Result:
    """Several ranks on this machine, or with --model the analytic model of many GPUs; no scores."""
    if values.model is not None:
        batch = values.batch_size or scaling.GLOBAL_BATCH
        rows = scaling.predicted_rows(values.model, batch)
        about = functools.partial(scaling.predicted_about, batch)
        return report("scaling model", rows, "none: on paper", about=about), _no_scores
    options = run_options(values)
    if options.gpus or options.device == "cuda":
        device.check_gpus(options.gpus or 1, None if options.gpus else "--device cuda")
    on_gpu = options.device != "cpu" and options.procs is None and device.num_gpus() > 0
    most = (options.gpus or device.num_gpus()) if on_gpu else (options.procs or num_cores())
    recipe, ranks = find_recipe(values.recipe, None, batch_images=values.batch_size), scaling.parse_ranks(most)
    options = dataclasses.replace(options, device=options.device if on_gpu else "cpu", gpus=None, procs=None)
    options = scaling.threads_a_rank(options, ranks)
    steps = values.steps or scaling.STEPS
    rows, about = scaling.rows(recipe, options, ranks, steps), functools.partial(scaling.about, recipe, options)
    return report("scaling", rows, None, steps, options, about), _no_scores


def runs_(values: argparse.Namespace) -> Result:
    """Figures of whole trainings from their run folders; no scores."""
    return report("runs", whole.run_rows(expand(values.runs))), _no_scores


def _no_scores(names: Collection[str] | None) -> dict[str, float]:
    return {}


def all_(values: argparse.Namespace) -> Result:
    """Small cases of most benchmarks; for one that cannot run the reason is reported, and the others go on."""
    took: dict[str, float] = {}
    found: dict[str, Any] = {}
    for words in SMALL:
        print(f"== {words}", flush=True)
        start, small = time.perf_counter(), values.parse(words.split())
        try:
            found[words], _ = COMMANDS[small.command](small)
        except (ImnetError, RuntimeError, OSError) as error:
            found[words] = {"benchmark": small.command, "error": str(error).splitlines()[0]}
            print(f"not measured: {found[words]['error']}", flush=True)
        took[words] = round(time.perf_counter() - start, 1)
    print("took " + ", ".join(f"{words.split()[0]} {seconds:.0f} s" for words, seconds in took.items()))
    with device.threads(RunOptions()):
        machine = fingerprint(device.resolve(RunOptions()).precision)
    about = {"benchmark": "all", "fingerprint": machine, "parts": found, "took_s": took}
    return about, _probes(_gate_recipes())


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
