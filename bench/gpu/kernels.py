"""Kernels: checks of every family x case x dtype x tier against its reference, then times of the ``gpu`` cases.

Family.check decides whether results agree; in ``checks`` the reference runs on the CPU, not on the checked device. The
registration of ops is checked by the tests marked gpu. Timing is that of bench/kernels.py.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Call, Case, Family, exact, families, results_of
from imnet_kernels.implementations import tiers_of
from torch import Tensor

from .. import machine, peers
from ..clock import Timing, windows
from ..kernels import Job, column, device_figures
from .plan import UNTIMED, Figures, Row, Setting, UnavailableError

NUMBERS_S = {"host": 0.2, "cuda": 0.2, "triton": 1.5}
"""Seconds per check on an H100, 2026-11-26: Triton compiles its kernel first (spectral up to 4)."""
COMPILED_S = 5.0
COST_S = {"reference": 3.0, "cuda": 1.0, "triton": 2.0, "host": 1.0, "compiled": 10.0}
"""Seconds per timed row on an H100, 2026-11-26; augment's first reference took 8. That of "compiled" is a guess."""
DRY_FAMILIES = ("shake_shake", "sgd_ema")


def gpu_tiers(family: Family, dry: bool) -> list[str]:
    """A family's tiers for a GPU, also if the CUDA library is still being built. In a dry run, the last of its tiers
    that runs on the CPU, which is interpreted Triton."""
    return family.tiers("cpu")[-1:] if dry else [name for name in tiers_of(family.name) if name in ("triton", "cuda")]


def needs(tier_name: str) -> frozenset[str]:
    return frozenset({"_C"} if tier_name == "cuda" else ())


def check_rows(setting: Setting) -> Iterator[Row]:
    """Rows that check the numbers of every case, also in a CUDA graph; then one case per family under torch.compile."""
    pairs = [(family, name) for family in families() for name in gpu_tiers(family, setting.dry)]
    for family, name in pairs:
        for case, dtype in _cases(family, setting.dry):
            label = f"{family.name} {case.name} {str(dtype).removeprefix('torch.')}"
            work = functools.partial(numbers, family, case, dtype, name, setting)
            yield Row("checks", label, name, NUMBERS_S[name], work, UNTIMED, needs(name))
    for family, name in pairs[-1:] if setting.dry else pairs:
        case = next(c for c in family.cases if not c.real)
        work = functools.partial(compiled, family, case, name, setting)
        yield Row("checks", f"{family.name} {case.name} compiled", name, COMPILED_S, work, UNTIMED, needs(name))


def _cases(family: Family, dry: bool) -> Iterator[tuple[Case, torch.dtype]]:
    odd = [c for c in family.contract if not c.real]
    for case in odd[:1] if dry else family.contract:
        for dtype in list(family.tolerance)[: 1 if dry else None]:
            yield case, dtype


def numbers(family: Family, case: Case, dtype: torch.dtype, name: str, setting: Setting, limit_s: float) -> Figures:
    """The errors of one tier on one case, and whether a replayed CUDA graph gives the same bits as the eager call."""
    errors = family.check(case, dtype, name, setting.device, reference_on="cpu")
    found: Figures = {"error_forward": errors.forward}
    if errors.gradient is not None:
        found["error_gradient"] = errors.gradient
    launches = setting.device == "cuda" and family.bytes_moved(case, dtype) > 0
    with tier.using(name):
        replayed = replay_equal(family, case, dtype) if launches else None
    return found | {"error_fp64": errors.fp64, "graph_replay_equal": replayed}


@exact()
def replay_equal(family: Family, case: Case, dtype: torch.dtype) -> bool:
    """Capture the call in a CUDA graph and replay it over results filled with NaN; raises AssertionError unless the
    bits equal those of the eager call."""
    eager = [t.clone() for t in _on_device(family.make(case, dtype, "cuda"))]
    call = family.make(case, dtype, "cuda")
    before = [t.clone() for t in call.in_place]
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        _on_device(call)  # tables and constants are made before the capture
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        kept = _on_device(call)
    for tensor in kept:
        tensor.fill_(float("nan"))
    for tensor, old in zip(call.in_place, before, strict=True):
        tensor.copy_(old)
    graph.replay()
    torch.cuda.synchronize()
    same = all(torch.equal(k, e) for k, e in zip(kept, eager, strict=True))
    assert same, "a replayed CUDA graph gives other bits than the call"
    return same


def _on_device(call: Call) -> list[Tensor]:
    """As ``family.outputs``, without transfers from the host and without copies of tensors changed in place."""
    results = results_of(call)
    if not call.leaves:
        return [*results, *call.in_place]
    grads = [torch.ones_like(result) for result in results]
    return [*results, *torch.autograd.grad(results, call.leaves, grads), *call.in_place]


def compiled(family: Family, case: Case, name: str, setting: Setting, limit_s: float) -> Figures:
    """The errors of the call under torch.compile as one graph, forward and backward, against the eager reference."""
    errors = family.check(case, torch.float32, name, setting.device, compiled=setting.backend)
    return {"error_forward": max(errors.forward, errors.gradient or 0.0), "backend": setting.backend, "fullgraph": True}


def jobs(dry: bool) -> list[Job]:
    """The ``gpu`` cases of every family, and their backward passes if the family has them, in bf16 if the family
    supports it. In a dry run one small case of each of DRY_FAMILIES."""
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
    """Rows in order: the ceilings, all jobs in our tiers, then their peers; the compiled reference is last, because
    compiling takes seconds."""
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
        # Not sgd_ema, which changes lists of tensors in place and has torch's optimisers as peers. A dry run compiles
        # no backward pass.
        if job.family.name != "sgd_ema" and not (setting.dry and job.backward):
            yield _row(job, "compiled", setting)


def _name(job: Job) -> str:
    return f"{job.family.name} {job.name}"


def _row(job: Job, variant: str, setting: Setting) -> Row:
    timed = UNTIMED if setting.dry else Row.timed
    work = functools.partial(_measure, job, variant, setting)
    return Row("kernels", _name(job), variant, COST_S[variant], work, timed, needs(variant))


def _ceiling(name: str, setting: Setting, limit_s: float) -> Figures:
    """A ceiling: the copy bandwidth that shares refer to, or the rate of a matrix product."""
    if name == "copy":
        return {"gb_per_s": round(machine.copy_bytes_per_s(setting.device) / 1e9, 1)}
    return {"tflop_per_s": round(machine.matmul_flops_per_s(setting.device, torch.bfloat16) / 1e12, 1)}


def _measure(job: Job, variant: str, setting: Setting, limit_s: float) -> Figures:
    return column(job, variant, setting.device, setting.backend)


def _optimiser(job: Job, form: str, setting: Setting, limit_s: float) -> Figures:
    """Figures of a peer of sgd_ema, with the least traffic of 28 bytes per parameter."""
    num_bytes = 28 * sum(torch.Size(shape).numel() for shape in job.case.options["shapes"])
    return device_figures([peers.optimiser(job.case, form, setting.device)], num_bytes, setting.device)


def dali_rows(setting: Setting) -> Iterator[Row]:
    for px, channels in ((64, 3), (28, 1)):
        yield Row("dali", f"augment {px}px 256", "DALI", 8.0, functools.partial(_dali, px, channels, setting))


def _dali(px: int, channels: int, setting: Setting, limit_s: float) -> Figures:
    """Microseconds for a call over one batch of 256 images in DALI, with the copy to the device."""
    if not peers.has("nvidia.dali"):
        raise UnavailableError("nvidia-dali is not installed")
    images = torch.randint(0, 256, (peers.BATCH, px, px, channels), dtype=torch.uint8).numpy()
    run = peers.dali(images, setting.device, threads=4)
    taken = windows({"dali": run}, rounds=setting.few(7), inner=setting.few(50))["dali"]
    times = Timing.of([w.wall_s for w in taken])
    figures: dict[str, Any] = {"us": round(times.median_s * 1e6, 2), "us_iqr": round(times.iqr_s * 1e6, 2)}
    return figures | {"n": times.n, "dtype": "float16"}
