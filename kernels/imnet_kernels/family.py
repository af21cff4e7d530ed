"""Family and Case describe a kernel family to tests and benchmarks; Family.check is the test that every tier passes."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import tier
from .implementations import FAMILIES, tiers_of

INTERPRETER_ERROR = {torch.bfloat16: 2.0**-7}
"""Added tolerance under Triton's interpreter, which truncates fp32 to bf16 where the hardware rounds to nearest: one
unit in the last of 8 bits."""
COMPILED_ERROR = {torch.float32: 1e-7, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-7}
"""Added tolerance under torch.compile, which may fuse a multiply and an add, so that a value may round differently."""
SINGLE_MARGIN = 4.0
"""The factor on the tolerance of an output with one element, whose error is not averaged with those of others."""
FP64_MARGIN = 2.0
"""The factor on the tolerance of a comparison with fp64: the fp32 reference is rounded, too."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a family: the case's name and the options that make() builds the inputs from.

    ``real`` marks shapes that recipes use, which are benchmarked on a CPU; ``gpu`` marks sizes that are timed on a GPU
    only.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    real: bool = False
    gpu: bool = False

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], *, real: bool = False, gpu: bool = False, **options: Any) -> Case:
        """Return a case of a family whose inputs are described by one ``shape``."""
        return cls(name=name, options={"shape": shape, **options}, real=real, gpu=gpu)


@dataclass(frozen=True, kw_only=True)
class Call:
    """A family's public function bound to the inputs of one case; ``leaves`` get a gradient, ``in_place`` change."""

    run: Callable[[], Any]
    leaves: tuple[Tensor, ...] = ()
    in_place: tuple[Tensor, ...] = ()


@contextmanager
def exact() -> Iterator[None]:
    """Run cuDNN's convolutions in full fp32 and with bitwise deterministic algorithms; torch defaults to neither."""
    cudnn = torch.backends.cudnn
    before = cudnn.deterministic, cudnn.allow_tf32, cudnn.benchmark
    cudnn.deterministic, cudnn.allow_tf32, cudnn.benchmark = True, False, False
    try:
        yield
    finally:
        cudnn.deterministic, cudnn.allow_tf32, cudnn.benchmark = before


class Errors(NamedTuple):
    """The largest rms(error) / rms(reference) of the results, of the gradients and against fp64; None if not compared.

    What was changed in place counts with the gradients if there are any, else with the results.
    """

    forward: float
    gradient: float | None
    fp64: float | None


@dataclass(frozen=True, kw_only=True)
class Family:
    """A kernel family: its name, its cases, and per dtype the tolerance of rms(error) / rms(reference)."""

    name: str
    cases: tuple[Case, ...]
    tolerance: dict[torch.dtype, float]
    make: Callable[[Case, torch.dtype, str], Call]
    bytes_moved: Callable[[Case, torch.dtype], int]
    make_backward: Callable[[Case, torch.dtype, str, str], Call] | None = None
    """(case, dtype, device, tier) -> the backward pass alone, to be timed."""
    backward_bytes: Callable[[Case, torch.dtype], int] | None = None
    """The bytes that the backward pass must move at least."""

    @property
    def contract(self) -> tuple[Case, ...]:
        """The cases that every tier is tested with: all but the ``gpu`` sizes, which take too long on a CPU."""
        return tuple(case for case in self.cases if not case.gpu)

    def tiers(self, device: str) -> list[str]:
        """The tiers, except the reference, that can run on this device type and are installed."""
        return [name for name in tiers_of(self.name)[1:] if tier.missing(name, device) is None]

    @exact()
    def check(
        self,
        case: Case,
        dtype: torch.dtype,
        name: str,
        device: str = "cpu",
        *,
        reference_on: str | None = None,
        compiled: str | None = None,
    ) -> Errors:
        """Compare the tier ``name`` with the reference on one case; raises AssertionError if an output differs.

        Results, gradients and tensors changed in place must have the reference's shape, dtype and layout, and its
        values within the tolerance. fp32 is also compared with the reference in fp64 on the same input values. The
        reference runs on the same device, or on ``reference_on``. If ``compiled`` names a backend of torch.compile,
        the tier is called through it, as one graph.
        """
        where = f"{self.name} {case.name} {str(dtype).removeprefix('torch.')} {name} on {device}"
        with tier.using("reference"):
            want = outputs(self.make(case, dtype, reference_on or device))
        with tier.using(name):
            call = self.make(case, dtype, device)
            got = outputs(call if compiled is None else _compiled(call, compiled))
        for index, (g, w) in enumerate(zip(got, want, strict=True)):
            mine, theirs = (g.shape, g.dtype, _layout(g)), (w.shape, w.dtype, _layout(w))
            assert mine == theirs, f"{where}: output {index} is {mine}; the reference's is {theirs}"
        slack = INTERPRETER_ERROR.get(dtype, 0.0) if (name, device) == ("triton", "cpu") else 0.0
        slack += 0.0 if compiled is None else COMPILED_ERROR[dtype]
        errors = _within(where, got, want, self.tolerance[dtype] + slack)
        num_results = len(errors) - len(call.leaves) - len(call.in_place) if call.leaves else len(errors)
        return Errors(
            max(errors[:num_results], default=0.0),
            max(errors[num_results:]) if call.leaves else None,
            self._fp64_error(where, case, dtype, got, reference_on or device) if compiled is None else None,
        )

    def _fp64_error(self, where: str, case: Case, dtype: torch.dtype, got: list[Tensor], device: str) -> float | None:
        """The largest error against fp64. None for other dtypes than fp32, and for a family whose tolerance is 0: its
        tiers equal the reference bit for bit."""
        if dtype != torch.float32 or self.tolerance[dtype] == 0.0:
            return None
        with tier.using("reference"):
            exact = outputs(self.make(case, torch.float64, device))
        return max(_within(f"{where}, fp64", got, exact, FP64_MARGIN * self.tolerance[dtype]), default=0.0)


def _layout(tensor: Tensor) -> tuple[int, ...]:
    """The strides, with 0 for dimensions of size 1, whose strides have no effect and torch sets inconsistently."""
    return tuple(stride if size > 1 else 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _compiled(call: Call, backend: str) -> Call:
    torch._dynamo.reset()
    return dataclasses.replace(call, run=torch.compile(call.run, fullgraph=True, backend=backend))


def _within(where: str, got: Sequence[Tensor], want: Sequence[Tensor], allowed: float) -> list[float]:
    errors = [error_ratio(g, w) for g, w in zip(got, want, strict=True)]
    for index, (error, tensor) in enumerate(zip(errors, want, strict=True)):
        limit = allowed * (SINGLE_MARGIN if tensor.numel() == 1 else 1.0)
        assert error <= limit, f"{where}: output {index}: error {error:.2e}, allowed {limit:.2e}"
    return errors


def families() -> tuple[Family, ...]:
    """Every family, from <family>/cases.py. Imported lazily: only tests and benchmarks need the cases."""
    return tuple(importlib.import_module(f".{name}.cases", __package__).FAMILY for name in FAMILIES)


def error_ratio(got: Tensor, want: Tensor) -> float:
    """rms(got - want) / rms(want), computed in fp64 on want's device; NaN if either has a NaN."""
    got, want = got.detach().to(want.device).double(), want.detach().double()
    if got.numel() == 0:
        return 0.0
    reference = want.square().mean().sqrt()
    return float((got - want).square().mean().sqrt() / reference.clamp_min(1e-30))


def results_of(call: Call) -> tuple[Tensor, ...]:
    """Run a call and return its results as a tuple: of no tensor, one or several."""
    found = call.run()
    return found if isinstance(found, tuple) else () if found is None else (found,)


def outputs(call: Call) -> list[Tensor]:
    """Run a call and return its results, the leaves' gradients (if any) for fixed random output gradients, and copies
    of the tensors changed in place."""
    results = results_of(call)
    changed = [t.clone() for t in call.in_place]
    if not call.leaves:
        return [*results, *changed]
    generator = torch.Generator().manual_seed(8)
    grads = [torch.randn(r.shape, generator=generator).to(r) for r in results]
    last = torch.channels_last
    grads = [g.contiguous(memory_format=last) if r.stride(1) == 1 else g for g, r in zip(grads, results, strict=True)]
    return [*results, *torch.autograd.grad(results, call.leaves, grads), *changed]
