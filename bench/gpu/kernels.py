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
from imnet_kernels.family import Call, Case, Family, families
from torch import Tensor

from .. import roof
from ..timing import EVENT_ROUNDS, Timing, launched, num_rotated, replayed, windows
from .plan import UNTIMED, Row, Setting, UnavailableError
from .processes import one_line

BF16, FP32 = torch.bfloat16, torch.float32
CROP = {"pad_px": 4, "hflip": "random", "cutout_px": 16}
# Parameters of wrn28_10 as shapes: the convolutions of its three groups, projections and head (norms: 0.05 % of them).
WRN28_10 = (
    *((160, 160, 3, 3),) * 7, (160, 16, 3, 3), (320, 160, 3, 3), *((320, 320, 3, 3),) * 7, (640, 320, 3, 3),
    *((640, 640, 3, 3),) * 7, (160, 16, 1, 1), (320, 160, 1, 1), (640, 320, 1, 1), (10, 640)
)  # fmt: skip
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "ema_decay": 0.999}
COST_S = {"reference": 3.0, "cuda": 1.0, "triton": 2.0, "host": 1.0, "compiled": 10.0}
"""Seconds a row on an H100, 2026-11-26; augment's first reference took 8. Compiling is a guess."""


@dataclass(frozen=True)
class Job:
    """One shape of a family; ``backward``: the backward alone is timed."""

    name: str
    family: str
    case: Case
    dtype: torch.dtype = BF16
    backward: bool = False


def _augment(label: str, shape: tuple[int, int, int], batch: int) -> Job:
    options = {"shape": (max(batch, 512), *shape), "batch": batch, **CROP}
    return Job(f"augment {label} {batch}", "augment", Case(name=label, options=options))


def _spectral(s: int, r: int, shape: tuple[int, int, int, int]) -> Job:
    options = {"shape": shape, "r": r, "channels_last": True, "normalise": "band"}
    return Job(f"spectral sub{s}", "spectral", Case(name=f"sub{s}", options=options))


def _shake(name: str, shape: tuple[int, int, int, int], **more: Any) -> Job:
    options = {"shape": shape, "channels_last": True}
    return Job(f"shake {name}", "shake_shake", Case(name=name, options=options), **more)


def jobs(dry: bool) -> list[Job]:
    """The shapes, or small ones of the same kinds."""
    n, images = (2, 2) if dry else (256, 64)
    big = 4 if dry else 8192
    px = (16, 24) if dry else (64, 336)
    crops = [("64px", (px[0], px[0], 3)), ("28px", (28, 28, 1))]
    wide = [(16, 8, 3, 3)] if dry else list(WRN28_10)
    stages = [(n, 8, 4, 4), (n, 8, 2, 2)] if dry else [(n, 96, 28, 28), (n, 384, 7, 7)]
    side = 24 if dry else 224
    return [
        *(_augment(label, shape, batch) for label, shape in crops[: 1 if dry else None] for batch in (n, big)),
        _spectral(4, 2, (images, 3, side, side)),
        _spectral(16, 4, (images, 3, side, side)),
        _spectral(36, 6, (images, 3, px[1], px[1])),
        _shake("stage1", stages[0]),
        _shake("stage1 backward", stages[0], backward=True),
        _shake("stage3", stages[1]),
        Job("sgd_ema wrn28_10", "sgd_ema", Case(name="wrn28_10", options={"shapes": tuple(wide), **SGD}), FP32),
    ]


def kernel_rows(setting: Setting) -> Iterator[Row]:
    """Ceilings first; then every shape in every tier; what torch compiles last, because compiling takes seconds."""
    for name in ("copy", "matmul 8192 bf16"):
        yield Row("kernels", name, "torch", 1.0, functools.partial(_ceiling, name, setting))
    by_name = {f.name: f for f in families()}
    ours = by_name["augment"].tiers("cpu") if setting.dry else ["cuda", "triton"]
    for job in jobs(setting.dry):
        for variant in ("reference", *ours):
            yield _row(job, by_name[job.family], variant, setting)
        for form in ("foreach", "fused") if job.family == "sgd_ema" else ():
            work = functools.partial(_optimiser, job, form, setting)
            yield Row("kernels", job.name, f"torch {form} + EMA", 2.0, work)
    for job in _compiled_jobs(setting.dry):
        yield _row(job, by_name[job.family], "compiled", setting)


def _row(job: Job, family: Family, variant: str, setting: Setting) -> Row:
    needs, timed = frozenset({"_C"} if variant == "cuda" else ()), UNTIMED if setting.dry else Row.timed
    work = functools.partial(_measure, job, family, variant, setting)
    return Row("kernels", job.name, variant, COST_S[variant], work, timed=timed, needs=needs)


def _compiled_jobs(dry: bool) -> list[Job]:
    """Not sgd_ema, whose peers are torch's own forms: it takes lists of tensors in place. In a dry run one a family."""
    found = [job for job in jobs(dry) if job.family != "sgd_ema"]
    return list({job.family: job for job in reversed(found)}.values()) if dry else found


def _ceiling(name: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    """What every share refers to."""
    if setting.dry:
        return {"gb_per_s" if name == "copy" else "tflop_per_s": None}
    if name == "copy":
        return {"gb_per_s": round(roof.copy_bytes_per_s("cuda") / 1e9, 1)}
    return {"tflop_per_s": round(roof.matmul_flops_per_s("cuda", BF16) / 1e12, 1)}


def num_bytes(job: Job, family: Family) -> int:
    """The floor: what must be read and written."""
    if not job.backward:
        return family.bytes_moved(job.case, job.dtype)
    return 3 * torch.Size(job.case.options["shape"]).numel() * job.dtype.itemsize


def _measure(job: Job, family: Family, variant: str, setting: Setting, limit_s: float) -> dict[str, Any]:
    torch._dynamo.reset()
    count = 1 if setting.dry else num_rotated(num_bytes(job, family))
    error = gate(job, family, variant, setting)
    with tier.using("reference" if variant == "compiled" else variant), torch.no_grad():
        calls = rotated(job, family, variant, count, setting)
        return {"gate_error": error, **measured(calls, num_bytes(job, family), setting)}


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


def rotated(job: Job, family: Family, variant: str, count: int, setting: Setting) -> list[Callable[[], Any]]:
    """``count`` calls on inputs of their own; compiled ones share one compilation."""
    runs = [make(job, family, setting.device)[0] for _ in range(count)]
    if variant != "compiled":
        return runs
    shared = torch.compile(lambda run: run(), backend="aot_eager" if setting.dry else "inductor")
    calls = [lambda run=run: shared(run) for run in runs]
    calls[0]()
    return calls


def make(job: Job, family: Family, device: str) -> tuple[Callable[[], Any], Call]:
    """(a call with inputs of its own, what it was made of)."""
    call = family.make(job.case, job.dtype, device)
    if not job.backward:
        return call.run, call
    from imnet_kernels.shake_shake import op, reference

    grad, generator = call.leaves[0].detach(), torch.Generator().manual_seed(9)
    beta = torch.rand(grad.shape[0], generator=generator).to(device)
    if tier.choose("shake_shake", device) == "reference":
        return lambda: reference.combine_backward(grad, beta), call
    return lambda: op.shake_backward_op(grad, beta), call


def gate(job: Job, family: Family, variant: str, setting: Setting) -> float:
    """The variant's error against the reference on the same inputs; raises above the family's tolerance."""
    found: list[list[Tensor]] = []
    for name in ("reference", variant):
        with tier.using("reference" if name == "compiled" else name), torch.no_grad():
            run, call = make(job, family, setting.device)
            if name == "compiled":
                run = torch.compile(run, backend="aot_eager" if setting.dry else "inductor")
            result = run()
        found.append(list(call.in_place) if result is None else list(result) if isinstance(result, tuple) else [result])
    error = max(_error(g, w) for g, w in zip(found[1], found[0], strict=True))
    # Compiled arithmetic may fuse a multiply and an add, and Triton's interpreter cuts where hardware rounds.
    allowed = family.tolerance[job.dtype] + (2.0**-7 if variant == "compiled" or setting.dry else 0.0)
    if not error <= allowed:
        raise ArithmeticError(f"gate: error {error:.2e}, allowed {allowed:.2e}; nothing was timed")
    return error


def _error(got: Tensor, want: Tensor) -> float:
    """rms(got - want) / rms(want), where the tensors lie: they may be large."""
    got, want = got.detach().float(), want.detach().float()
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-30))


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
