"""Decides what a run's options leave open, once and from measurements; the run prints its choices and keeps them.

A captured step is one CUDA graph: the device no longer waits for the launches of hundreds of small kernels. On one H100
(2026-11-26, bench/results/h100-2026-11-26.json) capturing made Shake-Shake 1.5, DenseNet 3.7 and a small network 5
times faster, so it is the default on one GPU. Our own kernels make a captured step another 20 to 45 % faster and cost
a few seconds (one H200, same day, bench/results/h200-2026-11-26.json): they are used if the run is long enough.
Compiling on top of them gained nothing for the four networks with batch norms that were measured. For other networks it
gained 16 to 23 % and cost 18 to 101 s, so it is used if the run is predicted to be long enough to earn that back.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.implementations import c_compiler, tiers_of
from torch import nn

from imnet import device
from imnet.errors import DeviceError, UsageError
from imnet.launch import World
from imnet.models.count import sizes
from imnet.recipe import Recipe
from imnet.run_options import RunOptions

KERNELS_PAY_FROM_S = 30.0
"""Predicted seconds of training from which our kernels are used. On an H200 they made a cold warm-up 7 s longer and
save a sixth (WRN-28-10) to a third (ResNet-50) of a step's time. Predictions are low: on an H200 (2026-11-27)
fashion-mnist/wrn28_10_fast, predicted at 39 s, took 64 s without them, 75 s from the prompt; with them, cold, 65 s."""
COMPILE_GAIN = 0.13
"""Share of a captured step's time that compiling saves; measured: 0.14 for WRN-28-10, 0.19 for Shake-Shake 2x96d, 0.17
for WRN-36-5."""
COMPILE_S_PER_CONVOLUTION = 1.0
"""Seconds of compiling, cold: WRN-28-10 (28 convolutions) took 35 to 40 s, DenseNet-BC-100 (99) 101 s, four networks at
once 32 to 54 s."""
COMPILE_MARGIN = 1.3
"""Safety factor: a prediction that is off by 30 % must not make a run longer."""
BYTES_PER_ELEMENT = 40
"""Bytes that an uncompiled bf16 step moves for each element that a layer writes. Fitted to the rows of captured steps:
wide networks are predicted within 20 %, DenseNet, whose kernels are small, at twice its measured rate."""
RATES = {"H100": (780e12, 3.0e12), "H200": (790e12, 4.3e12)}
"""(bf16 matrix product FLOP/s, copy bytes/s) of the cards that were measured (2026-11-26, 2026-10-28)."""
CARDS = {"NVIDIA H100 80GB HBM3": "H100", "NVIDIA H200": "H200"}
"""Their whole names. A slice of one (MIG) or another form (PCIe, NVL, GH200) has other rates, and is measured."""


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the steps of a run are executed."""

    compile: bool
    cuda_graphs: bool
    deterministic: bool
    reason: str
    step_kernels: bool = False
    """Whether to use the kernel families that are meant for captured steps."""


def decide(
    recipe: Recipe,
    net: nn.Module,
    options: RunOptions,
    place: device.Place,
    world: World,
    train_images: int,
    kept: Mapping[str, Any] | None = None,
) -> Execution:
    """Follow ``options``; what they leave open stays as the run began (``kept``, from run.json), or the rules here
    decide it.

    Raises UsageError or DeviceError if something that was asked for is impossible.
    """
    kept = kept or {}
    graphs, why_graphs = _cuda_graphs(recipe, options, place, world, kept)
    on_gpu = place.device.type == "cuda"
    run_s = seconds_of_training(recipe, net, place, train_images) / world.size if on_gpu else 0.0
    ours = graphs and norms_are_ours(net)
    compile, why_compile = _compile(recipe, net, options, place, world, run_s, ours, kept)
    exact = bool(options.deterministic)
    why = "; ".join(filter(None, (why_graphs, why_compile, "deterministic" if exact else ""))) or "eager"
    kernels = graphs and not compile and run_s > KERNELS_PAY_FROM_S
    return Execution(compile=compile, cuda_graphs=graphs, deterministic=exact, reason=why, step_kernels=kernels)


def norms_are_ours(net: nn.Module) -> bool:
    """Whether ``net`` has batch norms and calls them through models.layers.normed, as this package's networks do."""
    here = any(type(m).__module__.startswith("imnet.models.") for m in net.modules())
    return here and any(type(m) is nn.BatchNorm2d for m in net.modules())


def keep_deterministic(options: RunOptions, kept: Mapping[str, Any] | None) -> RunOptions:
    """Return ``options`` with --deterministic decided: as asked, else as the run began, else off."""
    if options.deterministic is not None:
        return options
    return replace(options, deterministic=bool((kept or {}).get("deterministic", False)))


def _cuda_graphs(
    recipe: Recipe, options: RunOptions, place: device.Place, world: World, kept: Mapping[str, Any]
) -> tuple[bool, str]:
    if options.cuda_graphs and place.device.type != "cuda":
        raise UsageError("got --cuda-graphs without a GPU", hint="leave --cuda-graphs out")
    if options.cuda_graphs is not None:
        return options.cuda_graphs, _told("captured as asked", options.cuda_graphs)
    if place.device.type != "cuda":
        return False, ""
    if world.size > 1:
        # Not measured on several GPUs yet.
        return False, f"not captured on {world.size} ranks (--cuda-graphs does)"
    if options.max_skips:
        return False, "not captured: --on-nonfinite skip:N reads every step"
    if recipe.ema_warmup:
        return False, "not captured: --ema-warmup has another decay every step"
    if "cuda_graphs" in kept:
        return bool(kept["cuda_graphs"]), _told("captured as the run began", kept["cuda_graphs"])
    return True, "captured in one CUDA graph"


def _compile(
    recipe: Recipe,
    net: nn.Module,
    options: RunOptions,
    place: device.Place,
    world: World,
    run_s: float,
    ours: bool,
    kept: Mapping[str, Any],
) -> tuple[bool, str]:
    if recipe.comm.sync_bn and world.size > 1 and options.compile is None:
        return False, "not compiled: --sync-bn, at whose norms compiled code would break off"
    check_compiler(options, place.device.type)
    if options.compile is not None:
        return options.compile, _told("compiled as asked", options.compile)
    if place.device.type != "cuda":
        return False, ""
    if lacks := compiler_missing(place.device.type):
        return False, f"not compiled: torch needs {lacks} for it"
    if options.deterministic:
        return False, "not compiled: --deterministic"
    if "compile" in kept:
        return bool(kept["compile"]), _told("compiled as the run began", kept["compile"])
    predicted, needed_s = f"about {run_s:,.0f} s of training predicted", compile_pays_from_s(net)
    if ours:
        gains = "our own kernels gain as much" if run_s > KERNELS_PAY_FROM_S else "too short for that"
        return False, f"not compiled: {gains} ({predicted})"
    words = f"compiled: {predicted}, compiling pays from {needed_s:,.0f} s"
    return run_s > needed_s, _told(words, run_s > needed_s)


def _told(words: str, yes: bool) -> str:
    return words if yes else f"not {words}"


def check_compiler(options: RunOptions, kind: str) -> None:
    """DeviceError if --compile is asked for, and the compiler that torch needs for a device of ``kind`` is missing."""
    if options.compile and (lacks := compiler_missing(kind)):
        hint = "install one, or leave --compile out"
        raise DeviceError(f"got --compile, for which torch needs {lacks} on the path", hint=hint)


def compiler_missing(kind: str) -> str | None:
    """The compiler that torch.compile needs and that is not installed: C++ for a CPU, C (for Triton) for a GPU."""
    if kind == "cuda":
        return None if c_compiler() else "a C compiler (gcc)"
    return None if shutil.which(os.environ.get("CXX", "g++")) else "a C++ compiler (g++)"


def compile_pays_from_s(net: nn.Module) -> float:
    """Seconds of uncompiled training from which compiling earns back its cost."""
    convolutions = sum(isinstance(m, nn.Conv2d) for m in net.modules())
    return COMPILE_MARGIN * COMPILE_S_PER_CONVOLUTION * convolutions / COMPILE_GAIN


def seconds_of_training(recipe: Recipe, net: nn.Module, place: device.Place, train_images: int) -> float:
    """Predict the seconds of the whole run, uncompiled and captured, on one GPU: the time of its arithmetic plus the
    time of its memory traffic."""
    flops_per_s, bytes_per_s = rates(place)
    flops, elements = sizes(net, (recipe.data.channels, recipe.input_px, recipe.input_px))
    moved = elements * BYTES_PER_ELEMENT * (2 if place.precision == "fp32" else 1)
    return recipe.epochs * train_images * (3 * flops / flops_per_s + moved / bytes_per_s)


def rates(place: device.Place) -> tuple[float, float]:
    """(matrix product FLOP/s, copy bytes/s): from RATES, else measured now, in well under a second."""
    known = known_rates(torch.cuda.get_device_name(place.device))
    if known is not None and place.precision != "fp32":
        return known
    a = torch.randn(4096, 4096, device=place.device).to(place.dtype)
    copied = torch.empty(1 << 28, dtype=torch.uint8, device=place.device).random_()
    return 2 * 4096**3 / _seconds(lambda: a @ a), 2 * copied.numel() / _seconds(lambda: copied.clone())


def known_rates(name: str) -> tuple[float, float] | None:
    """The measured rates of the card that torch calls ``name``, or None."""
    return RATES.get(CARDS.get(name, ""))


def _seconds(call: Callable[[], object], calls: int = 10) -> float:
    """Mean seconds per call on the GPU, after one warm-up call."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    call()
    start.record()
    for _ in range(calls):
        call()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) * 1e-3 / calls


def choose_kernels(
    options: RunOptions, execution: Execution | None = None, kept: Mapping[str, Any] | None = None
) -> None:
    """Resolve the kernel tiers: as --kernels says; if that is auto, $IMNET_KERNELS; if that is auto too, as the run
    began (``kept``).

    Without ``execution`` this only checks what was asked for. Raises UsageError for a word that is not a tier, and
    DeviceError for a tier that is missing here.
    """
    kind = device.kind_of(options)
    spec, source = options.kernels, "--kernels"
    if spec == "auto":
        spec, source = os.environ.get(tier.ENV, "auto"), tier.ENV
    if spec == "auto" and kept:
        # If a kernel family is newer than the run, the run began with torch's own code in its place.
        began = {family: kept.get(family, {}).get("tier", "reference") for family in tier.FAMILIES}
        there = {f: t for f, t in began.items() if t in tiers_of(f) and tier.missing(t, kind) is None}
        spec, source = ",".join(f"{f}={t}" for f, t in there.items()), "the run's start"
    try:
        tier.set(spec or "auto", source=source, captured=execution is not None and execution.step_kernels)
        for family in tier.FAMILIES:
            tier.choose(family, kind)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except RuntimeError as error:
        raise DeviceError(str(error)) from error
