"""--find-lr, --find-batch-size and --lr-base-images: what is suggested, refused and left behind."""

import dataclasses
import math
import os

import pytest
import torch
from PIL import Image
from torch import nn

from imnet import find, models, options
from imnet.cli import train_main
from imnet.device import Place
from imnet.errors import UsageError
from imnet.mixing import Mixing
from imnet.recipe import SGD, Constant
from imnet.recipe_json import config_hash
from imnet.start import train

from . import conftest
from .conftest import TINY

SMALL = ["--data.train_images", "64", "--data.test_images", "20", "--data.image_px", "12", "--batch-size", "16"]
SMALL += ["--device", "cpu", "--threads", "1"]


def test_the_whole_command_leaves_a_picture_and_no_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = [*SMALL, "--lr", "0.3", "--micro-batch-images", "5", "--ema-decay", "0.9", "--out", "run"]
    small += ["--lr-base-images", "32"]
    assert train_main(["--find-lr", *small]) == 0
    out = capsys.readouterr().out
    assert os.listdir(tmp_path) == ["find-lr.png"]
    assert Image.open("find-lr.png").size[0] > 500
    first, second, third = out.splitlines()
    assert first.startswith("lr         0.15 in the recipe; the loss falls steepest at ")
    assert second.startswith("try        --lr ")
    suggested = float(second.split()[2].rstrip(","))
    assert find.FIRST_LR < suggested / 2 < find.LAST_LR
    assert suggested == pytest.approx(
        2 * float(first.split(" at ")[1].split()[0]), rel=0.1
    )  # of 32 images, tried on 16
    assert third == "picture    find-lr.png; no run is made, so run is left alone"
    options.parse(["--lr", str(suggested)])


def test_of_an_ensemble_one_band_is_tried_and_said(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    small = ["--augment.spectral_r", "2", "--model_options.width", "4", *SMALL, "--data.image_px", "24"]
    assert train_main(["--find-lr", "--bands", "2,3", *small]) == 0
    together = capsys.readouterr().out.splitlines()
    assert together[0] == "bands      2 alone was tried, one network of 2; --band K tries another"
    assert together[-1] == "picture    find-lr.png"
    assert train_main(["--find-lr", "--band", "2", *small]) == 0
    assert capsys.readouterr().out.splitlines() == together[1:]


class Valley:
    """A step whose loss is a known function of the learning rate: from 2 to 1 around ``middle``, then it explodes."""

    def __init__(self, middle):
        self.middle, self.seen = middle, []

    def __call__(self, pieces, images, number, rate):
        self.seen.append(rate)
        x = math.log10(rate / self.middle)
        loss = 2 - 1 / (1 + math.exp(-6 * x)) + 0.01 * (-1) ** number + (100.0 if x > 1.5 else 0.0)
        return torch.tensor(loss * images), torch.tensor(float(x > 1.6))


@pytest.mark.parametrize("middle", [1e-4, 3e-3, 0.1])
def test_the_suggestion_is_where_the_loss_falls_fastest(middle):
    step, batch = Valley(middle), (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    curve = find.range_test(step, (batch for _ in range(1000)), Mixing(TINY, 0), None)
    assert curve.suggested == pytest.approx(middle, rel=0.4)
    assert step.seen[0] == find.FIRST_LR
    assert step.seen[-1] < 60 * middle  # it stopped where the loss exploded
    assert len(curve.lrs) == len(step.seen) - 1
    ratios = [b / a for a, b in zip(step.seen, step.seen[1:], strict=False)]
    assert max(ratios) == pytest.approx(min(ratios))
    assert max(ratios) == pytest.approx((find.LAST_LR / find.FIRST_LR) ** (1 / (find.NUM_STEPS - 1)))
    assert curve.losses[0] == pytest.approx(2, abs=0.02)  # of an image, not of the batch


@pytest.mark.parametrize(("loss", "bad"), [(1.0, 1.0), (math.nan, 0.0), (math.inf, 0.0), (4.1, 0.0)])
def test_it_ends_at_a_step_that_is_not_finite_or_diverges(loss, bad):
    def step(pieces, images, number, rate):
        at = {0: 2.0, 5: loss}.get(number, 1.0)
        return torch.tensor(images * at), torch.tensor(bad if number == 5 else 0.0)

    batch = (torch.zeros(4, 3, 8, 8), torch.zeros(4, dtype=torch.int64))
    curve = find.range_test(step, (batch for _ in range(1000)), Mixing(TINY, 0), None)
    assert curve.losses == [2.0, 1.0, 1.0, 1.0, 1.0]
    assert len(curve.lrs) == 5


def test_a_loss_that_never_falls_suggests_nothing():
    assert find.Curve([10.0**-i for i in range(30, 0, -1)], [1.0 + 0.01 * i for i in range(30)]).suggested is None
    assert find.Curve([1e-6, 1e-5], [1.0, 0.5]).suggested is None


def test_a_test_that_suggests_nothing_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(find, "NUM_STEPS", find.WINDOW - 1)  # too few for a mean
    assert train_main(["--find-lr", *SMALL]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first == "lr         the loss falls nowhere in 6 steps of 16 images, lr 1e-06 to 10"
    assert second == "picture    find-lr.png"
    assert os.listdir(tmp_path) == ["find-lr.png"]


@pytest.mark.parametrize("word", ["--find-lr", "--find-batch-size"])
@pytest.mark.parametrize("how", [["--procs", "2"], ["--gpus", "2"], []], ids=["procs", "gpus", "torchrun"])
def test_several_ranks_are_refused(word, how, monkeypatch, capsys):
    launch = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500}
    for name, value in launch.items() if not how else ():
        monkeypatch.setenv(name, str(value))
    assert train_main([word, *how]) == 2
    assert f"got {word} with several ranks; allowed: one" in capsys.readouterr().err


def test_a_batch_size_is_not_probed_on_a_cpu(capsys):
    assert train_main(["--find-batch-size", "--device", "cpu"]) == 69
    assert "--dry-run estimates the memory" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
    ],
)
def test_batches_grow_until_one_does_not_fit(error, monkeypatch):
    class Narrow(nn.Sequential):
        """A network that runs out of memory for more than 20 images."""

        def forward(self, x):
            if len(x) > 20:
                raise error
            return super().forward(x)

    def narrow(name, num_classes, channels, **_):
        return Narrow(nn.Flatten(), nn.Linear(channels * 256, num_classes))

    measured = find.seconds
    monkeypatch.setattr(models, "build", narrow)
    monkeypatch.setattr(find, "seconds", lambda *args: 0.5 if measured(*args) > 0 else 0.0)
    fits, failed = find.grow(TINY, Place(torch.device("cpu"), "fp32", "test"))
    assert [f.images for f in fits] == [2, 4, 8, 16]
    assert failed == 32
    assert [f.images_per_s for f in fits] == [4, 8, 16, 32]
    assert find.grow(TINY, Place(torch.device("cpu"), "fp32", "test"), most=4)[1] is None


def test_the_rate_is_scaled_to_the_batch_and_said_aloud(tmp_path, capsys):
    recipe = dataclasses.replace(TINY, optim=SGD(lr=0.4), schedule=Constant(), lr_base_images=256, epochs=1)
    assert recipe.lr_at(0, 8) == pytest.approx(0.05)
    assert config_hash(recipe, "fp32") != config_hash(dataclasses.replace(recipe, lr_base_images=None), "fp32")
    scaled, given = tmp_path / "scaled", tmp_path / "given"
    train(recipe, conftest.options(scaled))
    assert "lr         0.4 for 256 images a step, scaled linearly: 0.05" in capsys.readouterr().out
    train(dataclasses.replace(recipe, optim=SGD(lr=0.05), lr_base_images=None), conftest.options(given))
    weights = [next(folder.glob("checkpoints/step-*/model.safetensors")).read_bytes() for folder in (scaled, given)]
    assert weights[0] == weights[1]


@pytest.mark.parametrize(("word", "meant"), [
    ("--scale-lr", "--lr-base-images"), ("--lr-find", "--find-lr"), ("--auto-batch", "--find-batch-size")])  # fmt: skip
def test_what_others_call_it(word, meant):
    with pytest.raises(UsageError, match=f"did you mean {meant}"):
        options.parse([word])
