"""imnet-eval on a run's own images: every figure against a plain computation, and no figures are lost."""

import csv
import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from imnet import scores
from imnet.cli import eval_main, export_main, predict_main
from imnet.data.judged import part_of
from imnet.errors import UsageError
from imnet.run import Run
from tests.use.judging import CPU, Plain, agrees, beside, evaluated


def test_the_runs_own_split_in_every_figure(run, split, tmp_path, capsys):
    table = tmp_path / "all.csv"
    run.report.unlink()
    out = evaluated([run.path, *CPU, "--out", table, "--batch-size", "7"], capsys)
    logits, names = run.classifier().logits(split.images).numpy(), run.info["data"]["class_names"]
    plain = Plain(logits, split.labels, len(names))
    agrees(json.loads((run.path / "evaluation.json").read_text()), plain)
    assert f"top-1      {plain.top1:.4%}" in out
    assert "flip TTA" in out
    assert f"calibration error {plain.ece:.4%}" in out
    for name, (*shares, images) in zip(names, plain.classes, strict=True):
        cells = " +".join("-" if share is None else f"{share:.2%}" for share in shares)
        assert re.search(rf"^{name} +{cells} +{images}$", out, re.MULTILINE)
    rows = list(csv.DictReader(table.open(newline="")))
    assert [row["image"] for row in rows] == [str(i) for i in range(len(split))]
    assert [row["label"] for row in rows] == [names[i] for i in split.labels]
    assert [row["predicted"] for row in rows] == [names[i] for i in plain.predicted]
    assert [float(row["probability"]) for row in rows] == pytest.approx(plain.probability.tolist(), rel=1e-5)
    assert [float(row["loss"]) for row in rows] == pytest.approx(plain.loss.tolist(), rel=1e-4, abs=1e-6)
    page = (run.path / "report.html").read_text()
    assert "probability of the answer" in page
    assert f"Expected calibration error {100 * plain.ece:.2f} %" in page


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


def test_a_folder_that_cannot_be_written_costs_no_figure(run, folder, tmp_path, capsys):
    """As in a read-only archive of runs: figures are printed and --out is written before the failure is reported."""
    top1 = f"top-1      {run.metrics[-1]['top1']:.4%}"
    for words, why in (([], "worst.png"), (["--data", str(folder)], "report.html")):
        copy, table = tmp_path / why.replace(".", "-"), tmp_path / f"{why}.csv"
        shutil.copytree(run.path, copy)
        (copy / why).unlink()
        (copy / why).mkdir()  # permissions would not stop root
        assert eval_main([str(copy), *words, *CPU, "--out", str(table)]) == 74
        said = capsys.readouterr()
        assert top1 in said.out
        assert len(table.read_text().splitlines()) == 65
        assert said.err == f"imnet-eval: {copy / why}: not written: Is a directory; check space and permissions\n"


def test_an_evaluation_that_nobody_reads_is_written(run, tmp_path, unread, capsys):
    """As in `imnet-eval RUN | head -1`: the figures of minutes would be lost."""
    shutil.copytree(run.path, tmp_path / "run")
    (tmp_path / "run" / "evaluation.json").unlink()
    with unread():
        assert eval_main([str(tmp_path / "run"), *CPU]) == 74
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["num_images"] == 64
    assert capsys.readouterr().err == ""


def test_another_checkpoint_split_or_precision_is_written_beside(run, capsys):
    own = (run.path / "evaluation.json").read_bytes()
    lines = {line["epoch"]: line for line in run.metrics if line["kind"] == "eval"}
    for which in ("1", "best"):
        evaluated([run.path, "--checkpoint", which, *CPU], capsys)
        epoch = 1 if which == "1" else max(lines, key=lambda n: (lines[n]["top1"], -n))
        assert beside(run)["top1"] == lines[epoch]["top1"]
        assert beside(run)["about"]["checkpoint"] == which
        assert beside(run)["about"]["weights"] == run.weights_id(which)
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


@pytest.mark.parametrize(
    ("text", "says"),
    [(None, "is missing"), ("", "holds a NoneType"), ("- 1", "holds a list"), ("a: [", "is not YAML"),
     ("? [1]\n: 2", "is not YAML"), ("threads: [1]", "got threads = (1,)"),
     ("threads: 0", "got threads = 0"), ("data_dir: {}", "got data_dir = {}")],
)  # fmt: skip
def test_a_config_yaml_that_does_not_say_how_to_run_is_one_line(run, tmp_path, text, says, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    (folder / "config.yaml").unlink()
    if text is not None:
        (folder / "config.yaml").write_text(text)
    assert eval_main([str(folder), *CPU]) == 65
    said = capsys.readouterr().err
    assert f"config.yaml: {says}" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize("word", ["7", "2026-01-01", "012"])
def test_a_data_dir_of_digits_in_config_yaml_is_a_folders_name(run, tmp_path, word, capsys):
    folder = tmp_path / "run"
    shutil.copytree(run.path, folder)
    with (folder / "config.yaml").open("a") as f:
        f.write(f"\ndata_dir: {word}\n")
    text = (folder / "config.yaml").read_text().replace("data_dir: null\n", "")
    (folder / "config.yaml").write_text(text)
    assert Run(folder).options(None, "cpu").data_dir == word
    assert eval_main([str(folder), *CPU]) == 0
    assert capsys.readouterr().err == ""


def test_scores_of_empty_classes_and_bins():
    rows = scores.per_class(scores.Confusion([0, 0, 2, 2], [0, 1, 0, 1], [2, 1, 1, 1]), [4, 0, 2])
    assert rows[0] == (2 / 3, 0.5, 4 / 7, 4)
    assert rows[1] == (0.0, None, 0.0, 0)  # predicted twice, but no image has this label
    assert rows[2] == (None, 0.0, 0.0, 2)  # never predicted
    assert scores.balanced_accuracy(rows) == 0.25
    assert scores.macro_f1(rows) == pytest.approx(2 / 7)
    assert np.isnan(scores.balanced_accuracy(scores.per_class(scores.Confusion([], [], []), [0])))
    assert scores.calibration_error([[2, 1.5, 1], [0, 0, 0], [2, 1.0, 2]]) == pytest.approx((0.5 + 1.0) / 4)
    assert np.isnan(scores.calibration_error([[0, 0.0, 0]]))


@pytest.mark.parametrize("other", [pytest.param(False, marks=pytest.mark.slow), True])
def test_two_processes_say_what_one_says(run, folder, other, tmp_path, capfd):
    """Figures and predictions agree, on the run's own images and on 63 others, which two ranks cannot share evenly."""
    fewer = shutil.copytree(folder, tmp_path / "fewer")  # other tests read the folder too, in any order
    next(fewer.rglob("*.png")).unlink()
    images = ["--data", str(fewer)] if other else []
    said, tables, worst = [], [], []
    for words in (CPU, ["--procs", "2"]):
        table = tmp_path / f"{len(said)}.csv"
        assert eval_main([str(run.path), *images, *words, "--out", str(table)]) == 0
        said.append([line for line in capfd.readouterr().out.splitlines() if "predictions" not in line])
        tables.append(list(csv.reader(table.read_text().splitlines())))
        written = beside(run) if other else json.loads((run.path / "evaluation.json").read_text())
        worst.append([row["index"] for row in written["worst"]])
    assert said[0] == said[1]
    assert worst[0] == worst[1]
    for one, two in zip(*tables, strict=True):
        assert one[:3] == two[:3]
    columns = [[float(row[4]) for row in table[1:]] for table in tables]
    assert columns[1] == pytest.approx(columns[0], rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--procs", "0"], "got --procs 0; allowed: 1 to 1,024"),
        (["--gpus", "1025"], "got --gpus 1025; allowed: 1 to 1,024"),
        (["--gpus", "-1"], "got --gpus -1; allowed: 1 to 1,024"),
        (["--gpus", "2", "--procs", "2"], "not allowed with argument"),
        (["--gpus", "1", "--device", "cpu"], "got --gpus with --device cpu"),
        (["--procs", "2", "--ten-crop"], "got --ten-crop with --gpus or --procs"),
        (["--ten-crop", "--split", "train"], "got --ten-crop with --data, --checkpoint or --split"),
        (["--ten-crop", "--checkpoint", "best"], "got --ten-crop with --data, --checkpoint or --split"),
        (["--ten-crop", "--data", "."], "got --ten-crop with --data, --checkpoint or --split"),
    ],
)
def test_what_cannot_be_asked_together_is_one_line(run, words, told, capfd):
    assert eval_main([str(run.path), *words]) in (64, 65, 2)
    errors = capfd.readouterr().err
    assert told in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_run_on_the_way_is_judged_with_a_note(run, folder, tmp_path, capsys):
    on_the_way = tmp_path / "r.1"  # a run folder, although its name has a suffix
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
    """While the first of two epochs is evaluated, the run ends; its own figures must not be overwritten."""
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
