"""The scaling model against what was published for 2, 4 and 8 GPUs, and against the figures of the plan."""

from __future__ import annotations

import dataclasses
import json

import pytest

from bench import scaling_model as model
from bench.scaling_model import Cluster, Job, all_reduce_s, predict, strong, weak

# Published points: one GPU's rate and batch, GPUs, speed-up. hysts/pytorch_image_classification: WRN-28-10 on V100s,
# 754 img/s on one, 1,244 / 2,732 / 4,902 on 2 / 4 / 8, 128 images a step (assumed); MXNet, PyTorch AMP: ResNet-50, 256
# images a GPU (weak; assumed), efficiencies 97 % and 84 to 87 % at 8. Figures: the reference documents.
V100 = Cluster(name="8 x V100", intra_bytes_per_s=130e9, inter_bytes_per_s=10e9)
A100 = Cluster(name="8 x A100", intra_bytes_per_s=230e9, inter_bytes_per_s=20e9)
WRN28_10 = Job(name="wrn28_10", num_params=36_536_884, images_per_s=754, gradient_bytes=4)
RESNET50 = Job(name="resnet50", num_params=25_557_032, images_per_s=2_470, gradient_bytes=4)
PUBLISHED = {"hysts 2": 1.65, "hysts 4": 3.62, "hysts 8": 6.50, "MXNet 8": 8 * 0.97, "PyTorch AMP 8": 8 * 0.855}
NUM_FREE = 1
"""``host``: the slowdown of a step as soon as ranks share a host. Everything else is a data sheet's."""


def speedups(host):
    v100, a100 = (dataclasses.replace(c, host=host) for c in (V100, A100))
    found = {f"hysts {p.gpus}": p.efficiency * p.gpus for p in strong(WRN28_10, v100, (2, 4, 8), 128)}
    (eight,) = weak(RESNET50, a100, (8,))
    return found | {"MXNet 8": 8 * eight.efficiency, "PyTorch AMP 8": 8 * eight.efficiency}


def worst_error(host):
    return max(abs(got / PUBLISHED[name] - 1) for name, got in speedups(host).items())


def test_one_free_parameter_fits_every_published_point_within_ten_percent():
    fitted = min((i / 1000 for i in range(300)), key=worst_error)
    assert len(PUBLISHED) > NUM_FREE
    assert worst_error(fitted) < 0.10, speedups(fitted)
    assert 0.05 < fitted < 0.20  # and it is needed: traffic alone does not explain them
    assert worst_error(0.0) > 0.10


# WRN-36-5 in the reference documents: percent, in whole numbers (0.5 of rounding); half a point is the model's.
WEAK = {8: 99, 64: 98, 1024: 97}
STRONG = {64: 94, 256: 76, 1024: 43}
STRONG_FP32 = {1024: 29}
PLAN = {8: 97, 64: 93, 1024: 88}
POINTS = 1.0


def percents(points):
    return {p.gpus: 100 * p.efficiency for p in points}


def test_the_stated_efficiencies_come_out_within_a_point():
    fp32 = dataclasses.replace(model.WRN36_5, gradient_bytes=4)
    cases = (
        (weak(model.WRN36_5, model.H200, list(WEAK)), WEAK),
        (strong(model.WRN36_5, model.H200, list(STRONG), 8192), STRONG),
        (strong(fp32, model.H200, list(STRONG_FP32), 8192), STRONG_FP32),
    )
    for points, stated in cases:
        assert percents(points) == pytest.approx(stated, abs=POINTS + 0.05)


def test_the_plan_with_stragglers_is_met_within_a_point():
    waiting = dataclasses.replace(model.H200, straggler=model.PLAN_STRAGGLER)
    assert percents(weak(model.WRN36_5, waiting, list(PLAN))) == pytest.approx(PLAN, abs=POINTS + 0.05)


def test_gradient_bytes_are_those_of_the_documents():
    assert model.WRN36_5.num_bytes / 1e6 == pytest.approx(75, abs=0.5)


def test_limits_of_the_formula():
    """One GPU sends nothing; hiding cannot beat the last bucket; half the bytes take half the time without latency."""
    assert all_reduce_s(model.WRN36_5, model.H200, 1) == 0
    assert predict(model.WRN36_5, model.H200, 1, 64, 64).efficiency == pytest.approx(1)
    hiding = dataclasses.replace(model.H200, overlap=1.0)
    hidden = predict(model.WRN36_5, hiding, 8, 256, 256)
    last = 1e3 * all_reduce_s(model.WRN36_5, hiding, 8, 1 / model.WRN36_5.num_buckets)
    assert hidden.exposed_ms == pytest.approx(last)
    assert 0 < last < hidden.all_reduce_ms
    quiet = dataclasses.replace(model.H200, latency_s=0.0)
    fp32 = dataclasses.replace(model.WRN36_5, gradient_bytes=4)
    assert all_reduce_s(fp32, quiet, 64) == pytest.approx(2 * all_reduce_s(model.WRN36_5, quiet, 64))
    efficiencies = [p.efficiency for p in strong(model.WRN36_5, model.H200, [2**i for i in range(11)], 8192)]
    assert efficiencies == sorted(efficiencies, reverse=True)


@pytest.mark.parametrize(("num_gpus", "last"), [(1, 1), (12, 12), (1024, 1024)])
def test_report(num_gpus, last, tmp_path):
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    found = model.report(num_gpus, plot=tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert len({r["curve"] for r in found["rows"]}) == 4
    assert max(r["gpus"] for r in found["rows"]) == last
    assert json.loads(json.dumps(found)) == found
    assert found["table"].count("predicted") == 4
    assert max(map(len, found["table"].splitlines())) <= 100


@pytest.mark.parametrize(("num_gpus", "batch"), [(0, 8192), (8, 0)])
def test_report_refuses_nothing(num_gpus, batch):
    with pytest.raises(ValueError, match="allowed: 1 or more"):
        model.report(num_gpus, global_batch=batch)
