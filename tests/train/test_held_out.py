"""Images held out of train (--data.val_images): which they are, that none is trained on, that they choose the best."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from imnet import data
from imnet.cli import eval_main
from imnet.data.base import Split, hold_out, hold_out_images
from imnet.errors import DataError, UsageError
from imnet.metrics import read_metrics
from imnet.report import compare, render, summary
from imnet.report.read import load
from imnet.run import Run
from imnet.start import train

from .conftest import TINY, options


def numbered(labels):
    """A split whose image i has the pixels of the number i."""
    images = np.arange(len(labels), dtype=np.uint32).view(np.uint8).reshape(-1, 1, 1, 4).copy()
    return Split(images, np.asarray(labels, dtype=np.int64))


def ids(split):
    return split.images.reshape(-1, 4).copy().view(np.uint32).ravel()


@pytest.mark.parametrize(("total", "count", "seed"), [(100_000, 10_000, 123), (1000, 1, 0), (7, 6, 2**40)])
def test_the_images_are_those_of_torchs_random_split(total, count, seed):
    rest, held = hold_out_images(numbered(np.arange(total) % 5), count, seed, stratified=False)
    generator = torch.Generator().manual_seed(seed)
    theirs = torch.utils.data.random_split(range(total), [total - count, count], generator=generator)
    assert set(ids(rest).tolist()) == set(theirs[0].indices)
    assert set(ids(held).tolist()) == set(theirs[1].indices)
    if seed == 123:  # the ten runs drew from torch's global generator, with the same result
        torch.manual_seed(seed)
        assert torch.utils.data.random_split(range(total), [total - count, count])[1].indices == theirs[1].indices


def test_a_stratified_part_has_exactly_that_many_and_every_class_its_share():
    labels = np.repeat([0, 1, 2, 3], [50, 31, 18, 1])
    rest, held = hold_out_images(numbered(labels), 10, seed=1, stratified=True)
    # The shares are 5, 3.1, 1.8 and 0.1; class 2 has the largest remainder.
    assert np.bincount(held.labels, minlength=4).tolist() == [5, 3, 2, 0]
    assert sorted([*ids(rest), *ids(held)]) == list(range(100))
    assert not np.array_equal(ids(held), ids(hold_out_images(numbered(labels), 10, 2, stratified=True)[1]))
    # hold_out makes the test part of a set that has none; it is stratified too.
    assert np.bincount(hold_out(numbered(labels), 0.1, 0)[1].labels, minlength=4).tolist() == [5, 3, 2, 0]


@pytest.mark.parametrize("count", [0, 256, 10**6])
def test_a_count_that_leaves_nothing_is_one_line(count):
    with pytest.raises(UsageError, match=r"val_images"):
        data.load("shapes", image_px=16, num_classes=4, train_images=256, test_images=8, val_images=count)


def test_more_than_there_are_is_refused_before_a_set_is_packed(tmp_path, monkeypatch):
    from PIL import Image

    for part, count in (("train", 3), ("val", 2)):
        folder = tmp_path / "imagenet" / part / "n00000001"
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (20, 20), (40 * i, 0, 0)).save(folder / f"{i}.png")
    monkeypatch.setattr("imnet.data.sets.packed.cache_dir", lambda: tmp_path / "cache")
    asked = {"data_dir": tmp_path / "imagenet", "image_px": 16}
    with pytest.raises(UsageError, match="val_images = 3 of 3 training images"):
        data.load("imagenet", **asked, val_images=3)
    assert not (tmp_path / "cache").exists()
    assert len(data.load("imagenet", **asked, val_images=2).val) == 2


def test_what_is_held_out_is_said_and_marks_the_data():
    sizes = {"image_px": 16, "num_classes": 4, "train_images": 64, "test_images": 8}
    plain, held = (data.load("shapes", **sizes, **more) for more in ({}, {"val_images": 16, "val_seed": 3}))
    other = data.load("shapes", **sizes, val_images=16, val_seed=4)
    assert (plain.val, len(held.train), len(held.val), len(held.test)) == (None, 48, 16, 8)
    assert len({plain.fingerprint, held.fingerprint, other.fingerprint}) == 3
    assert "validation: 16 of 64 training images held out, as torch's random_split draws them, seed 3" in held.notes


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("held") / "run"
    recipe = dataclasses.replace(TINY, data=dataclasses.replace(TINY.data, val_images=96, val_stratified=True))
    train(recipe, options(folder, eval_every_epochs=1))
    return folder


def test_a_run_judges_both_and_chooses_by_what_was_held_out(held_out_run, capsys):
    lines = read_metrics(held_out_run / "metrics.jsonl")
    kinds = {kind: [line for line in lines if line["kind"] == kind] for kind in ("train", "val", "eval")}
    assert [line["epoch"] for line in kinds["val"]] == [line["epoch"] for line in kinds["eval"]] == [1, 2, 3]
    # The accuracies are fractions of 96 and of 101 images.
    assert all(line["top1"] * 96 == pytest.approx(round(line["top1"] * 96)) for line in kinds["val"])
    assert all(line["top1"] * 101 == pytest.approx(round(line["top1"] * 101)) for line in kinds["eval"])
    info = json.loads((held_out_run / "run.json").read_text())
    assert [info["data"][f"{part}_images"] for part in ("train", "val", "test")] == [160, 96, 101]
    run = load(held_out_run)
    first = max(kinds["val"], key=lambda line: line["top1"])["epoch"]
    assert run.best.epoch == first
    assert run.best.top1 == kinds["eval"][first - 1]["top1"]
    told = summary(held_out_run)
    assert "selected on the validation images" in told
    assert "160 train, 96 val, 101 test" in told
    page = render(held_out_run).read_text()
    assert "Top-1 on the validation images" in page
    assert "selected on the test set" not in page


@pytest.mark.parametrize("word", ["val", "validation"])
def test_imnet_eval_judges_what_was_held_out(held_out_run, word, capsys):
    assert eval_main([str(held_out_run), "--split", word, "--no-flip", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.split()[:2] == ["images", "96"]
    found = json.loads((held_out_run / "evaluation-val.json").read_text())
    last = [line for line in read_metrics(held_out_run / "metrics.jsonl") if line["kind"] == "val"][-1]
    assert (found["num_images"], found["top1"]) == (96, last["top1"])


def test_the_best_checkpoint_is_the_one_of_the_held_out_images(held_out_run, monkeypatch):
    """Held-out images choose epoch 1, whose checkpoint is not among the newest two; test images would choose 3."""
    top1 = {("val", 1): 0.9, ("eval", 1): 0.1, ("val", 3): 0.2, ("eval", 3): 0.8}
    lines = [{"kind": kind, "epoch": epoch, "step": 0, "top1": value} for (kind, epoch), value in top1.items()]
    monkeypatch.setattr(Run, "metrics", property(lambda self: lines))
    with pytest.raises(DataError, match="the best, epoch 1 is kept"):
        Run(held_out_run).model("best")


def test_after_a_change_of_the_held_out_images_only_those_choose_the_best(tmp_path):
    few = dataclasses.replace(TINY.data, train_images=64, test_images=20, val_images=20)
    first = dataclasses.replace(TINY, data=few, epochs=1)
    train(first, options(tmp_path))
    line = json.dumps({"kind": "val", "step": 0, "epoch": 1, "loss": 0.1, "top1": 1.0, "top5": 1.0, "seconds": 0.1})
    other = dataclasses.replace(first, data=dataclasses.replace(few, val_seed=1), epochs=2)
    train(other, options(tmp_path, allow_change=True))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(f"{line}\n")
    assert json.loads((tmp_path / "run.json").read_text())["best"]["epoch"] == 2
    assert load(tmp_path).best.epoch == 2
    Run(tmp_path).model("best")


def test_training_accuracy_is_that_of_the_steps(tmp_path):
    """With a learning rate near 0 and no augmentation it is the initial network's accuracy on those images."""
    plain = dataclasses.replace(TINY.augment, crop_pad_px=0, hflip="none", cutout_px=0)
    still = dataclasses.replace(TINY, augment=plain, optim=dataclasses.replace(TINY.optim, lr=1e-12), epochs=1)
    train(still, options(tmp_path / "run"))
    lines = [line for line in read_metrics(tmp_path / "run" / "metrics.jsonl") if line["kind"] == "train"]
    from imnet import models
    from imnet.data.order import Order

    torch.manual_seed(still.seed)
    net = models.build("wrn10_1", 4).train()
    images = data.load("shapes", image_px=16, num_classes=4, train_images=256, test_images=101, seed=0).train
    order = Order(256, 32, still.seed)
    right = []
    for step in range(8):
        rows = order.batch(order.epoch(0), step)
        x = (torch.from_numpy(images.images)[rows].permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.25
        right.append(int((net(x).argmax(1) == torch.from_numpy(images.labels)[rows]).sum()))
    assert [line["top1"] for line in lines] == [sum(right[i : i + 2]) / 64 for i in range(0, 8, 2)]


def test_mixed_images_have_no_training_accuracy(tmp_path):
    recipe = dataclasses.replace(TINY, mixup_alpha=0.2, epochs=1)
    train(recipe, options(tmp_path / "run"))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert {line["top1"] for line in lines if line["kind"] == "train"} == {None}
    assert load(tmp_path / "run").train_top1 == []


def test_both_plots_of_training_and_validation_come_out_of_one_command(held_out_run, tmp_path):
    train(dataclasses.replace(TINY, seed=8), options(tmp_path / "other", eval_every_epochs=1))
    text = compare([held_out_run, tmp_path / "other"], tmp_path / "both.html").read_text()
    for title in ("Accuracy, training and validation", "Loss, training and validation"):
        assert title in text
    assert "in 1 of 2 runs the test set, since nothing was held out of train" in text
    assert "(on the validation images)" in text
    run = load(held_out_run)
    assert [epoch for epoch, _ in run.train_top1] == [1.0, 2.0, 3.0]
    assert run.train_loss[0][1] > run.train_loss[2][1]


def test_classes_that_a_part_has_no_image_of_are_counted():
    def note(count):
        sizes = {"image_px": 12, "num_classes": 10, "train_images": 40, "test_images": 10}
        return data.load("shapes", **sizes, val_images=count, val_seed=0, val_stratified=True).notes[-1]

    assert note(3).endswith("the same share of every class, seed 0; of 7 classes no image is held out")
    assert note(38).endswith("seed 0; of 8 classes no image is left to train")
    assert note(10).endswith("seed 0")
