"""--class-weights balanced and --sampler balanced follow torch's and scikit-learn's definitions, also on several ranks,
after a kill and with every pipeline."""

import collections
import copy
import dataclasses
import os
import signal

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

from imnet import options as words
from imnet.data import pipelines
from imnet.data.base import EncodedSplit
from imnet.data.order import Order, balanced, class_weights, shard
from imnet.errors import UsageError
from imnet.metrics import read_metrics
from imnet.recipe import SGD, Augment, Constant
from imnet.start import train
from tests.data.making import picture
from tests.data.test_pipeline import pictures, setting

from . import ranks_script
from .conftest import TINY, finished, options, start_ranks
from .test_resume import digests, wait_for_step
from .test_step import batch, make_step

COUNTS = {"cat": 61, "dog": 12, "owl": 5}
UNEVEN = torch.tensor([0] * 61 + [1] * 12 + [3] * 5)  # class 2 has no image


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """A folder of pictures in which one class has many more pictures than the others."""
    root = tmp_path_factory.mktemp("uneven") / "pictures"
    for part, share in (("train", 1), ("val", 3)):
        for c, (name, count) in enumerate(COUNTS.items()):
            for i in range(-(-count // share)):
                rng = np.random.default_rng(1000 * c + i)
                pixels = rng.integers(0, 200, (12, 12, 3), dtype=np.uint8)
                pixels[..., c] += 50
                (root / part / name).mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels).save(root / part / name / f"{i:03}.png")
    return root


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_weights_are_scikit_learns():
    weights = class_weights(UNEVEN, 5)
    assert weights.tolist() == pytest.approx([78 / (3 * 61), 78 / (3 * 12), 1.0, 78 / (3 * 5), 1.0])
    assert weights[UNEVEN].mean().item() == pytest.approx(1.0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("pieces", [1, 3])
def test_the_step_is_torchs_weighted_loss(smoothing, pieces):
    recipe = dataclasses.replace(TINY, optim=SGD(lr=0.1), schedule=Constant(), ema_decay=None)
    step = make_step(dataclasses.replace(recipe, label_smoothing=smoothing))
    step.net.eval()
    step.training_mode = lambda: None  # stay in eval mode: the same statistics for any pieces
    step.class_weights = torch.tensor([0.2, 3.0, 1.0, 0.5])
    plain = copy.deepcopy(step.net)
    x, y = batch(0, 9)
    total, _ = step([*zip(x.tensor_split(pieces), y.tensor_split(pieces), strict=True)], 9, 0, 0.1)
    loss = F.cross_entropy(plain(x), y, step.class_weights, label_smoothing=smoothing)
    loss.backward()
    assert float(total) / 9 == pytest.approx(loss.item(), rel=1e-5)
    for p, q in zip(plain.parameters(), step.net.parameters(), strict=True):
        torch.testing.assert_close(p - 0.1 * p.grad, q, rtol=1e-5, atol=1e-6)


def test_of_mixed_labels_it_is_torchs_too():
    step = make_step(dataclasses.replace(TINY, ema_decay=None, label_smoothing=0.1))
    step.class_weights = torch.tensor([0.2, 3.0, 1.0, 0.5])
    plain = copy.deepcopy(step.net).train()
    x, y = batch(0)
    targets = 0.7 * F.one_hot(y, 4) + 0.3 * F.one_hot(y.flip(0), 4)
    total, _ = step([(x, targets)], 8, 0, 0.1)
    loss = F.cross_entropy(plain(x), targets, step.class_weights, label_smoothing=0.1)
    assert float(total) / 8 == pytest.approx(loss.item(), rel=1e-5)


def test_every_class_comes_equally_often_and_no_image_twice_before_all_came_once():
    seen = collections.Counter()
    for epoch in range(3):
        draws = balanced(UNEVEN, seed=1, epoch=epoch)
        assert len(draws) == len(set(draws.tolist())) == 78
        ids = draws % 78
        assert set((draws // 78).tolist()) == {0, 1, 2, 3, 4, 5}  # 26 draws from five images take six rounds
        assert torch.bincount(UNEVEN[ids]).tolist() == [26, 26, 0, 26]
        per_image = torch.bincount(ids, minlength=78)
        for label in (1, 3):
            times = per_image[label == UNEVEN]
            assert times.max() - times.min() <= 1
        assert per_image[UNEVEN == 0].max() == 1
        seen.update(ids[UNEVEN[ids] == 0].tolist())
        # The classes are spread over the epoch and do not come one after the other.
        assert len(set(UNEVEN[ids[:15]].tolist())) == 3
        assert not torch.equal(draws, balanced(UNEVEN, seed=1, epoch=epoch + 1))
        assert not torch.equal(draws, balanced(UNEVEN, seed=2, epoch=epoch))
    assert len(seen) > 40  # each epoch draws another part of the large class
    lone = balanced(torch.tensor([0, 0, 0, 1]), seed=1, epoch=0) % 4
    assert lone.tolist().count(3) == 2
    order = Order(78, 10, seed=1, drop_last=False, labels=UNEVEN)
    assert [order.size(i) for i in range(8)] == [10] * 7 + [8]
    parts = [shard(order.batch(order.epoch(0), i), rank, 3) for i in range(8) for rank in range(3)]
    assert torch.equal(torch.cat(parts), balanced(UNEVEN, seed=1, epoch=0))


AUGMENT = Augment(crop_pad_px=4, hflip="random", cutout_px=9, mean=(0.5,), std=(0.25,))
ENCODED = Augment(
    hflip="random", crop_scale=(0.2, 1.0), crop_px=24, resize_eval_px=32, mean=(0.5,), std=(0.25,),
    rand_augment_ops=2, random_erasing_p=0.5,
)  # fmt: skip


def kinds():
    found = ["host", "torch"]
    return [*found, "dali"] if pipelines.has_dali() else found


@pytest.mark.parametrize("encoded", [False, True])
@pytest.mark.parametrize("kind", kinds())
def test_pipelines_agree_and_a_second_draw_of_an_image_is_cropped_anew(kind, encoded, tmp_path):
    split, augment = pictures(78), AUGMENT
    if encoded:
        files = [picture(i) for i in range(78)]
        split = EncodedSplit(files.__getitem__, split.labels, 40, tmp_path, np.array([*map(len, files)]))
        augment = ENCODED
    split = dataclasses.replace(split, labels=UNEVEN.numpy())
    order = Order(78, 26, 3, drop_last=False, labels=UNEVEN)
    s = dataclasses.replace(setting(pictures(78), augment), order=order)
    got = list(pipelines.build(kind, split, s).epoch(1))
    want = list(pipelines.build("host" if encoded else "resident", split, s).epoch(1))
    for (x, labels), (y, wanted) in zip(got, want, strict=True):
        assert torch.equal(labels, wanted)
        assert ((x - y).abs() > (0.1 if encoded else 2e-6)).float().mean() <= (0.02 if encoded else 0)
    images, labels = (torch.cat(t) for t in zip(*got, strict=True))
    draws = order.epoch(1)
    assert torch.equal(labels, UNEVEN[draws % 78])
    rare = (draws % 78 == 77).nonzero()[:, 0]
    assert len(rare) >= 5
    assert len(torch.unique(images[rare].flatten(1), dim=0)) >= 4


@pytest.mark.slow
@pytest.mark.parametrize("what", ["class_weights", "sampler"])
def test_ranks_give_the_one_rank_curve(uneven, tmp_path, what):
    found = []
    for procs, micro in ((1, 0), (2, 7)):
        out = tmp_path / str(procs)
        rows = [(out, procs, micro, str(uneven), what)] * procs
        assert set(finished(start_ranks(ranks_script.trained, *rows, XDG_CACHE_HOME=tmp_path / "cache"))) == {0}
        weights = load_file(sorted((out / "checkpoints").iterdir())[-1] / "model.safetensors")
        found.append(([row["loss"] for row in read_metrics(out / "metrics.jsonl")], weights))
    (losses, weights), (theirs, other) = found
    assert losses == pytest.approx(theirs, rel=2e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-4, atol=1e-6)


def test_a_kill_in_a_balanced_epoch(uneven, spawn, tmp_path):
    data = dataclasses.replace(TINY.data, name="folder", num_classes=3, sampler="balanced", batch_images=16)
    data = dataclasses.replace(data, train_images=None, test_images=None)
    recipe = dataclasses.replace(TINY, data=data, epochs=5)
    common = {"checkpoint_every_steps": 3, "data_dir": str(uneven)}
    spawn(recipe, options(tmp_path / "whole", **common)).join(120)
    process = spawn(recipe, options(tmp_path / "killed", **common))
    wait_for_step(tmp_path / "killed", process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = spawn(recipe, options(tmp_path / "killed", **common))
    process.join(120)
    assert process.exitcode == 0
    assert digests(tmp_path / "killed") == digests(tmp_path / "whole")


def test_both_at_once_are_refused_and_other_words_are_understood(tmp_path):
    with pytest.raises(UsageError, match=r"class_weights and data\.sampler both balanced"):
        words.parse(["--class-weights", "balanced", "--sampler", "balanced"])
    with pytest.raises(UsageError, match="did you mean --class-weights"):
        words.parse(["--class-weight", "balanced"])
    found = words.parse(["--sampler", "balanced"]).recipe
    assert found.data.sampler == "balanced"
    recipe = dataclasses.replace(TINY, class_weights="balanced")
    train(TINY, options(tmp_path))
    with pytest.raises(UsageError, match="class_weights was none, is balanced"):
        train(recipe, options(tmp_path))
