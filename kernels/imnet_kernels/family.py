"""Family and Case: the table that the contract test and the benchmarks both read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from . import tier
from .implementations import IMPLEMENTATIONS


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call: the shape's name and what make() needs; real marks the recipes' own shapes, which are benchmarked."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    real: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A family's public function with inputs drawn for one case."""

    run: Callable[[], Any]
    leaves: tuple[Tensor, ...] = ()
    in_place: tuple[Tensor, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Family:
    """A name, its cases and dtypes with tolerances, as rms(error) / rms(reference)."""

    name: str
    cases: tuple[Case, ...]
    tolerance: dict[torch.dtype, float]
    make: Callable[[Case, torch.dtype, str], Call]
    bytes_moved: Callable[[Case, torch.dtype], int]

    def tiers(self, device: str) -> list[str]:
        """The tiers that can run on the device type here, without the reference."""
        ours = dict.fromkeys(row.tier for row in IMPLEMENTATIONS if row.family == self.name)
        return [name for name in tier.TIERS if name in ours and tier.missing(name, device) is None]


def families() -> tuple[Family, ...]:
    """Every family, from <family>/cases.py; imported here because cases are for tests and benchmarks alone."""
    from .augment import cases as augment
    from .sgd_ema import cases as sgd_ema
    from .shake_shake import cases as shake_shake
    from .spectral import cases as spectral

    return augment.FAMILY, spectral.FAMILY, shake_shake.FAMILY, sgd_ema.FAMILY


def error_ratio(got: Tensor, want: Tensor) -> float:
    """rms(got - want) / rms(want) in fp64; NaN where got has one that want has not."""
    got, want = got.detach().double().cpu(), want.detach().double().cpu()
    if got.numel() == 0:
        return 0.0
    reference = want.square().mean().sqrt()
    return float((got - want).square().mean().sqrt() / reference.clamp_min(1e-30))


def outputs(call: Call) -> list[Tensor]:
    """The result, or copies of what was changed in place, then the leaves' gradients for a fixed gradient."""
    result = call.run()
    if call.in_place or result is None:
        return [t.clone() for t in call.in_place]
    if not call.leaves:
        return [result]
    generator = torch.Generator().manual_seed(8)
    grad = torch.randn(result.shape, generator=generator).to(result)
    grad = grad.contiguous(memory_format=torch.channels_last) if result.stride(1) == 1 else grad
    return [result, *torch.autograd.grad(result, call.leaves, grad)]
