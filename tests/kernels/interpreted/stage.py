"""dense_stage in Triton, and a training step of DenseNet that uses it."""

from __future__ import annotations

import copy

import pytest
import torch
from conftest import after_a_step
from imnet_kernels import tier

DENSE = "dense_stage=triton"


def _dense_step(spec, precision):
    """Returns state and loss after a step of a DenseNet whose features grow from 24 to 72 channels."""
    from imnet.models.densenet import DenseNetBC

    return after_a_step(lambda: DenseNetBC(16, 12, 5), spec, precision, px=12)


def test_a_densenets_step_is_the_same_with_it(monkeypatch):
    """Equal in fp32. In bf16 both are off by the rounding of every layer, and ours by hardly more than torch's."""
    from imnet_kernels.dense_stage import _triton

    calls, forward = [], _triton.forward
    monkeypatch.setattr(_triton, "forward", lambda *given: calls.append(given) or forward(*given))
    exact, ours = _dense_step("reference", "fp32"), _dense_step(DENSE, "fp32")
    assert ours.keys() == exact.keys()
    for name, theirs in exact.items():
        assert (ours[name] - theirs).float().norm() <= 1e-5 * theirs.float().norm() + 1e-7, name
    half, rounded = _dense_step(DENSE, "bf16"), _dense_step("reference", "bf16")
    for name, theirs in exact.items():
        off = (rounded[name] - theirs).float().norm()
        assert (half[name] - theirs).float().norm() <= 1.5 * off + 1e-3 * theirs.float().norm(), name
    assert [given[0].dtype for given in calls] == 3 * [torch.float32] + 3 * [torch.bfloat16]


def test_few_programs_take_many_rows_each(monkeypatch):
    """As for a map with more tiles than MOST_PARTS partial results, where each program takes several."""
    from imnet_kernels.batch_norm import _triton
    from imnet_kernels.dense_stage.cases import FAMILY

    monkeypatch.setattr(_triton, "MOST_PARTS", 2)
    FAMILY.check(next(c for c in FAMILY.cases if c.name == "several tiles a program"), torch.float32, "triton")


def test_a_dense_stage_gives_the_same_bits_twice():
    from imnet_kernels.dense_stage.cases import FAMILY
    from imnet_kernels.family import outputs

    case = next(c for c in FAMILY.cases if c.name == "several tiles a program")
    with tier.using(DENSE):
        runs = [outputs(FAMILY.make(case, torch.bfloat16, "cpu")) for _ in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize("form", ["weights in NCHW", "no gradient of x", "frozen weights", "one pixel a map"])
def test_a_stage_alone_gives_the_same_gradients(form):
    """The backward runs outside ``tier.using`` and must still take the tier of its forward."""
    from imnet.models.densenet import DenseStage

    torch.manual_seed(0)
    stage = DenseStage(9, 6, 2, 0.0)
    if form != "weights in NCHW":
        stage.to(memory_format=torch.channels_last)
    if form == "frozen weights":
        stage.layers[1].conv1.weight.requires_grad_(False)
        stage.layers[0].bn2.bias.requires_grad_(False)
    x = torch.randn(7, 9, 1, 1) if form == "one pixel a map" else torch.randn(3, 9, 5, 7)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_(form != "no gradient of x")
    leaves = [t for t in (x, *stage.parameters()) if t.requires_grad]
    start, found = copy.deepcopy(stage.state_dict()), []
    for spec in ("reference", DENSE):
        stage.load_state_dict(start)
        with tier.using(spec):
            y = stage(x)
        grads = torch.autograd.grad((y + 1).square().sum(), leaves)
        found.append([y, *grads, *(b.clone().float() for b in stage.buffers())])
    assert "DenseStage" in type(y.grad_fn).__name__
    for want, got in zip(*found, strict=True):
        assert (got - want).norm() <= 1e-5 * want.norm() + 1e-6


def _dense(change=lambda net: net):
    from imnet.models.densenet import DenseNetBC

    return change(DenseNetBC(10, 4, 5).to(memory_format=torch.channels_last).train())


def _other_momentum(net):
    for stage in net.stages[::2]:
        stage.layers[0].bn2.momentum = 0.3
    return net


def _no_running_statistics(net):
    for stage in net.stages[::2]:
        stage.layers[0].bn1.track_running_stats = False
    return net


def _counted(net):
    from torch.utils.flop_counter import FlopCounterMode

    def run(images):
        with FlopCounterMode(display=False):
            return net(images)

    return run


@pytest.mark.parametrize(
    "form", ["eval", "planar", "double", "odd momentum", "no running", "dropout", "flops", "compile"]
)
def test_everything_else_is_torchs_own(form, monkeypatch):
    from imnet_kernels.dense_stage import _triton

    from imnet.models.densenet import DenseNetBC

    monkeypatch.setattr(_triton, "forward", lambda *given: pytest.fail("the kernels ran"))
    images = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last)
    run = {
        "eval": lambda: _dense().eval(),
        "planar": lambda: DenseNetBC(10, 4, 5),
        "double": lambda: _dense().double(),
        "odd momentum": lambda: _dense(_other_momentum),
        "no running": lambda: _dense(_no_running_statistics),
        "dropout": lambda: DenseNetBC(10, 4, 5, drop_rate=0.2).to(memory_format=torch.channels_last),
        "flops": lambda: _counted(_dense()),
        "compile": lambda: torch.compile(_dense(), backend="eager", fullgraph=True),
    }[form]()
    images = images.double() if form == "double" else images.contiguous() if form == "planar" else images
    with tier.using(DENSE):
        run(images)
