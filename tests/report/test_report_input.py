"""Damaged folders, a disk that refuses, and the comparison of several runs."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import statistics
from pathlib import Path

import pytest
from run_folders import Page, confusion_of, make_run, metric_lines

from imnet.cli import report_main
from imnet.errors import DataError, IOFailure, UsageError
from imnet.report import compare, render, summary
from imnet.report.comparison import _names, group
from imnet.report.data import RunLog
from imnet.report.measured import of_runs
from imnet.report.read import load


def edited(key, value):
    return lambda text: json.dumps({**json.loads(text), key: value})


def cells(true, predicted, images):
    return {"true": true, "predicted": predicted, "images": images}


DAMAGE = [
    ("run.json", None, "is missing"),
    ("config.yaml", None, "is missing"),
    ("run.json", lambda text: text[:-9], "not JSON"),
    ("run.json", lambda text: "[1]", "must be an object"),
    ("run.json", lambda text: "[" * 100_000, "not JSON"),
    ("run.json", edited("recipe", None), "'recipe'"),
    ("run.json", edited("recipe", {"published": {"top1": 93.2}}), "fraction"),
    ("run.json", edited("best", [0.9]), "best is [0.9], must be an object"),
    ("run.json", edited("best", {"since": "x"}), "best.since is 'x', must be a number"),
    ("config.yaml", lambda text: "a: [", "not YAML"),
    ("config.yaml", lambda text: "- a", "must be a mapping"),
    ("metrics.jsonl", lambda text: text.replace("}\n", "\n", 2), "line 1 is not JSON"),
    ("metrics.jsonl", lambda text: "7\n" + text, "line 1 holds a int"),
    ("metrics.jsonl", lambda text: text.replace('"top1": 0.85', '"top1": 85.0'), "fraction"),
    ("metrics.jsonl", lambda text: text.replace('"epoch": 1,', ""), "no finite step and epoch"),
    (
        "metrics.jsonl",
        lambda text: text.replace('"step": 10,', '"step": "ten",'),
        "step is 'ten', must be a number",
    ),
    (
        "metrics.jsonl",
        lambda text: text.replace('"kind": "train",', '"kind": [[1]],', 1),
        "kind is [[1]], must be",
    ),
    ("metrics.jsonl", lambda text: text.replace('"step": 10,', f'"step": 1{"0" * 400},'), "too large"),
    ("evaluation.json", edited("confusion", None), "confusion must be the lists true, predicted, images"),
    ("evaluation.json", edited("confusion", cells([0], [1, 2], [3])), "equally long"),
    ("evaluation.json", edited("confusion", cells([0], [1], [2.5])), "of integers"),
    ("evaluation.json", edited("confusion", cells([0], [10], [2])), "of classes 0 to 9"),
    ("evaluation.json", edited("confusion", cells([-1], [1], [2])), "of classes 0 to 9"),
    ("evaluation.json", edited("confusion", cells([0], [1], [0])), "of images, 1 or more"),
    ("evaluation.json", edited("confusion", [[1, 2], [3]]), "10 rows of 10 counts"),
    ("evaluation.json", edited("confusion", [[-1] * 10] * 10), "10 rows of 10 counts"),
    ("evaluation.json", edited("class_names", None), "class_names"),
    ("evaluation.json", edited("num_images", 0), "num_images"),
    ("evaluation.json", edited("num_images", 10**400), "a whole number of 401 digits"),
    ("evaluation.json", edited("confusion", cells([0], [1], [10**400])), "a whole number of 401 digits"),
    ("evaluation.json", edited("worst", [{"index": 1}]), "worst"),
    ("worst.png", lambda text: "GIF89a", "not a PNG"),
]


@pytest.mark.parametrize(("name", "damage", "said"), DAMAGE)
def test_damaged_files_are_one_line_that_names_the_file(tmp_path, name, damage, said):
    run = make_run(tmp_path / "run")
    file = run / name
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage(file.read_text(errors="replace")))
    with pytest.raises(DataError, match=re.escape(said)) as caught:
        render(run)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)
    assert not (run / "report.html").exists()


def test_a_whole_matrix_as_earlier_versions_wrote_it_is_read(tmp_path):
    run = make_run(tmp_path / "run")
    wanted, file = render(run).read_bytes(), run / "evaluation.json"
    whole = confusion_of(10, 40_000, 0.92).tolist()
    file.write_text(edited("confusion", whole)(file.read_text()))
    assert render(run).read_bytes() == wanted
    assert load(run).evaluation.confusion.rows(10) == whole


def test_a_page_without_the_log_says_so_and_leaves_out_no_more_than_its_curves(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    page = render(run).read_text()
    assert "metrics.jsonl is absent: nothing was logged yet, or the file is gone." in page
    assert "Confusion matrix" in page


def test_no_folder_is_data_error(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        summary(tmp_path / "absent")


def test_failed_write_keeps_the_old_report_and_leaves_nothing_partial(tmp_path):
    run = make_run(tmp_path / "run")
    before = render(run).read_bytes()
    names = sorted(os.listdir(run))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # no file may exceed 20 kB
    try:
        with pytest.raises(IOFailure) as caught:
            render(run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.exit_code == 74
    assert (run / "report.html").read_bytes() == before
    assert sorted(os.listdir(run)) == names


WORDS = [["run"], ["run", "other"], ["run", "--system", "fashion-mnist"]]


@pytest.fixture
def two_runs(tmp_path, monkeypatch):
    """Enters a folder that holds the runs ``run`` and ``other``."""
    make_run(tmp_path / "run")
    make_run(tmp_path / "other", seed=1)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["page.pdf", "figure.PNG", "table.md", "page.html.gz", "notes.txt"])
@pytest.mark.parametrize("words", WORDS, ids=len)
def test_no_page_gets_the_name_of_another_kind_of_file(words, name, two_runs, capsys):
    assert report_main([*words, "--out", name]) == 2
    err = capsys.readouterr().err
    assert f"got --out {name}" in err
    assert err.count("\n") == 1
    assert sorted(os.listdir()) == ["other", "run"]


@pytest.mark.parametrize("words", WORDS, ids=len)
def test_a_page_gets_any_name_that_is_none_of_another_kind_of_file(words, two_runs):
    for allowed in ("page", "PAGE.HTM", "runs.2026-11"):
        assert report_main([*words, "--out", allowed]) == 0
        assert Path(allowed).read_text().startswith("<!DOCTYPE html>")


def test_compare_groups_seeds_and_leaves_unfinished_runs_out(tmp_path):
    finals = [0.921, 0.925, 0.929]
    runs = [make_run(tmp_path / f"s{seed}", top1=[0.8, 0.9, top1], seed=seed) for seed, top1 in enumerate(finals)]
    runs.append(make_run(tmp_path / "s3", top1=[0.8], lines=metric_lines(1, [0.8]), seed=3))
    runs.append(make_run(tmp_path / "other", seed=0, recipe={"optim": {"lr": 0.2, "nesterov": True}}))
    out = compare(runs, tmp_path / "compare.html")
    parsed = Page(out)
    groups = parsed.text["groups"]
    deviation = 100 * statistics.stdev(finals)
    assert f"3 (+ 1 not finished) 0, 1, 2 92.50 % ± {deviation:.2f} points" in groups
    assert "(optim.lr = 0.1)" in groups
    assert "(optim.lr = 0.2) 1 0 92.00 %, one run: no spread" in groups
    assert "1 of 3, not finished" in parsed.text["runs"]
    assert all(name in parsed.text["runs"] for name in ("s0", "s1", "s2", "s3", "other"))
    assert {"accuracy", "time", "loss", "throughput"} <= set(parsed.ids)
    assert compare(runs, tmp_path / "again.html").read_bytes() == out.read_bytes()


@pytest.mark.parametrize("axes", [2, 5, 8])
def test_no_two_groups_of_a_search_have_one_name(tmp_path, axes):
    """Groups may differ in many values or in one; the differing value must not be hidden behind "and 1 more"."""
    runs = []
    for i in range(5):
        point = {f"a{axis}": (i == 4) + i % 2 * (axis == 0) for axis in range(axes)} | {
            "z_lr": 0.1 * i,
            "nesterov": True,
        }
        runs.append(make_run(tmp_path / f"s{i}", top1=[0.1 * i], epochs=1, recipe={"optim": point}))
    names = _names(group([load(run) for run in runs]))
    assert len(set(names)) == 5
    assert all(f"optim.z_lr = {0.1 * i}" in name for i, name in enumerate(names))
    runs.append(make_run(tmp_path / "same", top1=[0.7], epochs=1, seed=1, recipe={"optim": point | {"a1": 7}}))
    assert len(set(_names(group([load(run) for run in runs])))) == 6  # it differs from the fifth in a1 alone


@pytest.mark.parametrize("hold_out", [0.0, 0.1])
def test_runs_on_other_images_are_no_seeds_of_one_another(tmp_path, hold_out):
    """A recipe does not contain the data folder, and the seed may draw the images that are held out."""
    runs = []
    for seed, name in enumerate("abab"):
        recipe = {"data": {"name": "folder", "hold_out": hold_out}}
        run = make_run(tmp_path / f"s{seed}", top1=[0.9 + seed / 100], epochs=1, seed=seed, recipe=recipe)
        info = json.loads((run / "run.json").read_text())
        info["data"] |= {"fingerprint": f"{name}{seed if hold_out else ''}" * 32, "class_names": [name, "z"]}
        (run / "run.json").write_text(json.dumps(info))
        runs.append(run)
    groups = Page(compare(runs, tmp_path / "compare.html")).text["groups"]
    assert re.search(r"\(images = \w{12}\) 2 0, 2 91.00 % ± 1.41 points", groups)
    assert re.search(r"\(images = \w{12}\) 2 1, 3 92.00 % ± 1.41 points", groups)
    assert [row.seeds for row in of_runs([load(run) for run in runs])] == [("0", "2"), ("1", "3")]


def test_compare_refuses_one_run_or_the_same_twice(tmp_path, run_dir):
    with pytest.raises(UsageError, match="need 2 or more"):
        compare([run_dir], tmp_path / "out.html")
    with pytest.raises(UsageError, match="given twice"):
        compare([run_dir, run_dir / ".." / run_dir.name], tmp_path / "out.html")
    shutil.copytree(run_dir, tmp_path / "again")
    (tmp_path / "again" / "report.html").write_text("made later")
    with pytest.raises(UsageError, match="again: is a copy of the run in"):
        compare([run_dir, tmp_path / "again"], tmp_path / "out.html")
    assert not (tmp_path / "out.html").exists()


def test_compare_refuses_copies_that_went_on(tmp_path):
    """Two copies made after the first of three epochs, both trained to the end, are not two independent runs."""
    paths = [make_run(tmp_path / name, top1=[0.9, 0.91, last]) for name, last in (("a", 0.92), ("b", 0.93))]
    for path, seconds in zip(paths, (100, 200), strict=True):
        log = path / "metrics.jsonl"
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        later = [line | {"seconds": line["seconds"] + seconds} if line["epoch"] > 1 else line for line in lines]
        log.write_text("".join(json.dumps(line) + "\n" for line in later))
    with pytest.raises(UsageError, match=r"b: is a copy of the run in .*a, or both went on"):
        compare(paths, tmp_path / "out.html")
    info = json.loads((paths[1] / "run.json").read_text())
    info["recipe"]["optim"]["lr"] = 0.3  # resumed with --allow-change: another recipe
    (paths[1] / "run.json").write_text(json.dumps(info))
    compare(paths, tmp_path / "out.html")


def test_clock_adds_the_lives_of_a_resumed_run(tmp_path):
    lines = metric_lines(3, [0.8, 0.9, 0.9])
    for line in lines:
        line["seconds"] -= 20.0 if line["step"] > 200 else 0.0  # the resumed run starts its clock at 0
    run: RunLog = load(make_run(tmp_path / "run", lines=lines))
    assert run.total_seconds == pytest.approx(35.4)
    assert [round(epoch * 118) for epoch, _ in run.clock][-3:] == [340, 350, 354]


def test_what_a_shells_star_names_beside_the_runs_of_a_sweep_is_left_out(tmp_path, capsys):
    """Skips imnet's own pages and tables and a trial that failed before its first step, but no other file."""
    for name in ("a", "b"):
        make_run(tmp_path / name, top1=[0.9, 0.91, 0.92], seed=ord(name))
    (tmp_path / "failed").mkdir()
    (tmp_path / "failed" / "trial.json").write_text("{}")
    assert report_main([str(tmp_path), "--out", str(tmp_path / "report.html")]) == 0
    assert report_main(["--system", "002", str(tmp_path), "--out", str(tmp_path / "system.html")]) == 0
    places = sorted(tmp_path.iterdir())
    assert [p.name for p in places] == ["a", "b", "failed", "report.html", "system.csv", "system.html", "system.md"]
    pages = [tmp_path / f"{name}.page" for name in "xyz"]
    for page, named in zip(pages, ([tmp_path], places, [*places[1:], places[0]]), strict=True):
        assert report_main([*map(str, named), "--out", str(page)]) == 0
    assert pages[0].read_bytes() == pages[1].read_bytes()
    capsys.readouterr()
    (tmp_path / "mine.txt").write_text("no page")
    for named, said in (
        ([*places, tmp_path / "mine.txt"], "mine.txt: no such run folder"),
        ([places[2]], "is missing"),
    ):
        assert report_main([*map(str, named), "--out", str(pages[0])]) == 65
        assert said in capsys.readouterr().err
