"""Every kernel family x case x dtype x tier against its definition: forward, gradients, graph capture, compilation.

The reference runs on the CPU in the same dtype; fp32 is also held to the reference in fp64, whose inputs are the same
numbers. How ops are registered is for the tests marked gpu to check.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from imnet_kernels import tier
from imnet_kernels.family import Call, Case, Family, error_ratio, families, outputs
from torch import Tensor

from .plan import UNTIMED, Row, Setting

NUM_SUMS_FROM = 4
"""Outputs from here on are sums over a batch, which gather more rounding: four times the tolerance."""
INTERPRETER_ERROR = {torch.bfloat16: 2.0**-7}
"""Triton's interpreter cuts fp32 to bf16 where the hardware rounds."""
FP64_MARGIN = 2.0
"""The fp32 reference is itself rounded: fp64 may be this many tolerances away."""
NUMBERS_S = {"host": 0.2, "cuda": 0.2, "triton": 1.5}
"""Seconds a case on an H100, 2026-11-26: Triton compiles its kernel first (spectral up to 4)."""
COMPILED_S = 5.0


def check_rows(setting: Setting) -> Iterator[Row]:
    """Numbers of every case first, captured too, then the compilation of one case a family."""
    pairs = [(family, name) for family in families() for name in tiers(family, setting)]
    for family, name in pairs:
        for case, dtype in _cases(family, setting.dry):
            label = f"{family.name} {case.name} {str(dtype).removeprefix('torch.')}"
            yield _row(label, name, NUMBERS_S[name], setting, numbers, family, case, dtype, name, setting.device)
    for family, name in pairs:
        case = next(c for c in family.cases if not c.real)
        yield _row(
            f"{family.name} {case.name} compiled", name, COMPILED_S, setting, compiled, family, case, name, setting
        )


def tiers(family: Family, setting: Setting) -> list[str]:
    """Those that can run; the CUDA library may still be compiling."""
    return family.tiers("cpu") if setting.dry else ["triton", "cuda"]


def _row(label: str, tier_name: str, cost_s: float, setting: Setting, work: Any, *arguments: Any) -> Row:
    needs = frozenset({"_C"} if tier_name == "cuda" else ())
    return Row("checks", label, tier_name, cost_s, lambda limit_s: work(*arguments), timed=UNTIMED, needs=needs)


def _cases(family: Family, dry: bool) -> Iterator[tuple[Case, torch.dtype]]:
    cases = [c for c in family.cases if not c.real]
    for case in cases[:1] if dry else family.cases:
        for dtype in list(family.tolerance)[: 2 if dry else None]:
            yield case, dtype


def numbers(family: Family, case: Case, dtype: torch.dtype, name: str, device: str) -> dict[str, Any]:
    """Errors of one tier on one case as rms(error) / rms(reference); raises AssertionError above the tolerance."""
    with tier.using("reference"):
        want = outputs(family.make(case, dtype, "cpu"))
    with tier.using(name):
        got = outputs(family.make(case, dtype, device))
        launches = device == "cuda" and any(t.numel() for t in got)
        replayed = replay_equal(family, case, dtype) if launches else None
    _assert_alike(got, want)
    slack = INTERPRETER_ERROR.get(dtype, 0.0) if (name, device) == ("triton", "cpu") else 0.0
    errors = [error_ratio(g, w) for g, w in zip(got, want, strict=True)]
    _assert_small(errors, family.tolerance[dtype], slack)
    found: dict[str, Any] = {"error_forward": errors[0] if errors else 0.0}
    if family.make(case, dtype, "cpu").leaves:
        found["error_gradient"] = max(errors[1:])
    return found | {"error_fp64": _fp64_error(family, case, dtype, got), "graph_replay_equal": replayed}


def _fp64_error(family: Family, case: Case, dtype: torch.dtype, got: list[Tensor]) -> float | None:
    """The largest error of fp32 results against the same numbers in fp64; None where the call has no fp64 form."""
    # augment is defined in fp32 and equal bit for bit.
    if dtype != torch.float32 or family.name == "augment":
        return None
    with tier.using("reference"):
        exact = outputs(family.make(case, torch.float64, "cpu"))
    away = [error_ratio(g, w) for g, w in zip(got, exact, strict=True)]
    _assert_small(away, FP64_MARGIN * family.tolerance[dtype], 0.0)
    return max(away, default=0.0)


def _assert_alike(got: list[Tensor], want: list[Tensor]) -> None:
    for index, (g, w) in enumerate(zip(got, want, strict=True)):
        mine, theirs = (g.shape, g.dtype, g.stride()), (w.shape, w.dtype, w.stride())
        assert mine == theirs, f"output {index} is {mine}; the reference's is {theirs}"


def _assert_small(errors: list[float], tolerance: float, slack: float) -> None:
    for index, error in enumerate(errors):
        allowed = tolerance * (4 if index >= NUM_SUMS_FROM else 1) + slack
        assert error <= allowed, f"output {index}: error {error:.2e}, allowed {allowed:.2e}"


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
    for tensor, old in zip(call.in_place, before, strict=True):
        tensor.copy_(old)
    if not call.in_place:
        for tensor in kept:
            tensor.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    same = all(torch.equal(k, e) for k, e in zip(kept, eager, strict=True))
    assert same, "a replayed CUDA graph gives other bits than the call"
    return same


def _on_device(call: Call) -> list[Tensor]:
    """As ``outputs``, without anything from the host; what is changed in place is not copied."""
    result = call.run()
    if call.in_place or result is None:
        return list(call.in_place)
    if not call.leaves:
        return [result]
    return [result, *torch.autograd.grad(result, call.leaves, torch.ones_like(result))]


def compiled(family: Family, case: Case, name: str, setting: Setting) -> dict[str, Any]:
    """The call under torch.compile in one piece, forward and backward, against itself as it is."""
    backend = "aot_eager" if setting.dry else "inductor"
    torch._dynamo.reset()
    with tier.using(name):
        want = outputs(family.make(case, torch.float32, setting.device))
        call = family.make(case, torch.float32, setting.device)
        run = torch.compile(call.run, fullgraph=True, backend=backend)
        got = outputs(Call(run=run, leaves=call.leaves, in_place=call.in_place))
    _assert_alike(got, want)
    errors = [error_ratio(g, w) for g, w in zip(got, want, strict=True)]
    _assert_small(errors, family.tolerance[torch.float32], 1e-7)
    return {"error_forward": max(errors), "backend": backend, "fullgraph": True}
