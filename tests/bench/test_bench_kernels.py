"""The kernel benchmarks: no speed without the gate, one compiled case a family, a spread beside every figure."""

import dataclasses

import pytest
import torch
from imnet_kernels import tier
from imnet_kernels.family import families

from bench import bench_kernels

FAMILIES = {family.name: family for family in families()}
needs_host = pytest.mark.skipif(tier.missing("host", "cpu") is not None, reason="the host kernels are not built here")


def small(name):
    return next(case for case in FAMILIES[name].cases if not case.real)


@needs_host
def test_a_tier_that_is_off_gets_no_speed():
    strict = dataclasses.replace(FAMILIES["shake_shake"], tolerance={torch.float32: -1.0})
    with pytest.raises(AssertionError, match="allowed"):
        bench_kernels.measure(strict, small("shake_shake"), torch.float32, 3, False)


def test_every_family_is_timed_and_compiled_once():
    rows = list(bench_kernels.real_cases())
    assert {family.name for family, _, _ in rows} == set(tier.FAMILIES)
    first = [family.name for family, case, dtype in rows if bench_kernels.is_first(family, case, dtype)]
    assert sorted(first) == sorted(tier.FAMILIES)


def test_a_column_keeps_its_own_tier():
    name = "shake_shake"
    before = tier.snapshot()
    bench_kernels.column(FAMILIES[name], small(name), torch.float32, "reference")()
    chosen = tier.choose(name, "cpu")
    tier.restore(before)
    assert chosen == "reference"
    assert tier.snapshot() == before


@needs_host
def test_a_row_has_the_spread_of_every_figure(capsys):
    before = tier.snapshot()
    row = bench_kernels.measure(FAMILIES["sgd_ema"], small("sgd_ema"), torch.float32, 3, False)
    tier.restore(before)
    assert {"reference", "host", "torch fused + EMA"} <= row["times"].keys()
    for name, times in row["times"].items():
        assert times["n"] == 3
        assert 0 < times["best_s"] <= times["median_s"]
        assert row["cpu_us"][name] == pytest.approx(1e6 * times["best_s"], abs=0.1)
    assert "| sgd_ema |" in bench_kernels.table({"rows": [row]})
