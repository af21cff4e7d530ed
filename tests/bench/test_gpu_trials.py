"""The trials of `python -m bench.gpu`: each changes only the setting that it names, and restores it afterwards."""

from __future__ import annotations

import pytest
import torch
from imnet_kernels.batch_norm import _triton as batch_norm
from imnet_kernels.sgd_ema import _triton as sgd_ema
from imnet_kernels.tritonlib import compiled

from bench.gpu import files, steps, trials
from bench.gpu.__main__ import in_order
from bench.gpu.plan import Setting
from imnet import step
from imnet.models import shake_shake


def test_trials_put_back_what_they_set():
    import torch._inductor.config as inductor

    def settings():
        limit = torch.backends.cudnn.benchmark_limit
        tuned = inductor.coordinate_descent_tuning, inductor.max_autotune_pointwise
        return limit, tuned, shake_shake.in_flight, step.HalfWeights

    found = [settings()]
    for trial in trials.TRIALS:
        with trial.setting():
            found.append(settings())
        assert settings() == found[0]
    assert len(set(found)) == 5
    assert {limit for limit, *_ in found} == {found[0][0], 0}


def test_a_kernel_that_is_launched_early_waits_before_it_reads():
    """Otherwise it would read data that the kernel before it has not written yet."""
    build = sgd_ema.builds()[0]
    with trials.launched_early():
        kernel = compiled(build, 90)[0]
    assert kernel.metadata.launch_pdl
    body = kernel.asm["ptx"].partition(".entry")[2].partition("{")[2]
    before, waits, after = body.partition(trials.WAIT)
    assert waits
    assert "ld." not in before
    assert "ld.global" in after
    assert "griddepcontrol" not in compiled(build, 90)[0].asm["ptx"]


def test_loads_ahead_are_copies_that_a_program_does_not_wait_for():
    """Of a map's tiles; a join only reads before it sums, not after."""
    builds = {build.name: build for build in batch_norm.builds()}
    passes, join = builds["normalise_kernel *bf16"], builds["join_statistics_kernel *bf16"]
    with trials.loads_ahead():
        ahead = compiled(passes, 90)[0].asm["ptx"]
        joins = compiled(join, 90)[0].asm["ptx"]
    before = compiled(passes, 90)[0].asm["ptx"], compiled(join, 90)[0].asm["ptx"]
    assert "cp.async.cg.shared.global" in ahead
    assert "cp.async" not in before[0]
    assert "ld.global" not in joins[joins.index("st.global") :]
    assert "ld.global" in before[1][before[1].index("st.global") :]


def test_each_sitting_begins_with_what_its_trials_are_compared_with(tmp_path):
    """Although bench/results has figures of it, of earlier sittings."""
    rows = list(trials.trial_rows(Setting(dry=False, scratch=tmp_path)))
    ordered = [row.variant for row in in_order(rows, files.ResultFile(tmp_path, False, {"device": "a card"}))]
    assert ordered[:3] == ["as it is"] * 3
    assert any(files.has_result(row, files.known()) for row in rows)


def test_a_trial_is_a_process_of_its_own(tmp_path):
    net = steps.DRY_NETS[0]
    found = trials.apart("every algorithm of cuDNN", net.label, Setting(dry=True, scratch=tmp_path), 100.0)
    assert found["batch"] == net.batch


@pytest.mark.slow
def test_a_trial_that_fails_is_told_by_its_last_line(tmp_path):
    with pytest.raises(RuntimeError, match="StopIteration"):
        trials.apart("no such trial", steps.DRY_NETS[0].label, Setting(dry=True, scratch=tmp_path), 100.0)
