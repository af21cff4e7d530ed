"""Kernels at the recipes' shapes: eager | compiled | triton | cuda, a gate first, then microseconds and GB/s.

``us`` is the device's own time (calls in one CUDA graph), ``us_launched`` that of calls launched one by one from
Python, which is what counts for sizes bound by their launch; both are medians. Shares are of a large copy's bandwidth.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Call, Case, Family, families
from torch import Tensor

from . import timing
from .rows import Setting, Task, one_line

BF16, FP32 = torch.bfloat16, torch.float32
CROP = {"pad_px": 4, "hflip": "random", "cutout_px": 16}
# Parameters of wrn28_10 as shapes: the convolutions of its three groups, projections and head (norms: 0.05 % of them).
WRN28_10 = (
    *((160, 160, 3, 3),) * 7, (160, 16, 3, 3), (320, 160, 3, 3), *((320, 320, 3, 3),) * 7, (640, 320, 3, 3),
    *((640, 640, 3, 3),) * 7, (160, 16, 1, 1), (320, 160, 1, 1), (640, 320, 1, 1), (10, 640)
)  # fmt: skip
SGD = {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 5e-4, "ema_decay": 0.999}
# Targets of performance.md section 2: share of copy bandwidth, or microseconds.
TARGETS = {
    "augment 64px 256": {"us": 8.0}, "augment 64px 8192": {"share": 0.85}, "spectral sub4": {"share": 0.80},
    "spectral sub16": {"share": 0.80}, "spectral sub36": {"share": 0.55}, "shake stage1": {"share": 0.90},
    "shake stage1 backward": {"share": 0.90}
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One shape: ``call`` makes fresh inputs; ``pieces`` is the backward alone, where that is what is timed."""

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
    bn = {"bn": True} if name.endswith("bn") else {}
    return Job(
        f"shake {name}", "shake_shake", Case(name=name, options={"shape": shape, "channels_last": True, **bn}), **more
    )


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
        *(_augment(label, shape, batch) for label, shape in crops for batch in (n, big)),
        _spectral(4, 2, (images, 3, side, side)),
        _spectral(16, 4, (images, 3, side, side)),
        _spectral(36, 6, (images, 3, px[1], px[1])),
        _shake("stage1", stages[0]),
        _shake("stage1 backward", stages[0], backward=True),
        _shake("stage1 bn", stages[0]),
        _shake("stage3", stages[1]),
        Job("sgd_ema wrn28_10", "sgd_ema", Case(name="wrn28_10", options={"shapes": tuple(wide), **SGD}), FP32),
    ]


def tasks(setting: Setting) -> Iterator[Task]:
    """Ceilings first; then every shape in every tier; what torch compiles last, because compiling takes seconds."""
    yield "copy", "torch", lambda: _ceiling(setting, "copy")
    yield "matmul 8192 bf16", "torch", lambda: _ceiling(setting, "matmul")
    by_name = {f.name: f for f in families()}
    variants = ["reference", *(t for t in ("cuda", "triton", "host") if t in by_name["augment"].tiers(setting.device))]
    for job in jobs(setting.dry):
        for variant in variants:
            yield job.name, variant, _work(job, by_name[job.family], variant, setting)
        if job.family == "sgd_ema":
            from .optimisers import tasks as optimiser_tasks

            yield from optimiser_tasks(job, setting)
    for job in _compiled_jobs(setting.dry):
        yield job.name, "compiled", _work(job, by_name[job.family], "compiled", setting)


def _compiled_jobs(dry: bool) -> list[Job]:
    """Not sgd_ema, whose peers are torch's own forms: it takes lists of tensors in place. In a dry run one a family."""
    found = [job for job in jobs(dry) if job.family != "sgd_ema"]
    return list({job.family: job for job in reversed(found)}.values()) if dry else found


@lru_cache(maxsize=1)
def copy_rate() -> float:
    return timing.copy_bytes_per_s()


def _ceiling(setting: Setting, which: str) -> dict[str, Any]:
    if setting.dry:
        return {"note": "not measured"}
    if which == "copy":
        return {"gb_per_s": copy_rate() / 1e9}
    return {"tflop_per_s": timing.matmul_flops_per_s() / 1e12}


def num_bytes(job: Job, family: Family) -> int:
    """The floor: what must be read and written."""
    if not job.backward:
        return family.bytes_moved(job.case, job.dtype)
    return 3 * torch.Size(job.case.options["shape"]).numel() * job.dtype.itemsize


def _work(job: Job, family: Family, variant: str, setting: Setting) -> Callable[[], dict[str, Any]]:
    def work() -> dict[str, Any]:
        torch._dynamo.reset()
        count = 1 if setting.dry else timing.num_rotated(num_bytes(job, family))
        error = gate(job, family, variant, setting)
        with tier.using("reference" if variant == "compiled" else variant), torch.no_grad():
            calls = rotated(job, family, variant, count, setting)
            figures = measured(calls, num_bytes(job, family), setting)
        target = {f"target_{k}": v for k, v in TARGETS.get(job.name, {}).items()}
        return {"gate_error": error, **figures, **target}

    return work


def rotated(job: Job, family: Family, variant: str, count: int, setting: Setting) -> list[Callable[[], Any]]:
    """``count`` calls on inputs of their own; compiled ones share one compilation."""
    runs = [make(job, family, setting.device) for _ in range(count)]
    if variant != "compiled":
        return runs
    shared = torch.compile(lambda run: run(), backend="aot_eager" if setting.dry else "inductor")
    calls = [lambda run=run: shared(run) for run in runs]
    calls[0]()
    return calls


def make(job: Job, family: Family, device: str) -> Callable[[], Any]:
    """A call with inputs of its own."""
    call = family.make(job.case, job.dtype, device)
    if not job.backward:
        return call.run
    from imnet_kernels.shake_shake import op, reference

    grad, generator = call.leaves[0].detach(), torch.Generator().manual_seed(9)
    beta = torch.rand(grad.shape[0], generator=generator).to(device)
    if tier.choose("shake_shake", device) == "reference":
        return lambda: reference.combine_backward(grad, beta)
    return lambda: op.shake_backward_op(grad, beta)


def gate(job: Job, family: Family, variant: str, setting: Setting) -> float:
    """The variant's error against the reference on the same inputs; raises above the family's tolerance."""
    found: list[list[Tensor]] = []
    for name in ("reference", variant):
        with tier.using("reference" if name == "compiled" else name), torch.no_grad():
            call = family.make(job.case, job.dtype, setting.device)
            if job.backward:
                result = make(job, family, setting.device)()
            else:
                result = rotated_one(call, name, setting)
        found.append(list(call.in_place) if result is None else list(result) if isinstance(result, tuple) else [result])
    error = max(_error(g, w) for g, w in zip(found[1], found[0], strict=True))
    # Compiled arithmetic may fuse a multiply and an add, and Triton's interpreter cuts where hardware rounds.
    slack = 2.0**-7 if variant == "compiled" or setting.dry else 0.0
    allowed = family.tolerance[job.dtype] + slack
    if not error <= allowed:
        raise ArithmeticError(f"gate: error {error:.2e}, allowed {allowed:.2e}; nothing was timed")
    return error


def _error(got: Tensor, want: Tensor) -> float:
    """rms(got - want) / rms(want), where the tensors lie: they may be large."""
    got, want = got.detach().float(), want.detach().float()
    return float((got - want).square().mean().sqrt() / want.square().mean().sqrt().clamp_min(1e-30))


def rotated_one(call: Call, variant: str, setting: Setting) -> Any:
    if variant != "compiled":
        return call.run()
    return torch.compile(call.run, backend="aot_eager" if setting.dry else "inductor")()


def measured(calls: list[Callable[[], Any]], moved: int, setting: Setting) -> dict[str, Any]:
    """Figures of the calls; in a dry run they are made once and not timed."""
    if setting.dry:
        for call in calls:
            call()
        return {"us": None, "us_launched": None, "gb_per_s": None, "share_of_copy": None, "floor_bytes": moved}
    launched, launched_iqr = timing.launched_us(calls)
    us, iqr, problem = launched, launched_iqr, {}
    try:
        us, iqr = timing.replayed_us(calls)
    except RuntimeError as error:
        problem = {"not_captured": one_line(error)}
    rate = moved / (us * 1e-6)
    return {
        **problem,
        "us": round(us, 2),
        "us_iqr": round(iqr, 2),
        "us_launched": round(launched, 2),
        "us_launched_iqr": round(launched_iqr, 2),
        "gb_per_s": round(rate / 1e9, 1),
        "share_of_copy": round(rate / copy_rate(), 3),
        "floor_bytes": moved,
        "rotated": len(calls),
        "n": timing.ROUNDS,
    }
