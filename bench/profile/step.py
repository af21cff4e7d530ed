"""`imnet-profile step`: profiles real steps of a recipe: time by operator, and how near each is to the roof."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from imnet import device
from imnet.errors import DeviceError, UsageError
from imnet.files import check_output, write_json

from .. import machine
from ..case import find_recipe, run_options
from ..clock import wait
from ..form import aligned, clipped, duration, percent, plural, scaled
from .cli import captured, commands, usable_folder
from .ops import OpCall, count
from .trace import STEP, Roofs, Row, argument_costs, kernel_costs, kernels, phases, rows
from .work import Work

NAME_CHARACTERS = 64


def run(values: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Profile, write ``step.json`` and ``step-trace.json``, print the tables.

    ``arguments`` are the command line's, for the nsys and ncu lines of this run.
    """
    sizes = {"batch_images": values.batch_size, "image_px": values.image_px}
    recipe = find_recipe(values.recipe, values.model, **sizes, default="quickstart")
    options = run_options(values)
    place = device.resolve(options)
    if values.nvtx and place.device.type != "cuda":
        raise UsageError("got --nvtx, which does nothing on a CPU: NVTX ranges need CUDA", hint="leave --nvtx out")
    folder = usable_folder(values.out)
    check_output(folder / "step.json", b'"seconds_without_profiler"')
    check_output(folder / "step-trace.json", STEP.encode())
    if options.compile and place.device.type == "cpu":
        _name_compiled_kernels()
    try:
        with device.threads(options):
            work = Work(recipe, options, values.nvtx)
            warm_s = work.warm_up()
            if values.nvtx:
                _ranges_only(work, values.steps)
                return
            bare_s = work.seconds_per_step(values.steps)
            folder.mkdir(parents=True, exist_ok=True)
            found = _about(work) | {"warm_up_s": warm_s, "seconds_without_profiler": bare_s}
            found |= _profiled(work, values.steps, values.by_shape, folder / "step-trace.json")
            found["peak_bytes"] = _peak_bytes(work)
    except torch.OutOfMemoryError as error:
        images = recipe.data.batch_images
        hint = f"try --batch-size {max(1, images // 2)}"
        raise DeviceError(f"out of memory with {images} images at once", hint=hint) from error
    write_json(folder / "step.json", found)
    print(text(found, values.top, folder))
    print(commands(arguments, folder, "step", ["--nvtx"]))


def _name_compiled_kernels() -> None:
    """Let Inductor's C++ kernels appear in the profiler by name, which is off by default."""
    import torch._inductor.config as inductor

    inductor.cpp.enable_kernel_profile = True


def _ranges_only(work: Work, steps: int) -> None:
    """Run the steps between cudaProfilerStart and Stop for nsys and ncu, without torch's profiler, which would conflict
    with them."""
    with captured(work.place.device):
        seconds = work.seconds_per_step(steps)
    print(f"{steps} steps with NVTX ranges data, forward, backward, update: {duration(seconds)} a step")


def _peak_bytes(work: Work) -> int:
    """The peak memory of a step without a profiler; on a CPU that of the whole process so far."""
    machine.forget_peak()
    work.once()
    return machine.peak_bytes(work.place.device)


def _profiled(work: Work, steps: int, by_shape: bool = False, trace: Path | None = None) -> dict[str, Any]:
    """The operators and, on a GPU, the kernels of ``steps`` steps.

    The kernels of a captured step are those of its replays; their bytes and FLOPs come from the same step uncaptured.
    """
    on_gpu = work.place.device.type == "cuda"
    # Compiled and captured code hides its operators, so they are counted in an eager step.
    with work.uncaptured(eager=True):
        calls = count(work.once)
    costs: dict[str, Row] = {}
    if work.step.graph is not None:
        with work.uncaptured():
            costs = _costs(_steps_profiled(work, steps), calls, steps)
    profiler = _steps_profiled(work, steps)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    events = profiler.events() or []
    found = rows(events, calls, steps=steps, on_gpu=on_gpu, by_shape=by_shape)
    run_kernels = kernels(events, costs or _costs(profiler, calls, steps)) if on_gpu else []
    total_s = sum(row.seconds for row in (run_kernels or found))
    dtypes = {c.dtype for c in calls if c.flops and c.dtype is not None}
    products = {d: machine.matmul_flops_per_s(work.place.device, d) for d in dtypes}
    roofs = Roofs(machine.copy_bytes_per_s(work.place.device), products)
    return {
        "steps": steps,
        "total_s": total_s,
        "phases_s": phases(events),
        "flops_per_step": sum(c.flops or 0 for c in calls),
        "copy_bytes_per_s": roofs.bytes_per_s,
        "matmul_flops_per_s": {str(d).removeprefix("torch."): v for d, v in products.items()},
        "rows": [row.as_dict(total_s, roofs) for row in found],
        "kernels": [row.as_dict(total_s, roofs) for row in run_kernels],
    }


def _steps_profiled(work: Work, steps: int) -> profile:
    """Run ``steps`` steps under torch's profiler and return it."""
    on_gpu = work.place.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    if not on_gpu:  # without this it prints an error that there is no GPU; on a GPU its messages may matter
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for i in range(steps):
            work.once(i)
        wait(work.place.device)
    return profiler


def _costs(profiler: profile, calls: Sequence[OpCall], steps: int) -> dict[str, Row]:
    """{kernel: bytes and FLOPs} of the profiled steps, as far as they follow from an operator or from arguments."""
    inner = profiler.profiler
    generated = argument_costs(inner.kineto_results.events()) if inner is not None and inner.kineto_results else {}
    return generated | kernel_costs(profiler.events() or [], calls, steps=steps)


def top_kernels(work: Work, steps: int, top: int) -> dict[str, Any]:
    """The device time of a step by kernel: the ``top`` kernels with bytes, FLOPs and share of the roof, per step. On a
    CPU these are operators instead of kernels."""
    warm_s, step_s = work.warm_up(), work.seconds_per_step(steps)
    found = _profiled(work, steps)
    lines = found["kernels"] or found["rows"]
    shown = [_short(row, steps) for row in lines[:top]]
    return {
        "warm_up_s": round(warm_s, 2),
        "step_ms": round(step_s * 1e3, 3),
        "device_ms": round(found["total_s"] / steps * 1e3, 3),
        "launches": sum(row["calls"] for row in lines) // steps,
        "flops": found["flops_per_step"],
        "top": shown,
        "share_of_others": round(max(0.0, 1 - sum(row["share"] for row in shown)), 4),
    }


def _short(row: dict[str, Any], steps: int) -> dict[str, Any]:
    """A kernel's figures for a table: per step and rounded."""
    per_step = {key: None if row[key] is None else row[key] // steps for key in ("bytes", "flops")}
    of_roof = None if row["of_roof"] is None else round(row["of_roof"], 3)
    figures = {"calls": round(row["calls"] / steps, 2), "us": round(row["seconds"] / steps * 1e6, 1)}
    return {
        "name": clipped(row["name"], 96),
        **figures,
        "share": round(row["share"], 4),
        **per_step,
        "of_roof": of_roof,
    }


def _about(work: Work) -> dict[str, Any]:
    recipe, place = work.recipe, work.place
    return {
        "recipe": recipe.name,
        "model": recipe.model,
        "batch_images": work.case.batch_images,
        "image_px": recipe.input_px,
        "device": torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "cpu",
        "precision": place.precision,
        "threads": torch.get_num_threads(),
        "compiled": work.step.compiled,
        "torch": torch.__version__,
    }


def text(found: dict[str, Any], top: int, folder: Path) -> str:
    """The text that the command prints from step.json."""
    steps = found["steps"]
    shown = ", ".join(
        f"{n.removeprefix('imnet:')} {duration(s / steps)}" for n, s in found["phases_s"].items() if n != STEP
    )
    lines = [*_head(found), f"phases: {shown}", "", _table(found["rows"][:top], steps), *_left_out(found["rows"], top)]
    if found["kernels"]:
        busy = found["total_s"] / found["phases_s"][STEP]
        lines += ["", f"kernels (the device was busy {percent(busy)} of the step)"]
        lines += [_table(found["kernels"][:top], steps, "kernel"), *_left_out(found["kernels"], top)]
    products = [f"{name} matrix product {scaled(v, 'FLOP/s')}" for name, v in found["matmul_flops_per_s"].items()]
    lines.append(", ".join([f"roofs: copy {scaled(found['copy_bytes_per_s'], 'B/s')}", *products]))
    if any((row["of_roof"] or 0) > 1 for row in found["rows"][:top]):
        lines.append(machine.OVER_COPY)
    if found["device"] == "cpu":
        lines.append("times are the wall's: whatever else this machine does stretches them")
    return "\n".join([*lines, f"written: {folder / 'step.json'}, {folder / 'step-trace.json'}"])


def _head(found: dict[str, Any]) -> list[str]:
    """The first lines: what was run, its speed, and its share of the matrix product's rate."""
    bare, images = found["seconds_without_profiler"], found["batch_images"]
    profiled = found["phases_s"][STEP] / found["steps"]
    flops_per_s = found["flops_per_step"] / bare
    roof = max(found["matmul_flops_per_s"].values(), default=None)
    process = " of the process" if found["device"] == "cpu" else ""
    peak = f"peak memory{process} {found['peak_bytes'] / 2**20:,.0f} MiB"
    where = f"{found['device']}, {plural(found['threads'], 'thread')}, torch {found['torch']}"
    how = found["precision"] + (", compiled" if found["compiled"] else "")
    share = f", {percent(flops_per_s / roof)} of the matrix product's {scaled(roof, 'FLOP/s')}" if roof else ""
    return [
        f"{found['recipe']} ({found['model']}), batch {images} of {found['image_px']} px, {how}, {where}",
        f"step {duration(bare)} ({images / bare:,.0f} images/s), {duration(profiled)} with the profiler; "
        f"warm-up {duration(found['warm_up_s'])}; {peak}",
        f"{scaled(float(found['flops_per_step']), 'FLOP')} a step, {scaled(flops_per_s, 'FLOP/s')}{share}",
    ]


def _table(found: Sequence[dict[str, Any]], steps: int, what: str = "operator") -> str:
    head = [what, "calls", "time", "share", "FLOP", "bytes", "bytes/s", "of roof"]
    return aligned(head, [_cells(row, steps) for row in found])


def _cells(row: dict[str, Any], steps: int) -> list[str]:
    """The cells of a table row; totals are divided by ``steps``."""
    shapes = " ".join("x".join(map(str, shape)) or "scalar" for shape in row["shapes"][:2])
    name = clipped(f"{row['name']} {shapes}".rstrip(), NAME_CHARACTERS)
    flops = None if row["flops"] is None else row["flops"] / steps
    moved = None if row["bytes"] is None else row["bytes"] / steps
    figures = [scaled(flops), scaled(moved, "B"), scaled(row["bytes_per_s"], "B/s"), percent(row["of_roof"])]
    return [name, f"{row['calls'] / steps:g}", duration(row["seconds"] / steps), percent(row["share"]), *figures]


def _left_out(found: Sequence[dict[str, Any]], top: int) -> list[str]:
    rest = found[top:]
    share = sum(row["share"] for row in rest)
    return [f"and {len(rest)} more: {percent(share)} of the time (all are in step.json)"] if rest else []
