"""Kernels at the recipes' shapes: eager | compiled | triton | cuda, a gate first, then microseconds and GB/s.

What is timed and how is bench/kernels.py's; here are the rows and what they cost.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from imnet_kernels.family import families

from .. import machine, peers
from ..clock import Timing, windows
from ..kernels import Job, device_figures, on_gpu
from .checks import gpu_tiers
from .plan import UNTIMED, Row, Setting, UnavailableError

COST_S = {"reference": 3.0, "cuda": 1.0, "triton": 2.0, "host": 1.0, "compiled": 10.0}
"""Seconds a row on an H100, 2026-11-26; augment's first reference took 8. Compiling is a guess."""
DRY_FAMILIES = ("shake_shake", "sgd_ema")
UNMEASURED: dict[str, Any] = dict.fromkeys(("us", "us_launched", "gb_per_s", "share_of_copy"))


def jobs(dry: bool) -> list[Job]:
    """Every case of a GPU's own size, and its backward where a family has one, in bf16 where the family has it; in a
    dry run one odd case of a family with a backward, and of the one with peers."""
    found = []
    for family in families():
        if dry and family.name not in DRY_FAMILIES:
            continue
        dtype = torch.bfloat16 if torch.bfloat16 in family.tolerance else torch.float32
        cases = [case for case in family.contract if not case.real][:1] if dry else [c for c in family.cases if c.gpu]
        found += [Job(family, case, dtype) for case in cases]
        found += [Job(family, case, dtype, backward=True) for case in cases if family.make_backward]
    return found


def kernel_rows(setting: Setting) -> Iterator[Row]:
    """Ceilings first; then every shape in our own tiers; then what they are compared with: what torch compiles last,
    because compiling takes seconds."""
    for name in ("copy", "matmul 8192 bf16"):
        yield Row("kernels", name, "torch", 1.0, functools.partial(_ceiling, name, setting))
    for job in jobs(setting.dry):
        for variant in gpu_tiers(job.family, setting.dry):
            yield _row(job, variant, setting)
    for job in jobs(setting.dry):
        yield _row(job, "reference", setting)
        for form in ("foreach", "fused") if job.family.name == "sgd_ema" else ():
            work = functools.partial(_optimiser, job, form, setting)
            yield Row("kernels", _name(job), f"torch {form} + EMA", 2.0, work)
    for job in jobs(setting.dry):
        # Not sgd_ema, whose peers are torch's own forms: it takes lists of tensors in place. In a dry run no backward.
        if job.family.name != "sgd_ema" and not (setting.dry and job.backward):
            yield _row(job, "compiled", setting)


def _name(job: Job) -> str:
    return f"{job.family.name} {job.name}"


def _row(job: Job, variant: str, setting: Setting) -> Row:
    needs, timed = frozenset({"_C"} if variant == "cuda" else ()), UNTIMED if setting.dry else Row.timed
    work = functools.partial(_measure, job, variant, setting)
    return Row("kernels", _name(job), variant, COST_S[variant], work, timed=timed, needs=needs)


def _ceiling(name: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """What every share refers to."""
    if setting.dry:
        return {"gb_per_s" if name == "copy" else "tflop_per_s": None}
    if name == "copy":
        return {"gb_per_s": round(machine.copy_bytes_per_s("cuda") / 1e9, 1)}
    return {"tflop_per_s": round(machine.matmul_flops_per_s("cuda", torch.bfloat16) / 1e12, 1)}


def _measure(job: Job, variant: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    if not setting.dry:
        return on_gpu(job, variant)
    tier, backend = ("reference", "aot_eager") if variant == "compiled" else (variant, None)
    error = job.gate(tier, "cpu", backend)
    job.call(tier, "cpu")()
    return {"gate_error": error, **UNMEASURED, "floor_bytes": job.num_bytes}


def _optimiser(job: Job, form: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """A peer of sgd_ema; it reads and writes 28 bytes a parameter."""
    run = peers.optimiser(job.case, form, setting.device)
    if not setting.dry:
        return device_figures([run], 28 * sum(torch.Size(shape).numel() for shape in job.case.options["shapes"]))
    run()
    return dict(UNMEASURED)


def dali_rows(setting: Setting) -> Iterator[Row]:
    for px, channels in ((64, 3), (28, 1)):
        yield Row("dali", f"augment {px}px 256", "DALI", 8.0, functools.partial(_dali, px, channels, setting))


def _dali(px: int, channels: int, setting: Setting, limit_s: float) -> dict[str, Any]:
    """Microseconds a batch of 256, all of it in DALI, its copy to the device too."""
    if not peers.has("nvidia.dali"):
        raise UnavailableError("nvidia-dali is not installed")
    images = torch.randint(0, 256, (peers.BATCH, px, px, channels), dtype=torch.uint8).numpy()
    run = peers.dali(images, setting.device, threads=4)
    if setting.dry:
        run()
        return {"us": None}
    times = Timing.of([w.wall_s for w in windows({"dali": run}, rounds=7, inner=50)["dali"]])
    figures = {"us": round(times.median_s * 1e6, 2), "us_iqr": round(times.iqr_s * 1e6, 2), "n": times.n}
    return figures | {"dtype": "float16"}
