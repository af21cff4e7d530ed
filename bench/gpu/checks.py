"""Every kernel family x case x dtype x tier against its definition: forward, gradients, graph capture, compilation.

What agrees is decided by Family.check; here the reference runs on the CPU, not on the device that is checked. How ops
are registered is for the tests marked gpu to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Call, Case, Family, families
from imnet_kernels.implementations import tiers_of
from torch import Tensor

from .plan import UNTIMED, Row, Setting

NUMBERS_S = {"host": 0.2, "cuda": 0.2, "triton": 1.5}
"""Seconds a case on an H100, 2026-11-26: Triton compiles its kernel first (spectral up to 4)."""
COMPILED_S = 5.0


def gpu_tiers(family: Family, dry: bool) -> list[str]:
    """A family's tiers for a GPU, whose library may still be compiling; in a dry run the nearest that runs here, which
    is Triton interpreted."""
    return family.tiers("cpu")[-1:] if dry else [name for name in tiers_of(family.name) if name in ("triton", "cuda")]


def check_rows(setting: Setting) -> Iterator[Row]:
    """Numbers of every case first, captured too, then the compilation of one case a family."""
    pairs = [(family, name) for family in families() for name in gpu_tiers(family, setting.dry)]
    for family, name in pairs:
        for case, dtype in _cases(family, setting.dry):
            label = f"{family.name} {case.name} {str(dtype).removeprefix('torch.')}"
            yield _row(label, name, NUMBERS_S[name], setting, numbers, family, case, dtype, name, setting.device)
    for family, name in pairs[-1:] if setting.dry else pairs:
        case = next(c for c in family.cases if not c.real)
        yield _row(
            f"{family.name} {case.name} compiled", name, COMPILED_S, setting, compiled, family, case, name, setting
        )


def _row(label: str, tier_name: str, cost_s: float, setting: Setting, work: Any, *arguments: Any) -> Row:
    needs = frozenset({"_C"} if tier_name == "cuda" else ())
    return Row("checks", label, tier_name, cost_s, lambda limit_s: work(*arguments), timed=UNTIMED, needs=needs)


def _cases(family: Family, dry: bool) -> Iterator[tuple[Case, torch.dtype]]:
    odd = [c for c in family.contract if not c.real]
    for case in odd[:1] if dry else family.contract:
        for dtype in list(family.tolerance)[: 1 if dry else None]:
            yield case, dtype


def numbers(family: Family, case: Case, dtype: torch.dtype, name: str, device: str) -> dict[str, Any]:
    """The errors of one tier on one case, and whether a replayed CUDA graph gives the call's bits."""
    errors = family.check(case, dtype, name, device, reference_on="cpu")
    found: dict[str, Any] = {"error_forward": errors.forward}
    if errors.gradient is not None:
        found["error_gradient"] = errors.gradient
    launches = device == "cuda" and family.bytes_moved(case, dtype) > 0
    with tier.using(name):
        replayed = replay_equal(family, case, dtype) if launches else None
    return found | {"error_fp64": errors.fp64, "graph_replay_equal": replayed}


def replay_equal(family: Family, case: Case, dtype: torch.dtype) -> bool:
    """Capture the call in a CUDA graph, replay it over poisoned results; AssertionError unless the bits are eager's."""
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
    """As ``outputs``, without anything from the host; what is changed in place is not copied."""
    result = call.run()
    if result is None or not call.leaves:
        return [*([] if result is None else [result]), *call.in_place]
    return [result, *torch.autograd.grad(result, call.leaves, torch.ones_like(result)), *call.in_place]


def compiled(family: Family, case: Case, name: str, setting: Setting) -> dict[str, Any]:
    """The call under torch.compile in one piece, forward and backward, against the reference as it is."""
    backend = "aot_eager" if setting.dry else "inductor"
    errors = family.check(case, torch.float32, name, setting.device, compiled=backend)
    return {"error_forward": max(errors.forward, errors.gradient or 0.0), "backend": backend, "fullgraph": True}
