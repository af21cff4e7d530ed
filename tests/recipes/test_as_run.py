"""Recipes of how a source was really run, against figures worked out by hand from the code of the source."""

import math

import pytest
import torch
from torch import nn

from imnet import models, optim, recipes
from imnet.models.wrn import LasagneBlock, LasagneWideResNet
from imnet.options import parse
from imnet.recipe import SGD
from imnet.recipe_json import config_hash
from imnet.report.data import RunLog
from imnet.run_options import RunOptions
from imnet.start import train

# Epoch -> learning rate. Epochs count from 0 here; the notebooks' code calls the first epoch 1.
RATES = {
    "wrn28_10": {58: 0.1, 59: 0.02, 118: 0.02, 119: 0.004, 158: 0.004, 159: 0.0008, 199: 0.0008},
    "dpn28_10": {58: 0.1, 59: 0.02, 118: 0.02, 119: 0.004, 158: 0.004, 159: 0.0008, 199: 0.0008},
    "densenet_bc100_12": {148: 0.1, 149: 0.01, 223: 0.01, 224: 0.001, 299: 0.001},
}
STEPS = {"wrn28_10": 118, "dpn28_10": 118, "densenet_bc100_12": 235}
SEEDS = {"wrn28_10": 40000, "dpn28_10": 52, "densenet_bc100_12": 40000}


@pytest.mark.parametrize("name", RATES)
def test_the_notebooks_as_they_ran(name):
    from imnet.data.order import Order

    run, documented = recipes[f"fashion-mnist/{name}_as_run"], recipes[f"fashion-mnist/{name}"]
    order = Order(30_000, run.data.batch_images, run.seed, drop_last=run.data.drop_last)
    steps = order.steps_per_epoch
    assert steps == STEPS[name]
    assert sum(order.size(i) for i in range(steps)) == 30_000
    for epoch, rate in RATES[name].items():
        assert [run.lr_at(epoch * steps + i, steps) for i in (0, steps - 1)] == pytest.approx([rate, rate])
    assert run.seed == SEEDS[name]
    assert run.augment.mean == (0.0,)
    assert run.augment.hflip == "none"
    assert documented.data.drop_last
    assert documented.ran is None
    assert documented.schedule.milestones_epochs == tuple(m + 1 for m in run.schedule.milestones_epochs)


@pytest.mark.parametrize("width", ["96d", "64d"])
def test_how_shake_shake_ran_is_not_claimed(width):
    run = recipes[f"fashion-mnist/shake_shake26_2x{width}_as_run"]
    documented = recipes[f"fashion-mnist/shake_shake26_2x{width}"]
    assert "how it ran is not known" in run.source
    assert config_hash(run, "fp32") != config_hash(documented, "fp32")  # by the name alone
    assert (run.data, run.augment, run.optim) == (documented.data, documented.augment, documented.optim)


def test_options_left_open_follow_the_source_and_others_win(capsys):
    run = recipes["fashion-mnist/wrn28_10_as_run"]
    ran = RunOptions().as_ran(run)
    assert (ran.precision, ran.eval_every_epochs) == ("fp32", 1)
    mine = RunOptions(precision="bf16", eval_every_epochs=7)
    assert mine.as_ran(run) == mine
    assert mine.as_ran(recipes["fashion-mnist/wrn28_10"]) == mine
    assert parse(["--recipe", run.name]).recipe == run


def test_a_run_is_judged_after_every_epoch_in_fp32_where_its_recipe_ran_so(tmp_path):
    from imnet.recipe import Ran, replace
    from imnet.run import Run

    small = replace(recipes["quickstart"].data, train_images=40, test_images=20, batch_images=20)
    # Without ``ran``, a run of four epochs is evaluated only twice, because its test set is half the training set.
    recipe = replace(recipes["quickstart"], data=small, epochs=4, ran=Ran(precision="fp32", eval_every_epochs=1))
    for folder, value, times in ((tmp_path / "ran", recipe, 4), (tmp_path / "open", replace(recipe, ran=None), 2)):
        train(value, RunOptions(out=str(folder), device="cpu", threads=1))
        assert sum(line["kind"] == "eval" for line in Run(folder).metrics) == times
    assert Run(tmp_path / "ran").info["precision"] == "fp32"


def test_the_sources_precision_is_no_change():
    recipe = {"name": "x", "published": {"top1": 0.9}, "ran": {"precision": "fp32"}}

    def changed(precision):
        log = RunLog(path=None, config={"precision": precision}, info={"recipe": recipe}, train=(), evals=(),
                     evaluation=None, notes=())  # fmt: skip
        return log.changed

    assert changed("fp32") == changed("auto") == ""
    assert changed("bf16") == "changed: precision; not comparable"


def decayed(net, kind):
    """Returns the names of the parameters that have weight decay."""
    names = {id(p): name for name, p in net.named_parameters()}
    groups = optim.build(net, kind, "torch").param_groups
    return {names[id(p)] for group in groups if group["weight_decay"] for p in group["params"]}


def test_lasagnes_penalty_covers_weights_and_gamma_alone():
    with torch.device("meta"):
        net = models.build("wrn36_5_lasagne", 1000)
    every = {name for name, _ in net.named_parameters()}
    biases = {name for name in every if name.endswith(".bias")}
    # 33 norms (two per block except a leading one in the first, the stem's, the last), 16 convolutions, the head.
    assert len(biases) == 33 + 16 + 1
    net = LasagneWideResNet(12, 1, 10)
    every = {name for name, _ in net.named_parameters()}
    found = decayed(net, recipes["imagenet64/wrn36_5_lasagne"].optim)
    assert found == {name for name in every if name.endswith(".weight")}
    assert "bn.weight" in found
    assert recipes["imagenet64/wrn36_5_lasagne"].optim.weight_decay == 1e-3
    assert decayed(net, recipes["imagenet64/wrn36_5"].optim) == every


def test_one_step_of_lasagnes_penalty_by_hand():
    """The loss has no gradient here, so the step is that of the penalty 5e-4 * sum(W^2): its gradient 2 * 5e-4 * W for
    weights and gamma, and 0 for beta and biases."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    for p in net.parameters():
        nn.init.constant_(p, 2.0)
        p.grad = torch.zeros_like(p)
    optim.build(net, recipes["imagenet64/wrn36_2_lasagne"].optim, "torch").step()
    moved = {name: p.item() for name, p in net.named_parameters()}
    shrunk = 2.0 - 0.01 * 2 * 5e-4 * 2.0
    assert moved == pytest.approx({"0.weight": shrunk, "0.bias": 2.0, "1.weight": shrunk, "1.bias": 2.0}, rel=1e-6)


def test_fobs_reference_run_spares_norms_and_biases():
    run = recipes["imagenet64/wide_resnet50_2_reference"]
    net = models.build("wrn10_1", 4)
    assert isinstance(run.optim, SGD)
    assert all(p.ndim > 1 for name, p in net.named_parameters() if name in decayed(net, run.optim))
    assert run.optim.weight_decay == 5e-4


def test_lasagnes_initial_weights():
    torch.manual_seed(0)
    net = LasagneWideResNet(12, 8, 1000)  # four groups of one block; 128 to 1024 channels
    widths = [(16, 128), (128, 256), (256, 512), (512, 1024)]
    for block, (before, after) in zip(net.blocks, widths, strict=True):
        assert isinstance(block, LasagneBlock)
        edge = math.sqrt(6 / (before + after))  # Glorot and Bengio 2010, uniform
        weight = block.projection.weight.detach()
        assert float(weight.abs().max()) <= edge
        assert float(weight.abs().max()) > 0.98 * edge
        assert float(weight.std()) == pytest.approx(edge / math.sqrt(3), rel=0.03)
        assert float(block.conv2.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * after)), rel=0.01)
    assert float(net.head.weight.detach().std()) == pytest.approx(math.sqrt(1 / 1024), rel=0.01)
    assert float(net.head.bias.detach().abs().max()) == 0.0
