"""The trials of `python -m bench.gpu`: each changes only the setting that it names, and restores it afterwards."""

from __future__ import annotations

import pytest
import torch
from imnet_kernels.sgd_ema import _triton as sgd_ema
from imnet_kernels.tritonlib import compiled

from bench.gpu import steps, trials
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


def test_a_trial_is_a_process_of_its_own(tmp_path):
    setting = Setting(dry=True, scratch=tmp_path)
    label = steps.DRY_NETS[0].label
    found = trials.apart("every algorithm of cuDNN", label, setting, 100.0)
    assert found["batch"] == steps.DRY_NETS[0].batch
    with pytest.raises(RuntimeError, match="StopIteration"):
        trials.apart("no such trial", label, setting, 100.0)
