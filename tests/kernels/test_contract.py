"""The one contract: family x case x dtype x tier agree with the reference in values, gradients and layout.

On a CPU the tiers are host and, under TRITON_INTERPRET=1 in a child process (see test_triton.py), triton.
"""

from __future__ import annotations

import pytest
import torch
from imnet_kernels import tier
from imnet_kernels.family import Case, Family, error_ratio, families, outputs

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _rows() -> list:
    return list(_each())


def _each():
    for family in families():
        for case in family.cases:
            for dtype in family.tolerance:
                name = f"{family.name}-{case.name}-{str(dtype).removeprefix('torch.')}"
                yield pytest.param(family, case, dtype, id=name)


@pytest.fixture
def poison(monkeypatch):
    """torch.empty hands out NaN, or 77 for integers: an element that is not written shows."""
    plain, plain_like = torch.empty, torch.empty_like

    def fill(tensor):
        return tensor.fill_(float("nan") if tensor.is_floating_point() else 77)

    monkeypatch.setattr(torch, "empty", lambda *a, **k: fill(plain(*a, **k)))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(plain_like(*a, **k)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("family", "case", "dtype"), _rows())
def test_tiers_agree_with_the_reference(family: Family, case: Case, dtype, device, poison):
    with tier.using("reference"):
        want = outputs(family.make(case, dtype, device))
    names = family.tiers(device)
    if not names:
        pytest.skip(f"only the reference is installed for {device}")
    for name in names:
        with tier.using(name):
            got = outputs(family.make(case, dtype, device))
        assert len(got) == len(want)
        for index, (g, w) in enumerate(zip(got, want, strict=True)):
            where = f"{name}, output {index}"
            assert (g.shape, g.dtype, g.stride()) == (w.shape, w.dtype, w.stride()), where
            # A sum over a batch (gradients of scale and shift) gathers more rounding than one element.
            allowed = family.tolerance[dtype] * (4 if index > 3 else 1)
            assert error_ratio(g, w) <= allowed, where


@pytest.mark.parametrize(("family", "case", "dtype"), [row for row in _rows() if "float32" in str(row.id)])
def test_same_call_same_bits_on_any_number_of_threads(family: Family, case: Case, dtype):
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(outputs(family.make(case, dtype, "cpu")))
    finally:
        torch.set_num_threads(before)
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)


def test_every_auto_tier_on_this_cpu_is_what_the_report_says():
    rows = tier.report("cpu")
    assert set(rows) == set(tier.FAMILIES)
    for name, reason in rows.values():
        assert name in tier.TIERS
        assert reason
