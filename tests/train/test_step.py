"""The training step: optimisers, EMA and precision equal torch's; losses and gradients that are not finite."""

import copy
import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from imnet import models, optim
from imnet.device import Place, resolve_precision
from imnet.errors import DataError, DeviceError, UsageError
from imnet.launch import World
from imnet.metrics import read_metrics
from imnet.recipe import SGD, AdamW, Constant
from imnet.start import train
from imnet.step import TrainStep

from .conftest import TINY, options

CPU32 = Place(torch.device("cpu"), "fp32", "test")


def make_step(recipe, precision="fp32"):
    torch.manual_seed(0)
    net = models.build("wrn10_1", 4).to(memory_format=torch.channels_last)
    place = Place(torch.device("cpu"), precision, "test")
    return TrainStep(net, recipe, place, World(), compile=False, graphs=False, backend="auto")


def batch(seed, images=8):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(images, 3, 16, 16, generator=g).contiguous(memory_format=torch.channels_last)
    return x, torch.randint(0, 4, (images,), generator=g)


OPTIMS = {
    "sgd": (SGD(lr=0.1, momentum=0.9, weight_decay=5e-4), lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=5e-4)),
    "nesterov": (
        SGD(lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
        lambda p: torch.optim.SGD(p, 0.1, 0.9, weight_decay=1e-3, nesterov=True),
    ),
    "adamw": (
        AdamW(lr=1e-2, weight_decay=0.1, decay_norms=True),
        lambda p: torch.optim.AdamW(p, 1e-2, weight_decay=0.1),
    ),
}


@pytest.mark.parametrize("kind", OPTIMS)
def test_five_steps_equal_a_plain_loop(kind):
    ours, theirs = OPTIMS[kind]
    recipe = dataclasses.replace(TINY, optim=ours, schedule=Constant(), ema_decay=None, label_smoothing=0.1)
    step = make_step(recipe)
    plain = copy.deepcopy(step.net)
    optimizer = theirs(plain.parameters())
    for i in range(5):
        x, y = batch(i)
        total, bad = step([(x, y)], 8, i, recipe.lr_at(i, 10))
        loss = F.cross_entropy(plain(x), y, label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert float(total) / 8 == pytest.approx(loss.item(), rel=1e-5)
        assert not bad
    for a, b in zip(step.net.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=2e-4, atol=2e-5)


def test_clipping_is_torchs():
    recipe = dataclasses.replace(TINY, optim=SGD(lr=1.0, momentum=0.0), grad_clip=0.05, ema_decay=None)
    step = make_step(recipe)
    before = copy.deepcopy(step.net)
    x, y = batch(0)
    step([(x, y)], 8, 0, 1.0)
    moved = torch.sqrt(
        sum(((a - b) ** 2).sum() for a, b in zip(before.parameters(), step.net.parameters(), strict=True))
    )
    assert moved.item() == pytest.approx(0.05, rel=1e-3)


def test_the_average_is_torchs():
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    step = make_step(TINY)
    averaged = copy.deepcopy(step.net)
    step.add_ema(averaged, 0.9)
    theirs = AveragedModel(step.net, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(step.net)  # the first call copies the weights
    for i in range(4):
        step([batch(i)], 8, i, 0.05)
        theirs.update_parameters(step.net)
    for (name, a), b in zip(averaged.state_dict().items(), theirs.module.state_dict().values(), strict=True):
        if a.is_floating_point():
            torch.testing.assert_close(a, b, msg=name)


def test_norms_and_biases_can_be_spared_the_decay():
    net = models.build("wrn10_1", 4)
    groups = optim.build(net, SGD(lr=0.1, weight_decay=1e-3, decay_norms=False)).param_groups
    assert [g["weight_decay"] for g in groups] == [1e-3, 0.0]
    assert all(p.ndim > 1 for p in groups[0]["params"])
    assert all(p.ndim == 1 for p in groups[1]["params"])
    assert sum(p.numel() for g in groups for p in g["params"]) == sum(p.numel() for p in net.parameters())


def test_apex_that_is_not_nvidias_is_refused():
    with pytest.raises(UsageError, match="NVIDIA apex is not installed"):
        optim.build(models.build("wrn10_1", 4), SGD(lr=0.1), "apex")


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_that_is_not_finite_changes_nothing(kind):
    step = make_step(dataclasses.replace(TINY, optim=OPTIMS[kind][0], ema_decay=None))
    step([batch(0)], 8, 0, 0.05)
    weights = copy.deepcopy(list(step.net.parameters()))
    state = {k: v.clone() for k, v in optim.state_tensors(step.optimizer).items()}
    x, y = batch(1)
    x[3, 0, 0, 0] = math.inf
    _, bad = step([(x, y)], 8, 1, 0.05)
    assert bad
    for a, b in zip(weights, step.net.parameters(), strict=True):
        assert torch.equal(a, b)
    for name, value in optim.state_tensors(step.optimizer).items():
        assert torch.equal(value, state[name]), name


def test_warm_up_leaves_no_trace():
    step = make_step(TINY)
    before = {k: v.clone() for k, v in step.net.state_dict().items()}
    step.warm_up([batch(0)], 8)
    for name, value in step.net.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None for p in step.params)
    assert not any(value.any() for value in optim.state_tensors(step.optimizer).values())


def test_bf16_autocast_keeps_fp32_weights_and_channels_last():
    step = make_step(TINY, "bf16")
    step([batch(0)], 8, 0, 0.05)
    assert {p.dtype for p in step.params} == {torch.float32}
    for value in optim.state_tensors(step.optimizer).values():
        if value.ndim == 4 and value.shape[1] > 1 and value.shape[2] > 1:
            assert value.is_contiguous(memory_format=torch.channels_last)


def test_optimiser_state_comes_back_in_the_parameters_layout():
    """Fused updates read memory in order, so a momentum restored in another layout would silently mix channels."""
    step, other = make_step(TINY), make_step(TINY)
    for i in range(2):
        step([batch(i)], 8, i, 0.05)
    other.load_tensors({k: {n: v.contiguous() for n, v in t.items()} for k, t in step.tensors().items()})
    for s in (step, other):
        s([batch(5)], 8, 5, 0.05)
    for a, b in zip(step.net.parameters(), other.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_compiled_step_computes_what_the_eager_one_does():
    recipe = dataclasses.replace(TINY, ema_decay=None)
    eager = make_step(recipe)
    torch.manual_seed(0)
    net = models.build("wrn10_1", 4).to(memory_format=torch.channels_last)
    compiled = TrainStep(net, recipe, CPU32, World(), compile=True, graphs=False, backend="auto")
    for i in range(2):
        a, _ = eager([batch(i)], 8, i, 0.05)
        b, _ = compiled([batch(i)], 8, i, 0.05)
        assert float(a) == pytest.approx(float(b), rel=1e-4)


def test_precision_auto_says_why():
    precision, why = resolve_precision("auto", "cpu")
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    assert precision == ("bf16" if "avx512_bf16" in flags or "amx_bf16" in flags else "fp32")
    assert why
    with pytest.raises(DeviceError):
        resolve_precision("fp16", "cpu")


def test_a_run_that_diverges_stops_at_the_next_step_and_names_the_layer(tmp_path):
    hot = dataclasses.replace(TINY, optim=SGD(lr=1e25), schedule=Constant(), epochs=2, ema_decay=None)
    with pytest.raises(DataError, match=r"not finite at step \d+, first in .*--optim.lr") as caught:
        train(hot, options(tmp_path, log_every_steps=1))
    step = int(str(caught.value).split("at step ")[1].split(",")[0])
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert len(rows) <= step + 2


@pytest.mark.parametrize("every", [1, 2, 3])
def test_a_step_that_is_not_finite_is_never_saved(tmp_path, every):
    """The flag of a bad step is read one step late, but a checkpoint may be due at once."""
    hot = dataclasses.replace(TINY, optim=SGD(lr=1e25), schedule=Constant(), epochs=2)
    with pytest.raises(DataError, match=r"not finite at step 1, .*nothing of that step was kept"):
        train(hot, options(tmp_path, checkpoint_every_steps=every))
    saved = sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*"))
    assert saved == ["step-00000001"] * (every == 1)
    for path in (tmp_path / "checkpoints").glob("*/*.safetensors"):
        assert all(bool(value.isfinite().all()) for value in load_file(path).values())


def first_loss(recipe, folder):
    """Returns the training loss of the first step."""
    train(dataclasses.replace(recipe, optim=SGD(lr=0.01), epochs=1), options(folder / "first", log_every_steps=1))
    return read_metrics(folder / "first" / "metrics.jsonl")[0]["loss"]


def test_skipping_counts_and_gives_up(tmp_path, capsys):
    hot = dataclasses.replace(TINY, optim=SGD(lr=1e25), schedule=Constant(), epochs=2, ema_decay=None)
    with pytest.raises(DataError, match="not finite"):
        train(hot, options(tmp_path, on_nonfinite="skip:2"))
    assert capsys.readouterr().out.count("skipped    step") == 3
    train(hot, options(tmp_path / "patient", on_nonfinite="skip:99"))
    said = capsys.readouterr().out
    told = f"{said.count('skipped    step')} optimiser steps were left out: loss or gradient was not finite"
    rows = [row for row in read_metrics(tmp_path / "patient" / "metrics.jsonl") if row["kind"] == "train"]
    # One step was taken, with random weights; the steps left out have no loss, instead of a loss of 0.
    assert [row["loss"] for row in rows[1:]] == [None] * (len(rows) - 1)
    assert rows[0]["loss"] == pytest.approx(first_loss(hot, tmp_path), rel=1e-4)
    assert told in said.split("top-1, last epoch")[1]
    assert told in (tmp_path / "patient" / "report.html").read_text()


def test_a_step_that_is_left_out_leaves_no_mark_on_the_average(tmp_path):
    """Batch statistics that are not finite would stay in a moving average forever."""
    hot = dataclasses.replace(TINY, optim=SGD(lr=1e25), schedule=Constant(), epochs=2, ema_decay=0.5)
    train(hot, options(tmp_path, on_nonfinite="skip:99"))
    skipped = json.loads((tmp_path / "run.json").read_text())["skipped_steps"]
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    found = {name: load_file(newest / f"{name}.safetensors") for name in ("model", "ema")}
    assert skipped > 10
    for name in found:
        assert all(bool(value.isfinite().all()) for value in found[name].values()), name
    counted = [value for name, value in found["ema"].items() if name.endswith("num_batches_tracked")]
    assert {int(value) for value in counted} == {16 - skipped}


def test_a_skipped_step_has_no_share_in_the_logged_loss(tmp_path):
    """One of the first five steps counts; with zeros for the others, the logged loss would be a fifth of its loss."""
    hot = dataclasses.replace(TINY, optim=SGD(lr=1e25), schedule=Constant(), epochs=2, ema_decay=None)
    logged = {}
    for every in (1, 5):
        train(hot, options(tmp_path / str(every), on_nonfinite="skip:99", log_every_steps=every))
        logged[every] = [row for row in read_metrics(tmp_path / str(every) / "metrics.jsonl") if row["kind"] == "train"]
    kept = {
        every: [(row["loss"], row["top1"]) for row in rows if row["loss"] is not None] for every, rows in logged.items()
    }
    assert kept[1] == kept[5]
    assert len(kept[1]) == 1


def test_a_run_leaves_threads_and_denormals_as_they_were(tmp_path):
    threads = torch.get_num_threads()
    train(dataclasses.replace(TINY, epochs=1), options(tmp_path, threads=threads + 1))
    assert torch.get_num_threads() == threads
    assert torch.tensor(1e-310, dtype=torch.float64) * 1.0 > 0
