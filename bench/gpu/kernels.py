"""Kernels at the recipes' shapes: eager | compiled | triton | cuda, a gate first, then microseconds and GB/s.

``us`` is the device's own time (calls in one CUDA graph), ``us_launched`` that of calls launched one by one from
Python, which is what counts for sizes bound by their launch; both are medians. Shares are of a large copy's bandwidth.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family, families

from .. import roof
from ..timing import EVENT_ROUNDS, Timing, launched, num_rotated, replayed, windows
from .plan import UNTIMED, Row, Setting, UnavailableError
from .processes import one_line

COST_S = {"reference": 3.0, "cuda": 1.0, "triton": 2.0, "host": 1.0, "compiled": 10.0}
"""Seconds a row on an H100, 2026-11-26; augment's first reference took 8. Compiling is a guess."""


@dataclass(frozen=True)
class Job:
    """One of a family's cases, in bf16 where the family has it; ``backward``: the backward alone is timed."""

    family: Family
    case: Case
    backward: bool = False

    @property
    def name(self) -> str:
        return f"{self.family.name} {self.case.name}" + (" backward" if self.backward else "")

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16 if torch.bfloat16 in self.family.tolerance else torch.float32

    @property
    def num_bytes(self) -> int:
        """The floor: what must be read and written."""
        if not self.backward:
            return self.family.bytes_moved(self.case, self.dtype)
        return 3 * torch.Size(self.case.options["shape"]).numel() * self.dtype.itemsize


def jobs(dry: bool) -> list[Job]:
    """Every case of a GPU's own size, and Shake-Shake's backward once; in a dry run one odd case a family."""
    found = []
    for family in families():
        cases = [case for case in family.contract if not case.real][:1] if dry else [c for c in family.cases if c.gpu]
        found += [Job(family, case) for case in cases]
        found += [Job(family, case, backward=True) for case in cases[:1] if family.name == "shake_shake"]
    return found


def kernel_rows(setting: Setting) -> Iterator[Row]:
    """Ceilings first; then every shape in every tier; what torch compiles last, because compiling takes seconds."""
    for name in ("copy", "matmul 8192 bf16"):
        yield Row("kernels", name, "torch", 1.0, functools.partial(_ceiling, name, setting))
    for job in jobs(setting.dry):
        for variant in ("reference", *(job.family.tiers("cpu") if setting.dry else ("cuda", "triton"))):
            yield _row(job, variant, setting)
        for form in ("foreach", "fused") if job.family.name == "sgd_ema" else ():
            work = functools.partial(_optimiser, job, form, setting)
            yield Row("kernels", job.name, f"torch {form} + EMA", 2.0, work)
    for job in _compiled_jobs(setting.dry):
        yield _row(job, "compiled", setting)


def _row(job: Job, variant: str, setting: Setting) -> Row:
    needs, timed = frozenset({"_C"} if variant == "cuda" else ()), UNTIMED if setting.dry else Row.timed
    work = functools.partial(_measure, job, variant, setting)
    return Row("kernels", job.name, variant, COST_S[variant], work, timed=timed, needs=needs)


def _compiled_jobs(dry: bool) -> list[Job]:
    """Not sgd_ema, whose peers are torch's own forms: it takes lists of tensors in place. In a dry run no backward."""
    return [job for job in jobs(dry) if job.family.name != "sgd_ema" and not (dry and job.backward)]


def _ceiling(name: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """What every share refers to."""
    if setting.dry:
        return {"gb_per_s" if name == "copy" else "tflop_per_s": None}
    if name == "copy":
        return {"gb_per_s": round(roof.copy_bytes_per_s("cuda") / 1e9, 1)}
    return {"tflop_per_s": round(roof.matmul_flops_per_s("cuda", torch.bfloat16) / 1e12, 1)}


def _measure(job: Job, variant: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    name, backend = variant, None
    if variant == "compiled":
        name, backend = "reference", "aot_eager" if setting.dry else "inductor"
    count = 1 if setting.dry else num_rotated(job.num_bytes)
    errors = job.family.check(job.case, job.dtype, name, setting.device, compiled=backend)
    torch._dynamo.reset()
    with tier.using(name), torch.no_grad():
        calls = [_call(job, setting.device) for _ in range(count)]
        if backend is not None:  # one compilation for all
            shared = torch.compile(lambda run: run(), backend=backend)
            calls = [lambda run=run: shared(run) for run in calls]
            calls[0]()
        return {"gate_error": errors.forward, **measured(calls, job.num_bytes, setting)}


def _optimiser(job: Job, form: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """A peer of sgd_ema: torch's SGD in the ``form`` of one of its flags, and the average as one more foreach pass."""
    params = [torch.randn(shape, device=setting.device) for shape in job.case.options["shapes"]]
    for p in params:
        p.grad = torch.randn_like(p)
    averages = [p.clone() for p in params]
    optimiser = torch.optim.SGD(params, 0.1, 0.9, weight_decay=5e-4, nesterov=True, **{form: True})

    def run() -> None:
        with torch.no_grad():
            optimiser.step()
            torch._foreach_lerp_(averages, params, 1e-3)

    return measured([run], 28 * sum(p.numel() for p in params), setting)


def _call(job: Job, device: str) -> Callable[[], Any]:
    """A call with inputs of its own."""
    call = job.family.make(job.case, job.dtype, device)
    if not job.backward:
        return call.run
    from imnet_kernels.shake_shake import reference, shake_backward_op

    grad, generator = call.leaves[0].detach(), torch.Generator().manual_seed(9)
    beta = torch.rand(grad.shape[0], generator=generator).to(device)
    if tier.choose("shake_shake", device) == "reference":
        return lambda: reference.combine_backward(grad, beta)
    return lambda: shake_backward_op(grad, beta)


def measured(calls: list[Callable[[], Any]], moved: int, setting: Setting) -> dict[str, Any]:
    """Figures of the calls; in a dry run they are made once and not timed."""
    if setting.dry:
        for call in calls:
            call()
        return {"us": None, "us_launched": None, "gb_per_s": None, "share_of_copy": None, "floor_bytes": moved}
    one_by_one = launched(calls)
    times, problem = one_by_one, {}
    try:
        times = replayed(calls)
    except RuntimeError as error:
        problem = {"not_captured": one_line(error)}
    rate = moved / times.median_s
    return {
        **problem,
        "us": round(times.median_s * 1e6, 2),
        "us_iqr": round(times.iqr_s * 1e6, 2),
        "us_launched": round(one_by_one.median_s * 1e6, 2),
        "us_launched_iqr": round(one_by_one.iqr_s * 1e6, 2),
        "gb_per_s": round(rate / 1e9, 1),
        "share_of_copy": round(rate / roof.copy_bytes_per_s("cuda"), 3),
        "floor_bytes": moved,
        "rotated": len(calls),
        "n": EVENT_ROUNDS,
    }


def dali_rows(setting: Setting) -> Iterator[Row]:
    for px, channels in ((64, 3), (28, 1)):
        yield Row("dali", f"augment {px}px 256", "DALI", 8.0, functools.partial(_dali, px, channels, setting))


def _dali(px: int, channels: int, setting: Setting, limit_s: float) -> dict[str, Any]:
    """Microseconds a batch of 256, all of it in DALI."""
    if importlib.util.find_spec("nvidia") is None or importlib.util.find_spec("nvidia.dali") is None:
        raise UnavailableError("nvidia-dali is not installed")
    from ..kernels_dali import random_pipeline

    shape = (4 if setting.dry else 256, px, px, channels)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=setting.device)
    pipeline = random_pipeline(images, 4, setting.device == "cuda")
    pipeline.build()
    found: dict[str, Any] = {"shape": list(pipeline.run()[0].as_tensor().shape()), "us": None}
    if setting.dry:
        return found
    times = Timing.of([w.wall_s for w in windows({"dali": pipeline.run}, rounds=7, inner=50)["dali"]])
    figures = {"us": round(times.median_s * 1e6, 2), "us_iqr": round(times.iqr_s * 1e6, 2), "n": times.n}
    return found | figures | {"dtype": "float16"}
