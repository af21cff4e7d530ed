"""The content of the page of one run; the page needs no other file."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from run_folders import SECTIONS, Page, confusion_of, evaluation_of, make_run, metric_lines

from imnet.report import compare, render, summary


def test_page_has_every_section_and_stands_alone(page):
    assert set(SECTIONS) <= set(page.ids)
    assert len(page.ids) == len(set(page.ids))
    assert not page.tags & {"script", "link", "iframe", "object", "base"}
    assert page.references
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in page.references)
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "@import" not in page.source
    assert page.source.count("<style") == 1
    inside = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', page.source)
    assert inside
    assert {one or other for one, other in inside} <= set(page.ids)


def test_svgs_are_well_formed_and_follow_the_page_colours(page):
    drawings = re.findall(r"<svg.*?</svg>", page.source, re.DOTALL)
    assert len(drawings) == 4
    for drawing in drawings:
        root = ElementTree.fromstring(drawing.replace("<svg ", '<svg xmlns:xlink="x" ', 1))
        assert root.get("aria-label")
        assert "var(--ink)" in drawing
        assert "#0a0b" not in drawing


def test_a_drawing_that_is_alone_in_its_card_is_no_wider_than_those_side_by_side(page):
    """Without a limit, the calibration curve filled the page, with letters twice as large as in the other drawings."""
    assert re.search(r"figure svg\{max-width:\d+px\}", page.source)


@pytest.mark.parametrize(("judged_on", "part"), [("held-out images", "Held-out"), ("validation set", "Validation")])
def test_images_that_are_no_test_set_are_not_called_one(tmp_path, judged_on, part):
    runs = [make_run(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    for run in runs:
        info = json.loads((run / "run.json").read_text())
        info["data"]["judged_on"] = judged_on
        (run / "run.json").write_text(json.dumps(info))
    one, both = Page(render(runs[0])).text, Page(compare(runs, tmp_path / "both.html")).text
    assert one["accuracy"].startswith(f"{part} accuracy")
    assert part.lower() in one["loss"]
    assert f"{part.lower()} images with the largest loss" in one["worst"]
    assert both["accuracy"].startswith(f"{part} top-1 by epoch")
    assert "the images held out of train" in both["both-loss"]
    assert "test" not in one["loss"] + one["accuracy"] + one["worst"] + both["both-loss"] + both["time"].lower()


def test_last_epoch_comes_before_the_best_and_the_best_is_named(page):
    results = page.text["results"]
    assert "Top-1 92.00 % 92.50 % 93.28 %" in results
    assert "−1.28 points −0.78 points" in results
    assert results.index("last epoch") < results.index("best epoch (selected on the test set)")
    assert "Top-1, mirror averaged 92.37 %" in results
    assert "7 h" in results
    assert "GTX 1080 Ti" in results
    assert "EPYC, 2 cores" in results
    # sqrt(.92 * .08 / 40000) = 0.136 points
    assert "0.14 points" in results


def test_summary_is_the_same_figures(run_dir, page):
    text = summary(run_dir)
    told = {line[:18].strip(): line[19:] for line in text.splitlines()}
    assert told["images"] == "30,000 train, 40,000 test"
    assert told["top-1, last epoch"] == "92.00 %"
    assert told["top-1, best epoch"] == "92.50 % at epoch 2 (selected on the test set)"
    assert told["published"].startswith("93.28 %; last epoch −1.28 points")
    assert told["images/s, median"] == f"{statistics.median(2500 + step % 7 for step in range(10, 355, 10)):,.0f}"
    assert told["training time"] == "35.4 s on EPYC, 2 cores"
    assert told["report"] == str(run_dir / "report.html")


def test_equal_input_gives_equal_bytes_in_a_fresh_process_and_imports_are_lazy(run_dir, page):
    program = (
        "import sys, hashlib, pathlib, imnet.report as report\n"
        "assert not {'torch', 'matplotlib', 'numpy', 'PIL'} & set(sys.modules), sorted(sys.modules)\n"
        "print(hashlib.sha256(report.render(pathlib.Path(sys.argv[1])).read_bytes()).hexdigest())\n"
    )
    environment = {
        **os.environ,
        "PYTHONHASHSEED": "77",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "TZ": "Asia/Tokyo",
        "LC_ALL": "C",
    }
    command = [sys.executable, "-c", program, str(run_dir)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == hashlib.sha256(page.source.encode()).hexdigest(), done.stderr


def test_run_in_progress_with_a_torn_line(tmp_path):
    run = make_run(tmp_path / "run", epochs=30, lines=metric_lines(2, [0.8]), evaluation=None)
    whole = Page(render(run)).text
    size = (run / "metrics.jsonl").stat().st_size
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "step": 24')
    torn = Page(render(run)).text
    assert f"The last line of metrics.jsonl (byte {size}, 28 bytes) is torn and was ignored." in torn["notes"]
    assert "torn" not in whole["notes"]
    assert torn["results"] == whole["results"]
    assert "not finished" in torn["notes"]
    assert "last epoch so far" in torn["results"]
    assert "not measured" in torn["confusion"]
    assert "not measured" in torn["worst"]
    assert "note" in summary(run)
    assert "epoch 1.95 of 30" in summary(run)


@pytest.mark.parametrize("lines", [[], [line for line in metric_lines(3, []) if line["kind"] == "train"]])
def test_no_evaluations_at_all(tmp_path, lines):
    text = Page(render(make_run(tmp_path / "run", lines=lines, evaluation=None))).text
    assert "Test accuracy: not measured." in text["accuracy"]
    assert "Top-1 not measured not measured 93.28 %" in text["results"]
    assert ("not measured" in text["loss"]) == (not lines)
    assert set(SECTIONS) <= set(text)


@pytest.mark.parametrize("bad", [math.nan, math.inf, None])
def test_non_finite_losses_are_gaps_and_are_counted(tmp_path, bad):
    lines = metric_lines(3, [0.85, 0.9, None])
    for line in lines:
        if line["step"] > 200:
            line["loss"] = bad
    text = Page(render(make_run(tmp_path / "run", lines=lines))).text
    said = "15 of 35 logged training losses are not finite or missing, the first at step 210 (epoch 1.78)"
    assert said in text["notes"]
    assert "Top-1 not measured 90.00 % 93.28 %" in text["results"]
    assert "nan" not in " ".join(text.values()).lower().replace("ünïcode", "")


def test_nothing_published(tmp_path):
    run = make_run(tmp_path / "run", recipe={"published": None})
    text = Page(render(run)).text
    assert "nothing published" in text["results"]
    assert "nothing published" in summary(run)


def test_names_are_escaped(tmp_path):
    hostile = '</table><script>alert("1")</script>&amp;'
    names = [hostile, *(f"class {i}" for i in range(9))]
    parsed = Page(render(make_run(tmp_path / "run", recipe={"name": hostile}, evaluation=evaluation_of(10, names))))
    assert "script" not in parsed.tags
    assert hostile in parsed.text["confusion"]


@pytest.mark.parametrize(
    ("classes", "map_drawn", "pairs_listed"), [(10, True, False), (50, True, True), (51, False, True)]
)
def test_confusion_is_a_map_up_to_50_classes_and_pairs_above_20(tmp_path, classes, map_drawn, pairs_listed):
    evaluation = evaluation_of(classes)
    source = Page(render(make_run(tmp_path / "run", evaluation=evaluation))).source
    assert ('class="heat' in source) == map_drawn
    assert source.count('class="hit"') == (classes if map_drawn else 0)
    confusion = source[source.index('id="confusion"') : source.index('id="worst"')]
    listed = re.findall(r'row">class (\d+)</th><td>class (\d+)</td><td>(\d+)</td><td>([\d.]+) %', confusion)
    assert len(listed) == (20 if pairs_listed else 0)
    matrix = confusion_of(classes, 40_000, 0.92)
    wrong = np.sort((matrix * (1 - np.eye(classes, dtype=int))).ravel())[::-1][: len(listed)]
    assert [int(count) for *_, count, _ in listed] == wrong.tolist()
    for true, predicted, count, share in listed:
        assert matrix[int(true), int(predicted)] == int(count)
        assert float(share) == pytest.approx(100 * int(count) / matrix[int(true)].sum(), abs=0.051)


@pytest.mark.parametrize(("images", "top1", "points"), [(40_000, 0.92, "0.14"), (12, 1.0, "8.27"), (12, 0.0, "8.27")])
def test_a_few_images_that_are_all_right_leave_room_for_error(tmp_path, images, top1, points):
    evaluation = evaluation_of(10, num_images=images, top1=top1)
    results = Page(render(make_run(tmp_path / "run", evaluation=evaluation))).text["results"]
    assert f"on {images:,} images; a test set of this size has a standard error of {points} points" in results


def test_two_evaluations_of_one_set_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run")
    for precision in ("fp32", "bf16"):
        about = {"data": "mine", "split": "test", "checkpoint": "best", "precision": precision}
        (run / f"evaluation-{precision}.json").write_text(json.dumps(evaluation_of(10) | {"about": about}))
    text = Page(render(run)).text["others"]
    assert "mine, test, checkpoint best, bf16:" in text
    assert "mine, test, checkpoint best, fp32:" in text


def test_an_evaluation_of_weights_that_the_run_went_on_from_says_their_step(tmp_path):
    run = make_run(tmp_path / "run")
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["step"]
    for step in (7, last):
        about = {"data": f"of{step}", "split": "test", "checkpoint": "last", "precision": "bf16"}
        about["weights"] = f"step-{step:08d} of 01234567"
        (run / f"evaluation-{step}.json").write_text(json.dumps(evaluation_of(10) | {"about": about}))
    text = Page(render(run)).text["others"]
    assert "of7, test, checkpoint last at that time, step 7, bf16:" in text
    assert f"of{last}, test, checkpoint last, bf16:" in text


def test_a_drawing_of_single_points_is_a_sentence_instead(tmp_path):
    lines = metric_lines(1, [0.75])
    page = Page(render(make_run(tmp_path / "run", epochs=1, lines=[lines[0], lines[-1]])))
    assert "Loss: train 2.125 at epoch 0.08; test 0.4 at epoch 1." in page.text["loss"]
    assert "Accuracy, %: top-1 75 at epoch 1; top-5 99 at epoch 1. 1 evaluation on" in page.text["accuracy"]
    assert "Learning rate: 0.09824 at epoch 0.08." in page.text["lr"]
    assert "1 logged interval)" in page.text["throughput"]
    assert page.source.count("<svg") == 0
    two = Page(render(make_run(tmp_path / "two", epochs=1, lines=[*lines[:2], lines[-1]])))
    assert two.source.count("<svg") == 3


def test_disagreeing_files_are_said(tmp_path):
    evaluation = evaluation_of(10, top1=0.91) | {"num_images": 39_999}
    notes = Page(render(make_run(tmp_path / "run", evaluation=evaluation))).text["notes"]
    assert "counts 40,000 images, evaluation.json 39,999" in notes
    assert "(top-1 91.00%) is not the last evaluation of metrics.jsonl (92.00%)" in notes


def test_a_head_wider_than_the_data_set_may_predict_beyond_the_names(tmp_path):
    evaluation = evaluation_of(10)
    evaluation["worst"][3]["predicted"] = 734
    text = Page(render(make_run(tmp_path / "run", evaluation=evaluation))).text["worst"]
    assert "output 734 (no class)" in text
    assert "0.00749 %" in text  # exp(-9.5), the probability of the worst image's true class


@pytest.mark.parametrize(
    ("device", "ranks", "gpus", "said"),
    [
        ("cuda", 2, ["NVIDIA H200"] * 8, "2 x NVIDIA H200"),
        ("cuda", 16, ["NVIDIA H200"] * 8, "16 x NVIDIA H200"),  # two machines; the first one's are recorded
        ("cuda", 2, ["NVIDIA H200", "NVIDIA L4", "Tesla T4"], "1 x NVIDIA H200, 1 x NVIDIA L4"),
        ("cpu", 2, ["NVIDIA H200"], "EPYC, 2 cores, 2 processes"),
    ],
)
def test_hardware_is_what_the_run_used_not_what_the_machine_has(tmp_path, device, ranks, gpus, said):
    run = make_run(tmp_path / "run")
    info = json.loads((run / "run.json").read_text())
    info |= {"device": device, "num_ranks": ranks, "hardware": {"cpu": "EPYC", "cores": 2, "gpus": gpus}}
    (run / "run.json").write_text(json.dumps(info))
    assert summary(run).count(f" on {said}\n") == 1
