"""LAMB, Lion and Muon equal timm's and torch's, skip bad steps and resume; which weights are matrices for Muon."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch import nn

from imnet import foreach, models, optim, options, recipe
from imnet.errors import UsageError
from imnet.recipe import AdamW, Constant, Lamb, Lion, Muon
from imnet.run_options import RunOptions
from imnet.start import train

from . import conftest
from .conftest import TINY
from .test_resume import digests, wait_for_step
from .test_step import batch, make_step

timm_optim = pytest.importorskip("timm.optim", reason="timm is not installed (extra: timm)")


def network():
    """A network with a convolution, a norm, a hidden linear layer and a head, in channels_last."""
    torch.manual_seed(0)
    parts = (nn.Conv2d(3, 32, 3), nn.BatchNorm2d(32), nn.Flatten(), nn.Linear(32 * 36, 12), nn.ReLU(), nn.Linear(12, 4))
    return nn.Sequential(*parts).to(memory_format=torch.channels_last)


def set_gradients(nets, seed):
    generator = torch.Generator().manual_seed(seed)
    for params in zip(*(net.parameters() for net in nets), strict=True):
        grad = torch.randn(params[0].shape, generator=generator) * 10 ** (seed % 3 - 1)
        for p in params:
            p.grad = torch.empty_like(p).copy_(grad)


def theirs_of(name, net):
    """Returns the reference optimisers for ``net``, with the same parameter groups as imnet's."""
    groups = optim.param_groups(net, OURS[name])
    if name == "lamb":
        return [timm_optim.Lamb(groups, lr=0.01, betas=(0.9, 0.99), eps=1e-6, max_grad_norm=None)]
    if name == "lion":
        return [timm_optim.Lion(groups, lr=0.001, betas=(0.9, 0.99))]
    matrices = [g for g in groups if g["matrix"]]
    assert [tuple(p.shape) for g in matrices for p in g["params"]] == [(32, 3, 3, 3), (12, 1152)]
    form = {"ns_coefficients": "original", "adjust_lr_fn": "match_rms_adamw", "conv_mode": "flatten"}
    timms = timm_optim.Muon(matrices, lr=0.01, momentum=0.9, nesterov=True, **form)
    rest = torch.optim.AdamW([g for g in groups if not g["matrix"]], lr=0.01, betas=(0.9, 0.99))
    return [timms, rest]


OURS = {
    "lamb": Lamb(lr=0.01, beta2=0.99, weight_decay=0.1),
    "lion": Lion(lr=0.001, weight_decay=0.3),
    "muon": Muon(lr=0.01, momentum=0.9, beta2=0.99, weight_decay=0.2),
}


@pytest.mark.parametrize("on_device", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("name", OURS)
def test_six_updates_are_the_oracles(name, on_device):
    mine, other = network(), network()
    optimizer, theirs = optim.build(mine, OURS[name], graphs=on_device), theirs_of(name, other)
    for i in range(6):
        lr = OURS[name].lr * (1 + i % 2)
        optim.set_lr(optimizer, lr)
        set_gradients((mine, other), i)
        optimizer.step()
        for one in theirs:
            optim.set_lr(one, lr)
            one.step()
    # Muon's bf16 iterations show the order of sums: a thousandth of what six steps of 0.01 move the weights.
    close = {"rtol": 1e-3, "atol": 2e-3} if name == "muon" else {"rtol": 2e-5, "atol": 2e-6}
    for a, b, start in zip(mine.parameters(), other.parameters(), network().parameters(), strict=True):
        torch.testing.assert_close(a, b, **close)
        assert (a - start).abs().max() > 10 * close["atol"] or a.numel() < 20
        assert a.stride() == start.stride()


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_matrix_is_torchs_muon_to_the_bit(nesterov):
    torch.manual_seed(0)
    how = {"lr": 0.02, "momentum": 0.9, "nesterov": nesterov}
    for shape in ((12, 30), (30, 12), (16, 16)):
        theirs = nn.Parameter(torch.randn(shape))
        mine = nn.Parameter(theirs.detach().clone())
        oracle = torch.optim.Muon([theirs], weight_decay=0.1, adjust_lr_fn="match_rms_adamw", **how)
        group = {"params": [mine], "weight_decay": 0.1, "matrix": True}
        ours = foreach.Muon([group], betas=(0.9, 0.999), eps=1e-8, ns_steps=5, **how)
        for i in range(4):
            mine.grad = theirs.grad = torch.randn(shape, generator=torch.Generator().manual_seed(i))
            ours.step()
            oracle.step()
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_orthogonalised_is_near_the_polar_factor():
    matrix = torch.randn(24, 60, generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(foreach.orthogonalised(matrix, 5).float())
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert foreach.orthogonalised(torch.zeros(3, 4), 5).abs().max() == 0


@pytest.mark.parametrize("name", OURS)
def test_a_bad_step_changes_nothing_and_the_next_one_goes_on(name):
    recipe = dataclasses.replace(TINY, optim=OURS[name], schedule=Constant(), ema_decay=None)
    step, clean = make_step(recipe), make_step(recipe)
    step([batch(0)], 8, 0, 0.01)
    clean([batch(0)], 8, 0, 0.01)
    x, y = batch(1)
    saved = {k: v.clone() for k, v in [*step.tensors()["model"].items(), *step.tensors()["state"].items()]}
    _, bad = step([(x * float("inf"), y)], 8, 1, 0.01)
    assert bad
    weights = dict(step.net.named_parameters())
    for k, v in [*step.tensors()["model"].items(), *step.tensors()["state"].items()]:
        if k in weights or ("." in k and k.split(".")[0].isdigit()):
            assert torch.equal(v, saved[k]), k
    step.net.load_state_dict(clean.net.state_dict())  # the bad step has changed batch statistics
    step([batch(2)], 8, 2, 0.01)
    clean([batch(2)], 8, 2, 0.01)
    for a, b in zip(step.net.parameters(), clean.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_values_are_selected_so_that_nan_does_not_pass():
    old, new = [torch.ones(3), torch.zeros(())], [torch.full((3,), float("nan")), torch.tensor(5.0)]
    for bad, wanted in ((1.0, [[1.0, 1.0, 1.0], 0.0]), (0.0, [pytest.approx([float("nan")] * 3, nan_ok=True), 5.0])):
        mine = [t.clone() for t in old]
        foreach.replace(mine, new, torch.tensor(bad))
        assert [t.tolist() for t in mine] == wanted


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("bare", [slice(1), slice(None, None, 2), slice(None)], ids=["one", "several", "all"])
def test_parameters_without_a_gradient_stay_and_the_others_move(name, bare):
    """As of layers that a network does not use."""
    net, start = network(), network()
    optimizer = optim.build(net, OURS[name])
    set_gradients((net,), 1)
    for group in optimizer.param_groups:
        for p in group["params"][bare]:
            p.grad = None
    optimizer.step()
    for p, before in zip(net.parameters(), start.parameters(), strict=True):
        assert torch.equal(p, before) == (p.grad is None)
        assert any(t.any() for t in optimizer.state[p].values()) == (p.grad is not None)


@pytest.mark.parametrize("name", OURS)
def test_fp16s_scaler_leaves_it_to_the_optimiser(name):
    net, found = network(), []
    optimizer = optim.build(net, OURS[name])
    optimizer.register_step_pre_hook(lambda *_: found.append(float(optimizer.found_inf)))
    before = copy.deepcopy(net.state_dict())
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for factor, moves in ((float("inf"), False), (1.0, True)):
        loss = net(torch.randn(2, 3, 8, 8)).square().mean() * factor
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        assert moves != torch.equal(before["3.weight"], net.state_dict()["3.weight"])
    assert scaler.get_scale() == 2.0
    assert found == [1.0, 0.0]  # torch's scaler would otherwise wait for the device and skip the step itself


@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e-2, 1.0])
def test_lambs_trust_is_the_oracles_at_weights_of_any_size(scale):
    """The ratio of norms is used for norms below 1 too; if a norm is 0 there is no ratio and the step is Adam's."""
    mine, other = network(), network()
    with torch.no_grad():
        for p in (*mine.parameters(), *other.parameters()):
            p.mul_(scale)
    optimizer, (theirs,) = optim.build(mine, OURS["lamb"]), theirs_of("lamb", other)
    for sign in (1, -1):  # the second step, with the gradients reversed, is a short one
        set_gradients((mine, other), 1)
        for p in (*mine.parameters(), *other.parameters()):
            p.grad.mul_(sign)
        optimizer.step()
        theirs.step()
    for p, q in zip(mine.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["muon", *(pytest.param(n, marks=pytest.mark.slow) for n in ("lamb", "lion"))])
def test_a_killed_run_ends_with_the_same_bytes(name, spawn, tmp_path):
    recipe = dataclasses.replace(TINY, optim=OURS[name], body_lr=0.5)
    found = []
    for kill in (False, True):
        folder = tmp_path / str(kill)
        process = spawn(recipe, conftest.options(folder, checkpoint_every_steps=3))
        if kill:
            wait_for_step(folder, process)
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            process = spawn(recipe, conftest.options(folder, checkpoint_every_steps=3))
        process.join(120)
        assert process.exitcode == 0
        found.append(digests(folder))
    assert found[0] == found[1]


def test_muon_leaves_head_norms_biases_and_tables_to_adamw():
    vit = models.build("timm:vit_tiny_patch16_224", 4, img_size=32)
    names = {p: name for name, p in vit.named_parameters()}
    groups = optim.param_groups(vit, OURS["muon"], 0.1)
    matrices = {names[p] for g in groups if g["matrix"] for p in g["params"]}
    rest = set(names.values()) - matrices
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.11.mlp.fc2.weight"} <= matrices
    assert {"head.weight", "pos_embed", "cls_token", "blocks.0.norm1.weight", "blocks.0.attn.qkv.bias"} <= rest
    assert {(g["lr_factor"], g["matrix"]) for g in groups} == {(0.1, False), (0.1, True), (1.0, False)}


@pytest.mark.parametrize("kind", OURS)
def test_words(kind, tmp_path):
    found = options.parse(["--optim.kind", kind, "--lr", "0.003"]).recipe
    assert (found.optim.kind, found.optim.lr) == (kind, 0.003)
    with pytest.raises(UsageError, match=r"without a learning rate; .* give it as well: --lr X"):
        options.parse(["--optim.kind", kind])
    with pytest.raises(ValueError, match=f"optim_backend = imnet for {kind}; allowed: sgd"):
        RunOptions(optim_backend="imnet").as_ran(found)


def test_another_optimiser_cannot_take_a_state_over(tmp_path):
    train(TINY, conftest.options(tmp_path))
    with pytest.raises(UsageError, match=r"optim\.kind was sgd, is muon"):
        train(dataclasses.replace(TINY, optim=OURS["muon"], epochs=4), conftest.options(tmp_path, allow_change=True))


def test_the_state_of_other_groups_is_refused():
    """If norms were decayed and no longer are, for example, the groups hold the parameters in another order."""
    optimizer, other = (optim.build(network(), AdamW(lr=0.01, decay_norms=decay)) for decay in (True, False))
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.ones_like(p)
    optimizer.step()
    with pytest.raises(UsageError, match=r"state .* of \(.*\); allowed: \(.*\), its parameter's"):
        optim.load_state_tensors(other, optim.state_tensors(optimizer))


@pytest.mark.slow
def test_no_optimiser_brings_torchs_compiler():
    code = (
        "import sys, torch; from imnet import models, optim\n"
        "for kind in optim.BUILDERS:\n"
        "    net = models.build('wrn10_1', 4); o = optim.build(net, kind(lr=0.1))\n"
        "    net(torch.ones(2, 3, 8, 8)).sum().backward(); o.step(); o.zero_grad(); o.load_state_dict(o.state_dict())\n"
        "    assert 'torch._dynamo' not in sys.modules, kind"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_adamw_is_what_it_was():
    """AdamW keeps torch's names of its state, so that runs of older versions resume."""
    step = make_step(dataclasses.replace(TINY, optim=AdamW(lr=0.01)))
    step([batch(0)], 8, 0, 0.01)
    assert {k.partition(".")[2] for k in step.tensors()["state"]} == {"exp_avg", "exp_avg_sq", "step"}


@pytest.mark.parametrize("kind", [recipe.SGD, Muon])
def test_nesterov_without_momentum_is_refused(kind):
    with pytest.raises(ValueError, match=r"got optim\.nesterov without momentum"):
        kind(lr=0.1, momentum=0, nesterov=True)
