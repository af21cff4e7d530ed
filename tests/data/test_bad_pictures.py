"""Stored pictures that can no longer be decoded: training uses others in their place, evaluation leaves them out."""

import csv
from dataclasses import replace

import pytest
import torch
from torch import nn

from imnet import recipes, train, train_ensemble
from imnet.cli import eval_main
from imnet.data import pipelines
from imnet.data.tool import main as imnet_data
from imnet.device import Place
from imnet.errors import DataError
from imnet.evaluate import evaluate
from imnet.fused import Ensemble
from imnet.launch import World
from imnet.recipe import Augment
from imnet.run import Run
from tests.data.making import class_files, picture, write_tree
from tests.data.test_encoded import PAD_FLIP, RANDOM_CROP, encoded_split, setting

KINDS = ("host", "torch", *(["dali"] if pipelines.has_dali() else []))
CPU32 = Place(torch.device("cpu"), "fp32", "asked for")


def damaged(*bad, count=3000):
    """A split of ``count`` pictures, of which those numbered ``bad`` are cut short."""
    good = [picture(i, 40, 30) for i in range(30)] * (count // 30)
    return encoded_split([data[:40] if i in bad else data for i, data in enumerate(good)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_picture_stops_or_another_is_trained_on_and_it_is_counted(kind):
    split, pieces = damaged(7), torch.arange(16).split(16)
    with pytest.raises(DataError, match=r"^x\.imnet: picture 7: .*--on-bad-image skip"):
        list(pipelines.build(kind, split, setting(PAD_FLIP, split)).stream(pieces, 0, True))
    pipeline = pipelines.build(kind, split, setting(PAD_FLIP, split, on_bad="skip", workers=2))
    _, labels = next(pipeline.stream(pieces, 0, True))
    assert labels.tolist() == [i % 3 for i in (*range(7), 8, *range(8, 16))]
    _, labels = next(pipeline.stream(pieces, 0, False))
    assert labels.tolist() == [-1 if i == 7 else i % 3 for i in range(16)]
    assert list(pipeline.decoder.bad) == [7]


def test_more_than_one_in_a_thousand_is_too_many():
    split = damaged(7, 100, 200, 300)
    pipeline = pipelines.build("host", split, setting(PAD_FLIP, split, on_bad="skip"))
    with pytest.raises(DataError, match="4 of 3000 pictures cannot be decoded"):
        list(pipeline.stream(torch.arange(400).split(20), 0, True))


class Colours(nn.Module):
    """A network whose four logits depend only on an image's mean colours, so that images do not affect each other."""

    def forward(self, x):
        red, green, blue = x.double().mean((2, 3)).unbind(1)
        return torch.stack([red, green, blue, red - green], 1)


@pytest.mark.parametrize("augment", [PAD_FLIP, RANDOM_CROP], ids=["squashed", "cropped"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [0, 8, 11])
def test_an_evaluation_is_that_of_the_set_without_the_bad_picture(kind, augment, bad):
    pictures = [picture(i, 40, 30) for i in range(12)]
    whole = encoded_split(pictures)
    pictures[bad] = pictures[bad][:-200]
    split = encoded_split(pictures)
    kept = [i for i in range(12) if i != bad]
    made = [
        pipelines.build(kind, part, setting(replace(augment, cutout_px=0), part, on_bad="skip"))
        for part in (split, whole)
    ]
    found, wanted = (evaluate(Colours(), data, CPU32, World(), 3, 5, each=True) for data in made)
    assert found.num_images == sum(found.support) == sum(row[0] for row in found.bins) == 11
    assert found.predictions.labels[bad] == -1
    for name in ("labels", "predicted", "probability", "loss"):
        one, other = (getattr(part.predictions, name)[kept] for part in (found, wanted))
        assert torch.equal(one, other)
    right = (wanted.predictions.labels == wanted.predictions.predicted)[kept]
    assert found.top1 == pytest.approx(right.double().mean().item())
    assert found.loss == pytest.approx(wanted.predictions.loss[kept].double().mean().item())
    assert found.worst == [row for row in wanted.worst if row["index"] != bad]
    inside = wanted.predictions.predicted[kept] < 3
    assert sum(found.confusion.images) == inside.sum()


@pytest.fixture
def store(tmp_path):
    """(the folder of a packed set, the number of its test picture whose bytes after the first 200 are zeros)."""
    files = class_files("train", 16) | class_files("val", 4, seed=900)
    assert imnet_data(["pack", str(write_tree(tmp_path / "src", files)), str(tmp_path / "set")]) == 0
    picked = files["val/n01530575/n01530575_2.JPEG"]
    for path in (tmp_path / "set").glob("*.imnet"):
        path.write_bytes(path.read_bytes().replace(picked[200:], bytes(len(picked) - 200)))
    return tmp_path / "set", 6


def recipe(where, **augment):
    base = recipes["quickstart"]
    kept = {"name": f"packed:{where}", "image_px": 24, "num_classes": 3, "channels": 3, "batch_images": 16}
    held = replace(base.data, train_images=None, test_images=None, **kept)
    made = Augment(**({"hflip": "random", "mean": (0.5,), "std": (0.25,)} | augment))
    return replace(base, model="wrn10_1", augment=made, data=held, epochs=1)


def test_a_run_and_its_table_leave_the_picture_out(store, tmp_path, capsys):
    where, bad = store
    options = {"device": "cpu", "precision": "fp32", "threads": 1}
    with pytest.raises(DataError, match=f"picture {bad}: .*--on-bad-image skip"):
        train(recipe(where), out=tmp_path / "stopped", **options)
    run = train(recipe(where), out=tmp_path / "run", on_bad_image="skip", **options)
    assert run.info["bad_images"] == 1
    assert Run(tmp_path / "run").evaluate(device_name="cpu").num_images == 11
    capsys.readouterr()
    table = tmp_path / "all.csv"
    assert eval_main([str(run.path), "--device", "cpu", "--out", str(table)]) == 0
    assert [int(row["image"]) for row in csv.DictReader(table.open())] == [i for i in range(12) if i != bad]


def test_an_ensemble_is_fused_without_the_picture(store, tmp_path):
    where, bad = store
    bands = recipe(where, spectral_r=2, spectral_std=(2.1, 0.2, 0.1, 0.2))
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "on_bad_image": "skip", "bands": "1,2"}
    train_ensemble(bands, out=tmp_path / "bands", **options)
    found = Ensemble(tmp_path / "bands")
    dataset, how = found.first.dataset(None, "cpu", None)
    logits, labels = found.logits(dataset, how, "test")
    assert logits.shape == (2, 11, 3)
    assert labels.tolist() == [label for i, label in enumerate(dataset.test.labels) if i != bad]
