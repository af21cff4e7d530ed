"""imnet-eval on a run's own images and on any others: every figure against a plain computation, and nothing lost."""

import csv
import itertools
import json
import shutil
import tarfile
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import imnet
from imnet import scores
from imnet.classifier import Classifier
from imnet.cli import eval_main, export_main, predict_main
from imnet.data.judged import images_at, part_of
from imnet.data.tool import main as data_main
from imnet.errors import DataError, UsageError
from imnet.from_recipe import build_network, load_data
from imnet.judge import judge_images
from imnet.run import Run
from imnet.run_options import RunOptions

CPU = ["--device", "cpu"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    base = imnet.recipes["quickstart"]
    data = replace(base.data, train_images=128, test_images=64, image_px=16, batch_images=32)
    recipe = replace(base, data=data, augment=replace(base.augment, crop_pad_px=1, cutout_px=0), epochs=2)
    options = {"device": "cpu", "precision": "fp32", "threads": 1, "eval_every_epochs": 1}
    return imnet.train(recipe, out=tmp_path_factory.mktemp("run") / "r", **options)


@pytest.fixture(scope="module")
def split(run):
    return load_data(run.recipe, RunOptions(device="cpu")).test


@pytest.fixture(scope="module")
def folder(run, split, tmp_path_factory):
    """The test images as files, a folder a class: by name, so in another order than the network's."""
    where = tmp_path_factory.mktemp("pictures") / "set"
    names = run.info["data"]["class_names"]
    assert list(names) != sorted(names)
    for i, (pixels, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (where / names[label]).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(where / names[label] / f"{i:03}.png")
    return where


class Plain:
    """All figures in NumPy, float64, from logits (N, outputs) and labels (N,)."""

    def __init__(self, logits, labels, num_classes):
        z = logits.astype(np.float64)
        p = np.exp(z - z.max(1, keepdims=True))
        self.p = p = p / p.sum(1, keepdims=True)
        rows = np.arange(len(labels))
        self.predicted, self.probability = p.argmax(1), p.max(1)
        self.loss = -np.log(p[rows, labels])
        hit = self.predicted == labels
        self.top1, self.top5 = hit.mean(), (p.argsort(1)[:, -5:] == labels[:, None]).any(1).mean()
        self.classes = []
        for c in range(num_classes):
            tp, positive, true = (hit & (labels == c)).sum(), (self.predicted == c).sum(), (labels == c).sum()
            precision, recall = (tp / n if n else None for n in (positive, true))
            # The harmonic mean, where both are there and not both nothing.
            f1 = 0.0 if positive + true else None
            if precision and recall:
                f1 = 2 * precision * recall / (precision + recall)
            self.classes.append((precision, recall, f1, true))
        self.balanced = np.mean([row[1] for row in self.classes if row[3]])
        edges = np.linspace(0, 1, 16)
        self.ece = 0.0
        for low, high in itertools.pairwise(edges):
            inside = (self.probability > low) & (self.probability <= high)
            if inside.any():
                self.ece += inside.mean() * abs(hit[inside].mean() - self.probability[inside].mean())


def agrees(found, plain):
    """``found``: the JSON of an evaluation."""
    for name in ("top1", "top5"):
        assert found[name] == pytest.approx(getattr(plain, name), abs=1e-12)
    assert found["loss"] == pytest.approx(plain.loss.mean(), rel=1e-5)
    assert found["balanced_accuracy"] == pytest.approx(plain.balanced, abs=1e-12)
    assert found["ece"] == pytest.approx(plain.ece, abs=1e-5)
    assert found["num_images"] == sum(found["support"]) == sum(row[0] for row in found["bins"])
    for row, (precision, recall, f1, true) in zip(found["classes"], plain.classes, strict=True):
        assert (row["precision"], row["recall"], row["f1"]) == pytest.approx((precision, recall, f1))
        assert row["support"] == true


def evaluated(argv, capsys):
    code = eval_main([str(word) for word in argv])
    told = capsys.readouterr()
    assert code == 0, told.err
    return told.out


def beside(run):
    """What has been written beside the run's own evaluation, the newest."""
    return json.loads(max(run.path.glob("evaluation-*.json"), key=lambda p: p.stat().st_mtime_ns).read_text())


def test_the_runs_own_split_in_every_figure(run, split, tmp_path, capsys):
    table = tmp_path / "all.csv"
    out = evaluated([run.path, *CPU, "--out", table, "--batch-size", "7"], capsys)
    logits, names = run.classifier().logits(split.images).numpy(), run.info["data"]["class_names"]
    plain = Plain(logits, split.labels, len(names))
    agrees(json.loads((run.path / "evaluation.json").read_text()), plain)
    assert f"top-1      {plain.top1:.4%}" in out
    assert "flip TTA" in out
    assert f"calibration error {plain.ece:.4%}" in out
    rows = list(csv.DictReader(table.open(newline="")))
    assert [row["image"] for row in rows] == [str(i) for i in range(len(split))]
    assert [row["label"] for row in rows] == [names[i] for i in split.labels]
    assert [row["predicted"] for row in rows] == [names[i] for i in plain.predicted]
    assert [float(row["probability"]) for row in rows] == pytest.approx(plain.probability.tolist(), rel=1e-5)
    assert [float(row["loss"]) for row in rows] == pytest.approx(plain.loss.tolist(), rel=1e-4, abs=1e-6)
    page = (run.path / "report.html").read_text()
    assert "probability of the answer" in page
    assert f"Expected calibration error {100 * plain.ece:.2f} %" in page


def zipped(folder, to):
    return shutil.make_archive(str(to / "set"), "zip", folder)


def tarred(folder, to):
    with tarfile.open(to / "set.tar", "w") as tar:
        tar.add(folder, "set")
    return to / "set.tar"


def packed(folder, to):
    assert data_main(["pack", str(folder), str(to / "store"), "--size", "16"]) == 0
    return to / "store"


def kept_encoded(folder, to):
    assert data_main(["pack", str(folder), str(to / "store")]) == 0
    return to / "store" / "train.imnet"


def as_it_is(folder, to):
    return folder


@pytest.mark.parametrize("form", [as_it_is, zipped, tarred, packed, kept_encoded])
def test_the_same_pictures_in_any_form_give_the_runs_own_figures(run, folder, tmp_path, capsys, form):
    own = (run.path / "evaluation.json").read_bytes()
    table = tmp_path / "all.csv"
    out = evaluated(
        [run.path, "--data", form(folder, tmp_path), "--split", "train", *CPU, "--out", table, "--no-flip"], capsys
    )
    assert (run.path / "evaluation.json").read_bytes() == own
    found, wanted = beside(run), json.loads(own)
    for name in ("num_images", "top1", "top5", "balanced_accuracy", "confusion", "support"):
        assert found[name] == wanted[name], name
    assert found["loss"] == pytest.approx(wanted["loss"], rel=1e-5)
    assert found["about"]["split"] == "train"
    assert f"top-1      {wanted['top1']:.4%}" in out
    rows = list(csv.DictReader(table.open(newline="")))
    if form not in (packed, kept_encoded):
        assert all(row["image"].endswith(".png") and f"/{row['label']}/" in row["image"] for row in rows)
    assert "Other evaluations" in (run.path / "report.html").read_text()


def test_a_subset_of_the_classes_is_fine_and_said(run, folder, split, tmp_path, capsys):
    names = list(run.info["data"]["class_names"])
    few = sorted(names)[2:5]
    for name in few:
        shutil.copytree(folder / name, tmp_path / "few" / "test" / name)
    out = evaluated([run.path, "--data", tmp_path / "few" / "test", *CPU], capsys)
    assert f"3 of the network's {len(names)}" in out
    rows = [i for i, label in enumerate(split.labels) if names[label] in few]
    plain = Plain(run.classifier().logits(split.images[rows]).numpy(), split.labels[rows], len(names))
    agrees(beside(run), plain)


def test_classes_that_the_network_has_not_are_named(run, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "more")
    first = next(path for path in sorted(folder.rglob("*.png")))
    for name in ("zebra", "okapi"):
        (tmp_path / "more" / name).mkdir()
        shutil.copy(first, tmp_path / "more" / name)
    before = sorted(path.name for path in run.path.iterdir())
    assert eval_main([str(run.path), "--data", str(tmp_path / "more"), *CPU]) == 65
    said = capsys.readouterr().err
    assert "2 of 12 classes are none of the network's 10: okapi, zebra" in said
    assert said.count("\n") == 1
    assert sorted(path.name for path in run.path.iterdir()) == before


@pytest.mark.parametrize(
    ("parts", "judged_on", "asked", "meant"),
    [
        ({"val": 1}, "test set", "valid", "val"),
        ({"val": 1, "final": 1}, "validation set", "val", "val"),
        ({"final": 1}, "validation set", "val", "test"),
        ({"final": 1}, "validation set", "final", "final"),
        ({}, "held-out images", "validation", "test"),
        ({}, "test set", "testing", "test"),
        ({}, "test set", "training_set", "train"),
        ({}, "test set", "val", None),
        ({}, "validation set", "final", None),
    ],
)
def test_which_part_is_meant(run, parts, judged_on, asked, meant):
    dataset = replace(run.dataset(None, "cpu")[0], **parts)
    if meant is not None:
        assert part_of(asked, dataset, judged_on) == meant
        return
    with pytest.raises(UsageError, match=f"got --split {asked}; allowed here: test"):
        part_of(asked, dataset, judged_on)


def test_an_exported_file_judges_another_set_and_writes_the_table_alone(run, folder, tmp_path, capsys):
    file, table = tmp_path / "model.safetensors", tmp_path / "t.csv"
    assert export_main([str(run.path), "--to", "safetensors", "--out", str(file)]) == 0
    out = evaluated([file, "--data", folder, *CPU, "--out", table], capsys)
    wanted = json.loads((run.path / "evaluation.json").read_text())
    assert f"top-1      {wanted['top1']:.4%}" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors", "t.csv"]
    assert eval_main([str(file), *CPU]) == 2
    assert "add --data PATH" in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_costs_no_figure(run, folder, tmp_path, capsys):
    """As an archive of runs is mounted: what was asked for is told and written, and the failure is the last word."""
    top1 = f"top-1      {run.metrics[-1]['top1']:.4%}"
    for words, why in (([], "worst.png"), (["--data", str(folder)], "report.html")):
        copy, table = tmp_path / why.replace(".", "-"), tmp_path / f"{why}.csv"
        shutil.copytree(run.path, copy)
        (copy / why).unlink()
        (copy / why).mkdir()  # for root, permissions would not do
        assert eval_main([str(copy), *words, *CPU, "--out", str(table)]) == 74
        said = capsys.readouterr()
        assert top1 in said.out
        assert len(table.read_text().splitlines()) == 65
        assert said.err == f"imnet-eval: {copy / why}: not written: Is a directory; check space and permissions\n"


def test_another_checkpoint_split_or_precision_is_written_beside(run, capsys):
    own = (run.path / "evaluation.json").read_bytes()
    lines = {line["epoch"]: line for line in run.metrics if line["kind"] == "eval"}
    for which in ("1", "best"):
        evaluated([run.path, "--checkpoint", which, *CPU], capsys)
        epoch = 1 if which == "1" else max(lines, key=lambda n: (lines[n]["top1"], -n))
        assert beside(run)["top1"] == lines[epoch]["top1"]
        assert beside(run)["about"]["checkpoint"] == which
    evaluated([run.path, "--split", "train", *CPU], capsys)
    assert beside(run)["num_images"] == 128
    evaluated([run.path, "--precision", "bf16", "--no-flip", *CPU], capsys)
    assert beside(run)["about"]["precision"] == "bf16"
    assert (run.path / "evaluation.json").read_bytes() == own
    names = {path.name for path in run.path.glob("evaluation-*.json")}
    assert {"evaluation-epoch1.json", "evaluation-best.json", "evaluation-train.json", "evaluation-bf16.json"} <= names


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--checkpoint", "9"], 65, "no checkpoint of epoch 9 is kept; give the epoch of one that is: 1, 2"),
        (["--checkpoint", "newest"], 2, "allowed: best, last, or the number of an epoch"),
        (["--split", "final"], 2, "got --split final; allowed here: test, train"),
        (["--split", "val"], 2, "got --split val; allowed here: test, train"),
        (["--split", "validation"], 2, "got --split validation; allowed here: test, train"),
        (["--batch-size", "0"], 2, "got --batch-size 0"),
        (["--precision", "int8"], 2, "int8"),
        (["--data", "nowhere"], 65, "no such file or folder"),
        (["--data", "FOLDER", "--split", "val"], 2, "got --split val; allowed here: train"),
    ],
)
def test_mistakes_are_one_line(run, folder, capsys, words, code, says):
    words = [str(folder) if word == "FOLDER" else word for word in words]
    assert eval_main([str(run.path), *CPU, *words]) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_damaged_picture_is_named(run, folder, tmp_path, capsys):
    shutil.copytree(folder, tmp_path / "set")
    victim = sorted((tmp_path / "set").rglob("*.png"))[3]
    victim.write_bytes(b"\x89PNG\r\n")
    assert eval_main([str(run.path), "--data", str(tmp_path / "set"), *CPU]) == 65
    said = capsys.readouterr().err
    assert victim.name in said
    assert said.count("\n") == 1


def test_pictures_of_other_sizes_and_colours_are_made_as_predict_makes_them(run, tmp_path):
    """Of pixels too, and for a network of grey images."""
    rng = np.random.default_rng(0)
    card = replace(run.classifier().card, channels=1, class_names=("a", "b"), num_outputs=2,
                   augment=replace(run.recipe.augment, mean=(0.5,), std=(0.25,)))  # fmt: skip
    data = replace(run.recipe.data, channels=1, num_classes=2)
    network = build_network(replace(run.recipe, data=data, augment=card.augment))
    model = Classifier(network, card)
    for i in range(8):
        where = tmp_path / "set" / "ba"[i % 2]
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20 + i, 31, 3), dtype=np.uint8)).save(where / f"{i}.png")
    images = images_at(tmp_path / "set")
    found, mirrored = judge_images(model, images, RunOptions(device="cpu", precision="fp32"), 3, flip=True)
    told = model.predict([images.name(i) for i in range(8)], top=1)
    assert found.predictions is not None
    assert [row["top"][0][0] for row in told] == [card.class_names[i] for i in found.predictions.predicted]
    assert [row["top"][0][1] for row in told] == pytest.approx(found.predictions.probability.tolist(), rel=1e-4)
    assert mirrored is not None
    assert mirrored.loss != found.loss
    wide = replace(images, read=lambda i: np.asarray(Image.open(images.name(i)).convert("RGB")))
    again, _ = judge_images(model, wide, RunOptions(device="cpu", precision="fp32"), flip=False)
    assert again.predictions is not None
    assert again.predictions.loss.tolist() == pytest.approx(found.predictions.loss.tolist(), rel=1e-4)


def test_names_that_two_classes_share_are_matched_by_the_whole_list_alone(run, folder):
    model, images = run.classifier(), images_at(folder)
    twice = (*model.card.class_names[:-1], model.card.class_names[0])
    model.card = replace(model.card, class_names=twice)
    with pytest.raises(DataError, match="share a name"):
        judge_images(model, replace(images, class_names=twice[::-1]), RunOptions(device="cpu"), flip=False)
    found, _ = judge_images(
        model, replace(images, class_names=twice), RunOptions(device="cpu", precision="fp32"), flip=False
    )
    assert sum(found.support) == len(images)


def test_scores_of_empty_classes_and_bins():
    rows = scores.per_class(scores.Confusion([0, 0, 2, 2], [0, 1, 0, 1], [2, 1, 1, 1]), [4, 0, 2])
    assert rows[0] == (2 / 3, 0.5, 4 / 7, 4)
    assert rows[1] == (0.0, None, 0.0, 0)  # predicted twice, and never there
    assert rows[2] == (None, 0.0, 0.0, 2)  # never predicted
    assert scores.balanced_accuracy(rows) == 0.25
    assert scores.macro_f1(rows) == pytest.approx(2 / 7)
    assert np.isnan(scores.balanced_accuracy(scores.per_class(scores.Confusion([], [], []), [0])))
    assert scores.calibration_error([[2, 1.5, 1], [0, 0, 0], [2, 1.0, 2]]) == pytest.approx((0.5 + 1.0) / 4)
    assert np.isnan(scores.calibration_error([[0, 0.0, 0]]))


@pytest.mark.parametrize("other", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_say_what_one_says(run, folder, other, tmp_path, capfd):
    """On the run's own images or on others, 63 of which two ranks cannot share evenly; every prediction too."""
    next(folder.rglob("*.png")).rename(tmp_path / "one fewer.png")
    images = ["--data", str(folder)] if other else []
    said, tables = [], []
    for words in (CPU, ["--procs", "2"]):
        table = tmp_path / f"{len(said)}.csv"
        assert eval_main([str(run.path), *images, *words, "--out", str(table)]) == 0
        said.append([line for line in capfd.readouterr().out.splitlines() if "predictions" not in line])
        tables.append(list(csv.reader(table.read_text().splitlines())))
    assert said[0] == said[1]
    for one, two in zip(*tables, strict=True):
        assert one[:3] == two[:3]
    columns = [[float(row[4]) for row in table[1:]] for table in tables]
    assert columns[1] == pytest.approx(columns[0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--procs", "0"], "got --procs 0; allowed: 1 or more"),
        (["--gpus", "-1"], "got --gpus -1; allowed: 1 or more"),
        (["--gpus", "2", "--procs", "2"], "not allowed with argument"),
        (["--procs", "2", "--ten-crop"], "got --ten-crop with --gpus or --procs"),
    ],
)
def test_what_several_processes_cannot_do_is_one_line(run, words, told, capfd):
    assert eval_main([str(run.path), *words]) in (64, 65, 2)
    errors = capfd.readouterr().err
    assert told in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_run_on_the_way_is_judged_with_a_note(run, folder, tmp_path, capsys):
    on_the_way = tmp_path / "r"
    shutil.copytree(run.path, on_the_way)
    (on_the_way / "run.json").write_text(json.dumps(run.info | {"status": "running"}))
    for more in ([], ["--data", str(folder)]):
        for place, noted in ((on_the_way, 1), (run.path, 0)):
            assert eval_main([str(place), *CPU, "--no-flip", *more]) == 0
            assert capsys.readouterr().out.count("note       not at the end of its training\n") == noted
    picture = next(folder.rglob("*.png"))
    for place, noted in ((on_the_way, 1), (run.path, 0)):
        assert predict_main([str(place), "--device", "cpu", "--json", str(picture)]) == 0
        said = capsys.readouterr()
        assert said.err.count("note       not at the end of its training\n") == noted
        assert json.loads(said.out)
        assert export_main([str(place), "--to", "safetensors", "--out", str(tmp_path / "x")]) == 0
        assert capsys.readouterr().out.count("note       not at the end of its training\n") == noted


def test_a_run_that_ends_during_its_evaluation_keeps_its_own_newer_figures(run, tmp_path, monkeypatch, capsys):
    """The first of two epochs is judged; meanwhile the run comes to its end."""
    place, ended = tmp_path / "r", run.path
    shutil.copytree(ended, place)
    newest = max((place / "checkpoints").glob("step-*"))
    newest.rename(tmp_path / "newest")
    (place / "run.json").write_text(json.dumps(run.info | {"status": "running"}))
    (place / "evaluation.json").unlink()
    judge_once = Run.judge

    def judge(self, *given, **more):
        found = judge_once(self, *given, **more)
        if not newest.exists():
            (tmp_path / "newest").rename(newest)
            for name in ("run.json", "evaluation.json"):
                shutil.copy(ended / name, place / name)
        return found

    monkeypatch.setattr(Run, "judge", judge)
    assert eval_main([str(place), *CPU]) == 0
    said = capsys.readouterr().out
    assert "saved newer weights" in said
    assert "mirror" not in said
    assert (place / "evaluation.json").read_bytes() == (ended / "evaluation.json").read_bytes()
    assert len(list(place.glob("evaluation-step-*.json"))) == 1
