"""The contract of test_contract.py for the Triton tier, interpreted on CPU tensors."""

from __future__ import annotations

import weakref

import pytest
import torch
import triton
import triton.language as tl
from imnet_kernels import tier
from imnet_kernels.family import families

# The interpreter computes in numpy and is slow, so the recipes' own shapes are left out.
ROWS = [
    pytest.param(
        family,
        case,
        dtype,
        id=f"{family.name}-{case.name}-{dtype}",
        # The half precisions differ from fp32 in their rounding and in how many values a load takes, which some cases
        # of a family show as well as all.
        marks=[pytest.mark.slow] if number % {torch.float32: 1, torch.bfloat16: 3}.get(dtype, 100) else [],
    )
    for family in families()
    for number, case in enumerate(case for case in family.contract if not case.real)
    for dtype in family.tolerance
]


@pytest.mark.parametrize(("family", "case", "dtype"), ROWS)
def test_triton_agrees_with_the_reference(family, case, dtype):
    assert tier.missing("triton", "cpu") is None
    family.check(case, dtype, "triton")


@pytest.mark.parametrize("family", families(), ids=lambda family: family.name)
def test_every_kernel_starts_on_the_device_of_its_tensors(family, monkeypatch):
    """Triton takes the current device: with tensors on cuda:1 a kernel would run on cuda:0, where it cannot read them,
    or where nothing orders it behind the work that makes them."""
    from triton.runtime import interpreter

    guards, starts, launch = [], [], interpreter.GridExecutor.__call__

    class Guard(torch.cuda.device_of):
        def __enter__(self):
            guards.append(self)
            return super().__enter__()

        def __exit__(self, *error):
            guards.pop()
            return super().__exit__(*error)

    monkeypatch.setattr(torch.cuda, "device_of", Guard)
    monkeypatch.setattr(
        interpreter.GridExecutor, "__call__", lambda *a, **k: starts.append(len(guards)) or launch(*a, **k)
    )
    family.check(next(case for case in family.contract if not case.real), torch.float32, "triton")
    assert starts
    assert all(starts)


def test_an_id_out_of_range_reads_nothing(monkeypatch):
    from imnet_kernels import augment as public
    from imnet_kernels.augment import _triton
    from imnet_kernels.augment.reference import Spec

    store = torch.ones(2, 4, 4, 3, dtype=torch.uint8)
    ones, ids = torch.ones(3), torch.tensor([1, 2, -1])
    out = _triton.augment(store, ids, ids, ones, ones, Spec(0, 0), torch.float32)
    assert out[0].isfinite().all()
    assert out[1:].isnan().all()
    with pytest.raises(ValueError, match="ids span"):
        public(store, ids, seed=0, epoch=0, mean=0.0, std=1.0)


@triton.jit
def _combined(x_ptr, y_ptr, NAME: tl.constexpr):  # noqa: N803
    x, y = tl.load(x_ptr + tl.arange(0, 2)), tl.load(y_ptr + tl.arange(0, 2))
    tl.store(x_ptr + tl.arange(0, 2), x + y if NAME == "add" else x - y if NAME == "sub" else x * y)


@pytest.mark.parametrize(("name", "other"), [("add", 2), ("sub", -2), ("mul", 3)])
def test_an_offset_that_overflows_is_caught(name, other):
    """An offset of int32 would overflow on a GPU without a word, and the kernel would read another place."""
    largest, other = 2**31 - 2, torch.tensor([1, other], dtype=torch.int32)
    _combined[(1,)](torch.tensor([9, largest // 3], dtype=torch.int32), other, name)
    with pytest.raises(Exception, match="overflow"):
        _combined[(1,)](torch.tensor([9, largest], dtype=torch.int32), other, name)


def test_the_table_of_addresses_stays_as_long_as_its_parameters(monkeypatch):
    """A CUDA graph reads its table in every replay, and a process may hold a graph for each network of an ensemble."""
    from imnet_kernels import sgd_ema_
    from imnet_kernels.sgd_ema import _triton

    kernel, tables = _triton.sgd_ema_kernel, []

    class Seen:
        def __getitem__(self, grid):
            return lambda *given, **named: tables.append(weakref.ref(given[0])) or kernel[grid](*given, **named)

    monkeypatch.setattr(_triton, "sgd_ema_kernel", Seen())
    networks = [[torch.zeros(3)] for _ in range(36)]
    grads, momenta = [torch.ones(3)], [torch.zeros(3)]
    with tier.using("sgd_ema=triton"):
        for number in range(72):
            sgd_ema_(networks[number % 36], grads, momenta, [], lr=0.1)
    assert all(one() is again() is not None for one, again in zip(tables[:36], tables[36:], strict=True))
    networks.clear()
    assert all(table() is None for table in tables)
