"""What imnet-eval and imnet-predict print and write for an ensemble, and the ensembles that they refuse."""

import dataclasses
import json
import re
import shutil
from itertools import product

import pytest
import torch
from PIL import Image
from test_fusion_weights import by_hand, top1

import imnet
from imnet import cli, ensemble, fusion
from imnet.errors import DataError, UsageError
from imnet.fused import CHOSEN, Ensemble
from imnet.recipe import SGD, Augment, Cosine, Data, Recipe
from imnet.report.read import load
from imnet.runfolder import bands_in

BANDS = Recipe(
    name="fused",
    model="speednet",
    model_options={"width": 8},
    data=Data(
        name="shapes", image_px=16, num_classes=4, batch_images=16, train_images=400, test_images=120, val_images=100
    ),
    augment=Augment(mean=(0.5,), spectral_r=2, spectral_std=(2.1, 0.2, 0.1, 0.2)),
    optim=SGD(lr=0.2, momentum=0.9),
    schedule=Cosine(),
    epochs=4,
)
HOW = {"device": "cpu", "precision": "fp32", "threads": 1}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ensemble")
    made = imnet.train_ensemble(BANDS, out=folder, **HOW)
    assert list(made.bands) == [0, 1, 2, 3]
    return folder


def test_every_band_is_what_its_own_evaluation_says(trained):
    whole = Ensemble(trained)
    dataset, options = whole.first.dataset(None, "cpu")
    logits, labels = whole.logits(dataset, options, "test")
    assert logits.shape == (4, 120, 4)
    for one, run in zip(logits, whole.bands.values(), strict=True):
        own = json.loads((run.path / "evaluation.json").read_text())
        got = fusion.score(one, labels)
        assert (got.top1, got.top5) == (own["top1"], own["top5"])
        assert got.loss == pytest.approx(own["loss"], rel=1e-6)


def test_imnet_eval_says_who_chose_what_and_what_it_cost(trained, tmp_path, capsys):
    data = dataclasses.replace(BANDS.data, val_images=None)
    whole = dataclasses.replace(BANDS, name="whole", augment=Augment(mean=(0.5,), std=(0.3,)), data=data)
    imnet.train(whole, out=tmp_path / "whole", **HOW)
    capsys.readouterr()
    argv = [str(trained), "--device", "cpu", "--baseline", str(tmp_path / "whole")]
    assert cli.eval_main(argv) == 0
    said = capsys.readouterr().out
    assert "held out   100 training images rank the bands and choose" in said
    found = json.loads((trained / "fusion.json").read_text())
    rules = {rule["name"].partition(", p =")[0]: rule for rule in found["rules"]}
    assert rules["geometric"]["chosen_on"] == rules["fitted"]["chosen_on"] == "held-out images"
    assert rules["the document's way: geometric"]["chosen_on"] == "the test images"
    assert rules["average"]["chosen_on"] == ""
    assert rules["average"]["weights"] == dict.fromkeys("0123", 0.25)
    assert rules["band 2"]["weights"] == {"2": 1.0}
    # The same figures, computed by hand from the logits.
    dataset, options = Ensemble(trained).first.dataset(None, "cpu")
    (val, val_labels), (test, labels) = (Ensemble(trained).logits(dataset, options, s) for s in ("val", "test"))
    ranked = sorted(range(4), key=lambda k: -top1(val[k].numpy(), val_labels.numpy()))
    assert rules["geometric"]["test"]["top1"] == top1(by_hand(test.numpy(), ranked, 0.3), labels.numpy())
    theirs = sorted(range(4), key=lambda k: -top1(test[k].numpy(), labels.numpy()))
    best = max(top1(by_hand(test.numpy(), theirs[:n], p), labels.numpy()) for n, p in product(range(1, 5), fusion.GRID))
    assert rules["the document's way: chosen"]["test"]["top1"] == best
    costs = {row["name"]: row for row in found["costs"]}
    assert [name.partition(", p =")[0] for name in costs][4:] == [
        "baseline whole",
        "average",
        CHOSEN,
        "the document's way: chosen",
    ]
    assert costs["average"]["parameters"] == 4 * costs["band 0"]["parameters"] == 4 * 9528
    assert costs["average"]["forward_flops"] == pytest.approx(costs["baseline whole"]["forward_flops"], rel=0.01)
    speeds = [costs[f"band {k}"]["images_per_s"] for k in range(4)]
    assert costs["average"]["images_per_s"] == pytest.approx(1 / sum(1 / speed for speed in speeds))
    assert costs["average"]["device_hours"] == pytest.approx(sum(costs[f"band {k}"]["device_hours"] for k in range(4)))
    seconds = json.loads((trained / "band-2" / "run.json").read_text())["seconds"]
    assert costs["band 2"]["device_hours"] == pytest.approx(seconds / 3600, rel=0.1)
    assert "baseline whole" in said
    assert said.endswith(f"written    {trained / 'fusion.json'}\n")
    _, fused, cost = ([re.split(r" {2,}", line) for line in part.splitlines()] for part in said.split("\n\n"))
    assert [cells[2] for cells in cost[1:-1]] == [f"{row['forward_flops'] / 1e9:.3f}" for row in found["costs"]]
    for cells, rule in zip(fused[1:], found["rules"], strict=True):
        parts, held = rule["test"], f"{rule['val']['top1']:.2%}"
        figures = [
            f"{parts['top1']:.2%}",
            f"{parts['top5']:.2%}",
            f"{parts['loss']:.4f}",
            held,
            rule["chosen_on"] or "-",
        ]
        weights = [f"{band}: {weight:.3f}" for band, weight in rule["weights"].items()]
        assert cells == [rule["name"], *figures, *weights * (len(weights) > 1 or rule["chosen_on"] != "")]
        assert list(rule["weights"].values()) == sorted(rule["weights"].values(), reverse=True)


def test_without_held_out_images_it_says_so(trained, tmp_path, capsys):
    imnet.train_ensemble(dataclasses.replace(BANDS, data=dataclasses.replace(BANDS.data, val_images=None)),
                         bands="0,2", out=tmp_path, **HOW)  # fmt: skip
    capsys.readouterr()
    assert cli.eval_main([str(tmp_path), "--device", "cpu", "--p", "0.5"]) == 0
    said = capsys.readouterr().out
    assert "no training image was held out (--data.val_images N)" in said
    names = [rule["name"] for rule in json.loads((tmp_path / "fusion.json").read_text())["rules"]]
    assert names[:4] == ["band 0", "band 2", "average", "the document's way: geometric, p = 0.5"]
    assert "fitted" not in said
    assert "2 of 4 bands" in said
    assert re.search(r"average .*  -  +-  +0: 0.500  2: 0.500\n", said)


def test_tables_that_nobody_reads_are_written(trained, unread):
    (trained / "fusion.json").unlink(missing_ok=True)
    with unread():
        assert cli.eval_main([str(trained), "--device", "cpu"]) == 74
    assert len(json.loads((trained / "fusion.json").read_text())["costs"]) >= 4


def test_imnet_predict_sums_the_logits(trained, tmp_path, capsys):
    cli.eval_main([str(trained), "--device", "cpu"])
    whole = Ensemble(trained)
    dataset, options = whole.first.dataset(None, "cpu")
    logits, _ = whole.logits(dataset, options, "test")
    weights = torch.zeros(4, dtype=torch.float64)
    weights[list(whole.weights())] = torch.tensor(list(whole.weights().values()), dtype=torch.float64)
    chosen = next(
        r for r in json.loads((trained / "fusion.json").read_text())["rules"] if r["name"].startswith("chosen")
    )
    assert {str(k): w for k, w in whole.weights().items()} == chosen["weights"]
    shares = fusion.fuse(logits, weights).softmax(1)
    pixels = dataset.test.images[7]
    Image.fromarray(pixels).save(tmp_path / "one.png")
    capsys.readouterr()
    assert cli.predict_main([str(trained), str(tmp_path / "one.png"), "--json", "--device", "cpu", "--top", "4"]) == 0
    top = json.loads(capsys.readouterr().out)["top"]
    found = {row["class"]: row["probability"] for row in top}
    for name, share in zip(dataset.class_names, shares[7].tolist(), strict=True):
        assert found[name] == pytest.approx(share, abs=1e-5)
    (trained / "fusion.json").unlink()
    assert whole.weights() == dict.fromkeys(range(4), 0.25)


def test_a_band_is_read_like_any_run(trained, tmp_path, capsys):
    band = trained / "band-2"
    assert cli.eval_main([str(band), "--device", "cpu"]) == 0
    assert imnet.load_run(str(band)).recipe == ensemble.of_band(BANDS, 2)
    assert cli.report_main([str(trained), "--out", str(tmp_path / "all.html")]) == 0
    assert (tmp_path / "all.html").read_text().count("band") >= 4


@pytest.mark.parametrize(
    "words", ["--data x", "--split train", "--out x.csv", "--ten-crop", "--no-flip", "--p 1", "--p 0", "--gpus 1"]
)
def test_what_an_ensemble_cannot_be_asked_is_one_line(trained, words, capsys):
    assert cli.eval_main([str(trained), *words.split()]) == 2
    said = capsys.readouterr().err
    assert f"got {words.split()[0]}" in said
    assert words.startswith(("--p", "--gpus")) or said.endswith(f"imnet-eval {trained}/band-0\n")
    assert said.count("\n") == 1


def test_one_network_cannot_be_asked_either(trained, capsys):
    assert cli.eval_main([str(trained / "band-0"), "--p", "0.5"]) == 2
    assert "for one network" in capsys.readouterr().err
    assert cli.export_main([str(trained), "--to", "safetensors"]) == 65
    assert "an ensemble, not one run; give the folder of one band" in capsys.readouterr().err
    with pytest.raises(UsageError, match="train_ensemble"):
        imnet.train(BANDS, bands="all")


def test_bands_of_different_ensembles_are_refused(trained, tmp_path):
    folder = tmp_path / "mixed"
    shutil.copytree(trained, folder)
    info = json.loads((folder / "band-3" / "run.json").read_text())
    info["recipe"]["epochs"] = 9
    (folder / "band-3" / "run.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"band 3 belongs to another ensemble \(epochs was 4, is 9\)"):
        Ensemble(folder)
    assert list(bands_in(folder)) == [0, 1, 2, 3]
    # If folder names were exchanged, a network would be shown another one's band.
    shutil.rmtree(folder / "band-3")
    for old, new in ((1, 7), (2, 1), (7, 2)):
        (folder / f"band-{old}").rename(folder / f"band-{new}")
    with pytest.raises(DataError, match="the folder is called band-1, its run saw band 2"):
        Ensemble(folder)
    with pytest.raises(DataError, match="not an ensemble"):
        Ensemble(tmp_path)


def test_what_was_chosen_with_other_weights_is_not_taken(trained, tmp_path, capsys):
    folder, picture = tmp_path / "ensemble", tmp_path / "one.png"
    shutil.copytree(trained, folder)
    Image.new("RGB", (16, 16)).save(picture)
    assert cli.eval_main([str(folder), "--device", "cpu", "--checkpoint", "3"]) == 0
    assert cli.predict_main([str(folder), str(picture), "--device", "cpu"]) == 65
    said = capsys.readouterr().err
    assert "was chosen with other weights than the folder's newest (band 0, 1, 2, 3); choose again: imnet-eval" in said
    assert cli.eval_main([str(folder), "--device", "cpu"]) == 0
    assert cli.predict_main([str(folder), str(picture), "--device", "cpu"]) == 0
    shutil.rmtree(folder / "band-2")
    assert cli.predict_main([str(folder), str(picture), "--device", "cpu"]) == 65
    assert "(band 2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"rules": [{}]}', '{"bands": {}, "costs": [], "rules": [{"weights": 1}]}']
)
def test_a_damaged_choice_is_one_line(trained, tmp_path, text, capsys):
    shutil.copytree(trained, tmp_path / "ensemble")
    (tmp_path / "ensemble" / "fusion.json").write_text(text)
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    assert cli.predict_main([str(tmp_path / "ensemble"), str(tmp_path / "one.png"), "--device", "cpu"]) == 65
    said = capsys.readouterr().err
    assert "fusion.json: " in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "rule",
    [{"weights": {}}, {"weights": {"0": None}}, {"weights": {"0": "1"}}, {"weights": {"0": float("nan")}},
     {"weights": {"0": [1]}}, {"weights": {"0": 10**400}}, {"weights": {"7": 1.0}}, {"test": [1]}],
    ids=str,
)  # fmt: skip
def test_a_choice_that_names_no_weights_is_one_line(trained, tmp_path, rule, capsys):
    folder = tmp_path / "ensemble"
    shutil.copytree(trained, folder)
    assert cli.eval_main([str(folder), "--device", "cpu"]) == 0
    found = json.loads((folder / "fusion.json").read_text())
    next(row for row in found["rules"] if row["name"].startswith("chosen")).update(rule)
    (folder / "fusion.json").write_text(json.dumps(found))
    Image.new("RGB", (16, 16)).save(tmp_path / "one.png")
    capsys.readouterr()
    assert cli.predict_main([str(folder), str(tmp_path / "one.png"), "--device", "cpu"]) == 65
    said = capsys.readouterr().err
    assert "fusion.json: " in said
    assert said.count("\n") == 1


def test_bands_that_are_not_at_their_end_have_an_accuracy_and_a_note(trained, tmp_path, capsys):
    folder = tmp_path / "ensemble"
    shutil.copytree(trained, folder)
    for run in Ensemble(folder).bands.values():
        (run.path / "run.json").write_text(json.dumps(run.info | {"status": "running", "num_ranks": 2}))
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        (run.path / "metrics.jsonl").write_text("".join(f"{line}\n" for line in lines if '"train"' in line))
    assert cli.eval_main([str(folder), "--device", "cpu", "--baseline", str(folder / "band-1")]) == 0
    said = capsys.readouterr().out
    assert "not at the end of their training: bands 0 1 2 3" in said
    assert "not at the end of its training: the baseline" in said
    assert "nan" not in said
    assert " more" not in said
    (found,) = [json.loads((folder / "fusion.json").read_text(), parse_constant=pytest.fail)]
    alone = {rule["name"]: rule["test"]["top1"] for rule in found["rules"]}
    hours = [2 * load(run.path).total_seconds / 3600 for run in Ensemble(folder).bands.values()]
    assert [row["device_hours"] for row in found["costs"][:4]] == pytest.approx(hours)
    assert [row["top1"] for row in found["costs"][:5]] == [*(alone[f"band {band}"] for band in range(4)), None]


def test_a_baseline_that_was_judged_on_other_images_is_refused(trained, tmp_path, capsys):
    shutil.copytree(trained / "band-0", tmp_path / "other")
    info = json.loads((tmp_path / "other" / "run.json").read_text())
    info["data"]["test_images"] = 119
    (tmp_path / "other" / "run.json").write_text(json.dumps(info))
    assert cli.eval_main([str(trained), "--device", "cpu", "--baseline", str(tmp_path / "other")]) == 65
    assert "(shapes 119 test set) than the ensemble (shapes 120 test set)" in capsys.readouterr().err


def test_bands_may_be_given_as_numbers(trained):
    imnet.train_ensemble(BANDS, [3, 0], out=trained, **HOW)
    with pytest.raises(UsageError, match=r"bands = 0,9 of 4"):
        imnet.train_ensemble(BANDS, (0, 9), out=trained, **HOW)
