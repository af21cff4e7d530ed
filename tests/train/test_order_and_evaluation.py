"""The order is a pure function of (seed, epoch), evaluation counts every image once, and losses stay as recorded."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from imnet import fusion, tencrop
from imnet.console import Console
from imnet.data.base import Split
from imnet.data.order import Order, micro_batches, shard
from imnet.data.pipelines import Setting
from imnet.data.pipelines.batches import mean_image
from imnet.data.pipelines.resident import Resident
from imnet.device import Place
from imnet.errors import UsageError
from imnet.evaluate import evaluate
from imnet.launch import World
from imnet.metrics import read_metrics
from imnet.recipe import Augment
from imnet.start import train

from .conftest import TINY, options

CPU32 = Place(torch.device("cpu"), "fp32", "test")


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4])
def test_no_sample_twice_or_lost_at_any_number_of_ranks(num_ranks, drop_last):
    order = Order(103, 10, seed=5, drop_last=drop_last)
    ids = order.epoch(3)
    seen = [
        piece
        for step in range(order.steps_per_epoch)
        for rank in range(num_ranks)
        for piece in micro_batches(shard(order.batch(ids, step), rank, num_ranks), 2)
    ]
    seen = torch.cat(seen)
    assert len(seen) == len(set(seen.tolist())) == (100 if drop_last else 103)
    # The shards of all ranks, one after the other, are the order of one rank.
    assert torch.equal(seen, ids[: len(seen)])


def test_orders_differ_by_epoch_and_seed_and_repeat():
    a, b, c = Order(1000, 10, seed=1).epoch(0), Order(1000, 10, seed=1).epoch(1), Order(1000, 10, seed=2).epoch(0)
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a, Order(1000, 10, seed=1).epoch(0))
    assert torch.equal(a.sort().values, torch.arange(1000))


class Fixed(torch.nn.Module):
    """A network whose logits are the row of a random table that the image's mean pixel selects."""

    def __init__(self, outputs):
        super().__init__()
        self.table = torch.randn(256, outputs, generator=torch.Generator().manual_seed(0))

    def forward(self, x):
        return self.table[(x.mean((1, 2, 3)) * 255).round().long()]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_no_answers(bad):
    """topk sorts NaN first, so that a network that has diverged would be right about the first classes."""
    labels = torch.arange(40) % 8
    net = Fixed(8)
    net.table[:] = torch.eye(8)[torch.arange(256) % 8] * 9  # all other predictions are right
    net.table[10:20, 3] = bad
    pixels = np.arange(40, dtype=np.uint8).repeat(16).reshape(40, 4, 4, 1)
    setting = Setting(augment=Augment(), seed=0, device=CPU32.device, dtype=torch.float32)
    data = Resident(Split(pixels, labels.numpy()), setting)
    found = evaluate(net, data, CPU32, World(), 8, 16, each=True)
    assert [found.top1, found.top5] == [0.75, 0.75]
    assert sum(found.confusion.images) == 30
    assert found.balanced_accuracy == pytest.approx(0.75, abs=0.02)
    assert (found.predictions.predicted[10:20] == 8).all()
    assert [row["index"] for row in found.worst][:10] == [*range(10, 20)]
    scores = net.table[:40].log_softmax(1)
    assert (tencrop._counts(scores, labels)[1:] == 30).all()
    fused = fusion.score(scores, labels)
    assert [fused.top1, fused.top5] == [0.75, 0.75]


@pytest.mark.parametrize("outputs", [7, 12])
def test_evaluation_is_a_plain_count(outputs):
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, 53, dtype=np.uint8), 16).reshape(53, 4, 4, 1)
    labels = rng.integers(0, 7, 53)
    split = Split(pixels, labels.astype(np.int64))
    data = Resident(split, Setting(augment=Augment(), seed=0, device=CPU32.device, dtype=torch.float32))
    net = Fixed(outputs)
    found = evaluate(net, data, CPU32, World(), 7, 10)
    logits = net.table[torch.from_numpy(pixels[:, 0, 0, 0].astype(np.int64))]
    best = logits.topk(5).indices
    target = torch.from_numpy(labels)
    assert found.num_images == 53
    assert found.top1 == (best[:, 0] == target).float().mean().item() or found.top1 * 53 == (best[:, 0] == target).sum()
    assert round(found.top5 * 53) == (best == target[:, None]).any(1).sum()
    assert found.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, target).item(), rel=1e-5)
    confusion = torch.tensor(found.confusion.rows(7))
    for true, row in enumerate(confusion):
        assert row.tolist() == [int(((target == true) & (best[:, 0] == at)).sum()) for at in range(7)]
    assert list(found.confusion.cells()) == [(*cell, int(confusion[*cell])) for cell in confusion.nonzero().tolist()]
    losses = torch.nn.functional.cross_entropy(logits, target, reduction="none")
    assert [w["loss"] for w in found.worst] == pytest.approx(
        losses.sort(descending=True).values[:16].tolist(), rel=1e-5
    )


def test_a_confusion_matrix_holds_only_what_was_met():
    """A dense confusion matrix of 100,000 classes would take 80 GB."""
    pixels = np.repeat(np.array([3, 9, 200, 77], dtype=np.uint8), 4).reshape(4, 2, 2, 1)
    split = Split(pixels, np.array([99_999, 1, 2, 1]))
    data = Resident(split, Setting(augment=Augment(), seed=0, device=CPU32.device, dtype=torch.float32))
    net = Fixed(100_000)
    found = evaluate(net, data, CPU32, World(), 100_000, 3)
    predicted = net.table[[3, 9, 200, 77]].argmax(1).tolist()
    assert sorted(found.confusion.cells()) == sorted(
        (true, at, 1) for true, at in zip(split.labels.tolist(), predicted, strict=True)
    )
    assert found.per_class[1].support == 2
    assert [row[0] for row in found.bins] == [4] + [0] * 14  # no class has a high probability


def test_flip_averages_probabilities():
    split = Split(np.arange(4 * 2 * 3, dtype=np.uint8).reshape(4, 2, 3, 1) * 9, np.array([0, 1, 2, 0]))
    data = Resident(split, Setting(augment=Augment(), seed=0, device=CPU32.device, dtype=torch.float32))
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(6, 3))
    found = evaluate(net, data, CPU32, World(), 3, 4, flip=True)
    x, y = data.batch(torch.arange(4), 0, train=False)
    p = (net(x).softmax(1) + net(x.flip(3)).softmax(1)) / 2
    assert found.loss == pytest.approx(-p[range(4), y].log().mean().item(), rel=1e-5)


def test_the_mean_image_is_the_mean_image():
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8), np.zeros(50, np.int64))
    expected = torch.from_numpy(split.images).double().mean(0).div(255).float()
    torch.testing.assert_close(mean_image(split, 7), expected)
    augment = Augment(mean="image")
    mean = mean_image(split)
    data = Resident(split, Setting(augment=augment, seed=0, device=CPU32.device, dtype=torch.float32, mean=mean))
    x, _ = data.batch(torch.arange(50), 0, train=False)
    assert x.mean(0).abs().max() < 1e-5


# Recorded with torch 2.15 on an AVX-512 CPU, one thread, reference kernels.
GOLDEN = [
    1.442523,
    1.360015,
    1.382518,
    1.394096,
    1.402765,
    1.429857,
    1.398106,
    1.378315,
    1.367421,
    1.376431,
    1.402764,
    1.42467,
    1.337186,
    1.406398,
    1.388884,
    1.41805,
]


def test_the_golden_curve(tmp_path):
    """The same seed gives the same losses, before and after any change that is not meant to alter them."""
    recipe = dataclasses.replace(TINY, epochs=2)
    train(recipe, options(tmp_path, log_every_steps=1, kernels="reference"))
    losses = [r["loss"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "train"]
    assert losses == pytest.approx(GOLDEN, rel=1e-3)


@pytest.mark.parametrize(
    ("images", "batch", "micro", "hint"),
    [(33, 16, None, "set --data.drop_last, or"), (35, 16, 2, "set --data.drop_last, or"), (32, 16, 1, "fewer ranks")],
)
def test_a_pass_of_one_image_is_refused_before_anything_is_written(tmp_path, images, batch, micro, hint):
    """BatchNorm would get one value per channel at 12 px; at 32 px the same network has a 2 x 2 map there."""
    cut = {"batch_images": batch, "train_images": images, "test_images": 9, "drop_last": False}
    at_12 = dataclasses.replace(TINY.data, image_px=12, **cut)
    recipe = dataclasses.replace(TINY, model="speednet", model_options={"width": 8}, epochs=1, data=at_12)
    how = options(tmp_path, micro_batch_images=micro)
    with pytest.raises(UsageError, match=rf"of which a pass has one image: .*\[1, \d+, 1, 1\]\); {hint}"):
        train(recipe, how)
    assert not list(tmp_path.iterdir())
    if images == 33:
        assert train(dataclasses.replace(recipe, data=dataclasses.replace(at_12, image_px=32)), how)[0] == 0


@pytest.mark.parametrize(
    ("epochs", "test_images", "val_images", "evaluated"),
    [
        (5, 12, None, [1, 2, 3, 4, 5]),  # every epoch
        (22, 12, None, [*range(2, 22, 2), 22]),  # ten or eleven times per run
        (12, 96, None, [5, 10, 12]),  # 96 cost as much as training 32: a tenth of 5 epochs of 64
        (12, 64, 32, [10, 12]),  # both parts, 96 images, cost an epoch of 32: a tenth of ten
    ],
)
def test_how_often_a_run_is_judged(tmp_path, epochs, test_images, val_images, evaluated):
    """About ten times and at most a tenth of the time, if an evaluated image costs a third of a trained one."""
    data = dataclasses.replace(TINY.data, train_images=64, test_images=test_images, val_images=val_images)
    recipe = dataclasses.replace(TINY, data=data, epochs=epochs)
    train(recipe, options(tmp_path))
    found = [r["epoch"] for r in read_metrics(tmp_path / "metrics.jsonl") if r["kind"] == "eval"]
    assert found == evaluated


def test_the_time_left_is_that_of_the_steps_so_far_with_evaluations(tmp_path, monkeypatch):
    """Only steps since the last start count, because earlier ones may have run on another machine."""
    told = []
    monkeypatch.setattr(Console, "progress", lambda self, step, *rest: told.append((step, rest[-1])))
    begun = 0, 0.0
    for epochs in (2, 5):
        train(dataclasses.replace(TINY, epochs=epochs), options(tmp_path, eval_every_epochs=1, allow_change=True))
        lines = read_metrics(tmp_path / "metrics.jsonl")
        seconds = {row["step"]: row["seconds"] for row in lines if row["kind"] == "train" and row["step"] > begun[0]}
        assert [step for step, _ in told] == sorted(seconds)
        for step, left_s in told:
            so_far = (seconds[step] - begun[1]) / (step - begun[0])
            assert left_s == pytest.approx((8 * epochs - step) * so_far, rel=0.1, abs=0.1)
        begun = 8 * epochs, json.loads((tmp_path / "run.json").read_text())["seconds"]
        told.clear()
