"""The kernel benchmarks: a wrong tier gets no speed, each family has one compiled case, every figure has a spread."""

import dataclasses

import pytest
import torch
from imnet_kernels import implementations, tier
from imnet_kernels.family import families

from bench import kernels, tables
from bench.kernels import Job

FAMILIES = {family.name: family for family in families()}
needs_host = pytest.mark.skipif(tier.missing("host", "cpu") is not None, reason="the host kernels are not built here")


def small(name, **changes):
    family = dataclasses.replace(FAMILIES[name], **changes)
    return Job(family, next(case for case in family.cases if not case.real), torch.float32)


@needs_host
def test_a_tier_that_is_off_gets_no_speed():
    with pytest.raises(AssertionError, match="allowed"):
        kernels.on_cpu(small("shake_shake", tolerance={torch.float32: -1.0}), 3)


def test_every_family_is_timed_and_compiled_once():
    jobs = list(kernels.real_jobs())
    on_cpus = {row.family for row in implementations.IMPLEMENTATIONS if row.device == "cpu"}
    assert {job.family.name for job in jobs} == on_cpus
    assert sorted(job.family.name for job in jobs if job.first) == sorted(on_cpus)
    assert {job.family.name for job in jobs if job.backward} == {"shake_shake"}
    assert [job.family.name for job in kernels.real_jobs("augment")] == ["augment"] * len(
        [job for job in jobs if job.family.name == "augment"]
    )


def test_a_column_keeps_its_own_tier():
    before = tier.snapshot()
    small("shake_shake").call("reference", "cpu")()
    chosen = tier.choose("shake_shake", "cpu")
    tier.restore(before)
    assert chosen == "reference"
    assert tier.snapshot() == before


@needs_host
def test_a_row_has_the_spread_of_every_figure():
    before = tier.snapshot()
    row = kernels.on_cpu(small("sgd_ema"), 3)
    tier.restore(before)
    assert {"reference", "host", "torch fused + EMA"} <= row["times"].keys()
    for name, times in row["times"].items():
        assert times["n"] == 3
        assert 0 < times["best_s"] <= times["median_s"]
        assert name == "host" or row["ratio_to_host"][name] > 0
    assert f"{1e6 * row['times']['host']['best_s']:,.0f} (median" in tables.shown("kernels", row)


@needs_host
def test_the_backward_alone_is_the_gradient_of_the_definition():
    job = dataclasses.replace(small("shake_shake"), backward=True)
    with tier.using("shake_shake=host"):
        (first, second), (one, two) = (job.run(name, "cpu")() for name in ("reference", "host"))
    torch.testing.assert_close(first, one)
    torch.testing.assert_close(second, two)
