"""The page of a system shows its document's table beside the results of runs, as HTML, Markdown and CSV."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from run_folders import Page, evaluation_of, make_run, metric_lines

import imnet
from imnet import bandsheet, cli, report
from imnet.recipe import replace
from imnet.recipe_json import to_dict
from imnet.recipes.documents import DOCUMENTS, of_system

ROOT = Path(__file__).resolve().parents[2]
SEEDS = ROOT.parent / "shared" / "seeds"
FIGURES = {
    "002": (r"\| (\d{5,8}) \| (\d\d\.\d+) \|", lambda found: {round(float(top1) / 100, 8) for _, top1 in found}),
    "003": (r"(0\.\d{6,})", lambda found: {round(float(text), 4) for text in found}),
    "004": (r"(\d\d\.\d+) ?%", lambda found: {round(float(text) / 100, 4) for text in found}),
}


def page_of(tmp_path, name, places=(), **more):
    out = tmp_path / "page.html"
    assert report.system(name, places, out, **more) == [out, out.with_suffix(".md"), out.with_suffix(".csv")]
    rows = list(csv.DictReader(io.StringIO(out.with_suffix(".csv").read_text())))
    return Page(out), out.with_suffix(".md").read_text(), rows


def run_of(recipe, folder, top1, val=False, **changes):
    """Writes a finished run of ``recipe``, with metrics of held-out images if ``val``."""
    lines = metric_lines(recipe.epochs, [top1] * recipe.epochs) if recipe.epochs < 9 else [
        {"kind": "eval", "step": 10, "epoch": recipe.epochs, "loss": 0.4, "top1": top1, "top5": 0.9, "seconds": 3600},
        {"kind": "train", "step": 9, "epoch": 0.9, "loss": 1.0, "lr": 0.1, "images_per_s": 9, "seconds": 1, "top1": 0.3}
    ]  # fmt: skip
    if val:
        lines += [line | {"kind": "val", "top1": top1 - 0.1} for line in lines if line["kind"] == "eval"]
    values = {"recipe": to_dict(recipe), "lines": lines, "seed": recipe.seed, "epochs": recipe.epochs}
    return make_run(folder, **(values | changes))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda d: d.system)
def test_where_nothing_ran_every_row_says_so(document, tmp_path):
    page, markdown, rows = page_of(tmp_path, document.system)
    main = [row for row in rows if not row["band"]]
    assert [row["row"] for row in main] == list(document.rows)
    assert {row["n"] for row in rows} == {"0"}
    assert all(not row["top1"] and not row["difference"] for row in rows)
    assert page.text["document"].count("not run") == len(main)
    assert "not measured" not in page.text["document"]
    tables = [part.strip().splitlines() for part in markdown.split("## ")[1:]]
    assert [len(lines) - 4 for lines in tables] == [n for n in (len(main), len(rows) - len(main)) if n]
    for _, _, *lines in tables:
        assert len({line.replace("\\|", "").count("|") for line in lines}) == 1
    assert of_system(document.number) is document


@pytest.mark.parametrize("number", FIGURES)
def test_every_accuracy_of_the_document_is_on_its_page(number, tmp_path):
    if not SEEDS.is_dir():
        pytest.skip(f"{SEEDS} is not on this machine")
    pattern, read = FIGURES[number]
    theirs = read(re.findall(pattern, next(SEEDS.glob(f"{number}_*")).read_text()))
    _, _, rows = page_of(tmp_path, number)
    brackets = re.findall(r"0\.\d+", " ".join(row["references"] for row in rows))
    ours = {float(row["top1_published"]) for row in rows if row["top1_published"]} | set(map(float, brackets))
    # Document 003 also rounds its table's figures in the text; document 004 has one figure twice.
    assert theirs <= ours
    assert len(theirs) >= {"002": 5, "003": 10, "004": 19}[number]
    if number == "004":
        hours = {float(row["hours_published"]) for row in rows if row["hours_published"]}
        assert {40.8, 20.2, 9.7, 81.2, 44.14, 26.84, 43.66, 281, 20.02, 43.8, 62.6, 246, 90} <= hours
        sizes = {float(row["mib"]) for row in rows if row["mib"]}
        assert sizes >= {37.73, 527.79, 207.82, 128.05, 83.15, 97.69, 122.35}


def test_the_ten_runs_with_both_plots_and_a_held_out_part_as_theirs(tmp_path):
    document = of_system("tiny-imagenet")
    folders = []
    for i, name in enumerate(document.rows.values()):
        recipe = imnet.recipes[name]
        recipe = replace(recipe, data=replace(recipe.data, val_images=10_000, val_seed=123))
        folders.append(run_of(recipe, tmp_path / "sweep" / f"r{i}", 0.5 + i / 100, val=True))
    second = replace(recipe, seed=1)
    run_of(second, tmp_path / "sweep" / "r9b", 0.61, val=True)
    page, markdown, rows = page_of(tmp_path, "tiny-imagenet", [tmp_path / "sweep"])
    assert [float(row["top1"]) for row in rows[:9]] == pytest.approx([0.5 + i / 100 for i in range(9)])
    assert [row["changed"] for row in rows] == [""] * 10
    assert float(rows[0]["difference"]) == pytest.approx(0.5 - 0.4458)
    assert "+5.42 points" in page.text["document"]
    # The last row has two seeds, 59 and 61 %.
    assert (float(rows[9]["top1"]), rows[9]["n"], rows[9]["seeds"]) == (pytest.approx(0.60), "2", "0 1")
    assert float(rows[9]["top1_deviation"]) == pytest.approx(2**0.5 / 100)
    assert "60.00 % ± 1.41" in page.text["document"]
    assert "60.00 % ± 1.41" in markdown
    for plot in ("both-accuracy", "both-loss"):
        drawing = page.source.split(f'id="{plot}"')[1].split("</svg>")[0]
        assert drawing.count("stroke-opacity: 0.4") + drawing.count("opacity: 0.4") >= 11  # thin lines of training
    assert "Bold: the images held out of train." in page.text["both-accuracy"]
    assert "Confusion matrix of r9b" in page.source


def test_what_ran_otherwise_is_named_and_another_network_is_beside(tmp_path):
    wrn, fast, own = (imnet.recipes[f"fashion-mnist/{name}"] for name in ("wrn28_10", "wrn28_10_fast", "speedrun"))
    ran = [(wrn, 0.93), (fast, 0.9427), (own, 0.92), (imnet.recipes["quickstart"], 0.99)]
    folders = [run_of(recipe, tmp_path / f"{i}", top1) for i, (recipe, top1) in enumerate(ran)]
    page, _, rows = page_of(tmp_path, "fashion-mnist", folders)
    found = {row["recipe"]: row for row in rows if row["n"] == "1"}
    assert found["fashion-mnist/wrn28_10"]["changed"] == ""
    assert found["fashion-mnist/wrn28_10_fast"]["row"] == "WideResNet"
    assert set(found["fashion-mnist/wrn28_10_fast"]["changed"].split(", ")) == {"schedule", "epochs", "label_smoothing"}
    assert "another run: changed schedule, epochs, label_smoothing" in page.text["document"]
    assert found["fashion-mnist/speedrun"]["row"] == ""
    assert "92.00 %" in page.text["beside"]
    assert "changed" not in page.text["beside"]
    assert "quickstart" not in found
    assert "1 of other systems left out" in page.source
    assert float(found["fashion-mnist/wrn28_10"]["hours_published"]) == 7


def test_a_run_on_the_way_counts_for_nothing(tmp_path):
    recipe = imnet.recipes["fashion-mnist/wrn28_10"]
    folder = run_of(recipe, tmp_path / "a", 0.93, lines=metric_lines(3, [0.9, 0.91, 0.92]))
    _, _, rows = page_of(tmp_path, "fashion-mnist", [folder])
    assert {row["n"] for row in rows} == {"0"}
    own = imnet.recipes["fashion-mnist/speedrun"]
    page, _, rows = page_of(tmp_path, "fashion-mnist", [run_of(replace(own, epochs=3), tmp_path / "b", 0.8)])
    assert "fashion-mnist/speedrun changed epochs" in page.text["beside"]
    assert rows[-1]["changed"] == "epochs"


def test_the_terminal_says_what_is_in_no_row(tmp_path, capsys):
    wrn, other = imnet.recipes["fashion-mnist/wrn28_10"], imnet.recipes["imagenet64/wrn36_5"]
    run_of(wrn, tmp_path / "all" / "whole", 0.93)
    run_of(wrn, tmp_path / "all" / "half", 0.93, lines=metric_lines(3, [0.9, 0.91, 0.92]))
    run_of(other, tmp_path / "all" / "elsewhere", 0.6)
    results = str(ROOT / "bench" / "results" / "runs-cpu-epyc.json")
    for name, *expected in (
        ("fashion-mnist", "1 of other systems left out: elsewhere", "1 not finished, in no row: half"),
        ("imagenet64", "2 of other systems left out: half, whole", "2 recipe(s) of result files left out"),
    ):
        out = str(tmp_path / "page.html")  # the page of the other system is replaced, as a report is
        assert cli.report_main(["--system", name, str(tmp_path / "all"), results, "--out", out]) == 0
        told = capsys.readouterr().out
        assert told.count("note ") == 2
        assert all(f"note       {line}" in told for line in expected)


def test_bands_and_their_ensemble(tmp_path):
    recipe = imnet.recipes["spectral/resnet34_sub4"]
    for band, top1 in enumerate((0.7, 0.6, 0.5, 0.65)):
        one = replace(recipe, augment=replace(recipe.augment, spectral_band=band))
        run_of(one, tmp_path / "ensemble" / f"band-{band}", top1)
    page, _, rows = page_of(tmp_path, "spectral", [tmp_path / "ensemble"])
    bands = [row for row in rows if row["recipe"] == recipe.name and row["band"]]
    assert [float(row["top1"]) for row in bands] == [0.7, 0.6, 0.5, 0.65]
    assert [float(row["top1_published"]) for row in bands] == [0.7631, 0.7439, 0.6879, 0.7482]
    (whole,) = [row for row in rows if row["recipe"] == recipe.name and not row["band"]]
    assert (whole["n"], float(whole["top1_published"]), float(whole["hours_published"])) == ("0", 0.7829, 281)
    rules = [
        {"name": "band 0", "chosen_on": "", "weights": {"0": 1.0}, "test": {"top1": 0.7}},
        {"name": "chosen: geometric, p = 0.3", "chosen_on": "held-out images", "weights": {"0": 0.6, "3": 0.4},
         "test": {"top1": 0.75}},
        {"name": "the document's way: chosen, p = 0.8", "chosen_on": "the test images", "weights": {"0": 1.0},
         "test": {"top1": 0.76}},
    ]  # fmt: skip
    costs = [{"name": "chosen: geometric, p = 0.3", "device_hours": 2.5}]
    saved = {str(band): "step-00000010 of 0123abcd" for band in range(4)}
    fusion = {"bands": saved, "rules": rules, "costs": costs}
    (tmp_path / "ensemble" / "fusion.json").write_text(json.dumps(fusion))
    page, _, rows = page_of(tmp_path, "spectral", [tmp_path / "ensemble"])
    ours, theirs = [row for row in rows if row["recipe"] == recipe.name and not row["band"]]
    assert (float(ours["top1"]), float(ours["hours"]), theirs["hours"]) == (0.75, 2.5, "")
    assert float(theirs["difference"]) == pytest.approx(0.76 - 0.7829)
    assert "bands 0, 3; chosen on held-out images" in page.text["document"]
    assert "chosen on the test images" in page.text["document"]
    # A fusion of earlier weights, of another configuration, or of a band that does not exist, is left out.
    for early in (saved | {"3": "step-00000009 of 0123abcd"}, saved | {"3": "step-00000010 of 0"}, saved | {"7": "x"}):
        (tmp_path / "ensemble" / "fusion.json").write_text(json.dumps(fusion | {"bands": early}))
        page, _, rows = page_of(tmp_path, "spectral", [tmp_path / "ensemble"])
        assert [row["n"] for row in rows if row["recipe"] == recipe.name and not row["band"]] == ["0"]
        assert "1 fusion.json left out, of weights that are not the last: imnet-eval again" in page.source
    weightless = [{"name": "chosen", "weights": {"a": 1}}]
    for damaged in ({"rules": 1}, fusion | {"rules": weightless}, fusion | {"costs": [3]}, fusion | {"bands": None}):
        (tmp_path / "ensemble" / "fusion.json").write_text(json.dumps(damaged))
        with pytest.raises(imnet.ImnetError, match=r"fusion.json: does not hold bands, rules"):
            page_of(tmp_path, "spectral", [tmp_path / "ensemble"])


def test_the_measured_results_fill_the_page_of_fashion_mnist(tmp_path):
    """Results files of whole training runs on a CPU and on an H100 are read like run folders."""
    results = ROOT / "bench" / "results"
    paths = [results / "runs-cpu-epyc.json", results / "h100-2026-11-26.json"]
    _, _, rows = page_of(tmp_path, "fashion-mnist", paths)
    (wrn,) = [row for row in rows if row["recipe"] == "fashion-mnist/wrn28_10" and row["n"] != "0"]
    assert (float(wrn["top1"]), wrn["n"], wrn["epochs"]) == (0.9427, "1", "20")
    assert {"epochs", "schedule"} <= set(wrn["changed"].split(", "))
    assert "H100" in wrn["hardware"]
    (cpu,) = [row for row in rows if row["recipe"] == "fashion-mnist/speedrun" and "EPYC" in row["hardware"]]
    kept = [row for row in json.loads(paths[0].read_text())["rows"] if row["recipe"] == "fashion-mnist/speedrun"]
    assert int(cpu["n"]) == len(kept)
    assert float(cpu["top1"]) == pytest.approx(np.mean([row["top1"] for row in kept]))
    assert float(cpu["top1_deviation"]) == pytest.approx(np.std([row["top1"] for row in kept], ddof=1))
    assert float(cpu["hours"]) == pytest.approx(np.mean([row["seconds"] for row in kept]) / 3600)
    with pytest.raises(imnet.ImnetError, match=r"none\.json: no such file; give a JSON file of imnet-bench"):
        page_of(tmp_path, "fashion-mnist", [results / "none.json"])
    with pytest.raises(imnet.ImnetError, match="no row of a training"):
        page_of(tmp_path, "fashion-mnist", [results / "scaling-cpu.json"])


def test_two_searched_values_are_a_heat_map(tmp_path):
    recipe, grid = imnet.recipes["fashion-mnist/speedrun"], {}
    for i, lr in enumerate((0.01, 0.2, 0.1)):
        for j, decay in enumerate((1e-3, 0.0)):
            for seed in (0, 1):
                one = replace(recipe, optim=replace(recipe.optim, lr=lr, weight_decay=decay), seed=seed, epochs=3)
                top1 = 0.5 + 0.1 * i + 0.02 * j + 0.002 * seed
                grid.setdefault((decay, lr), []).append(top1)
                run_of(one, tmp_path / "sweep" / f"{i}{j}{seed}", top1, val=True)
    out = tmp_path / "page.html"
    report.compare(report.expand([tmp_path / "sweep"]), out)
    heat = Page(out).source.split('table class="heat search"')[1].split("</table>")[0]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", line) for line in heat.split("<tr>")[1:]]
    assert rows[0] == ["optim.weight_decay \\ optim.lr", "0.01", "0.1", "0.2"]
    for (name, *cells), decay in zip(rows[1:], (0.0, 1e-3), strict=True):
        assert float(name) == decay
        assert cells == [f"{100 * np.mean(grid[decay, lr]):.2f} %" for lr in (0.01, 0.1, 0.2)]
    assert heat.count("best") == 1
    assert "72.10 %" in heat.split("best")[1].split("</td>")[0]
    # Three differing values give no heat map.
    run_of(replace(recipe, epochs=4), tmp_path / "sweep" / "other", 0.5)
    report.compare(report.expand([tmp_path / "sweep"]), out)
    assert "heat search" not in out.read_text()


@pytest.mark.parametrize("r", [2, 4, 6])
def test_the_sheet_shows_every_band_of_the_picture(r, tmp_path):
    from PIL import Image
    from scipy.fft import dct

    side = bandsheet.SIDES_PX[r]
    pixels = np.random.default_rng(r).integers(0, 256, (side, side, 3), dtype=np.uint8)
    pixels = np.repeat(np.repeat(pixels[::8, ::8], 8, 0), 8, 1)
    pixels[: side // 2] = np.linspace(0, 255, side).astype(np.uint8)[None, :, None]
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    sheet = np.asarray(Image.open(io.BytesIO(bandsheet.sheet(tmp_path / "picture.png", r)))).astype(float)
    phases = np.stack([pixels[row::r, col::r] for row in range(r) for col in range(r)]) / 255
    bands = dct(phases, type=2, axis=0, norm=None)
    tile, caption = report.plots.TILE_PX, report.plots.CAPTION_PX
    for k in (0, 1, r * r - 1):
        top, left = k // r * (tile + caption + 8) + 4, k % r * (tile + 8) + 4
        size = side // r * (tile // (side // r))
        at = (tile - size) // 2
        seen = sheet[top + at : top + at + size, left + at : left + at + size][
            :: tile // (side // r), :: tile // (side // r)
        ]
        top99 = np.quantile(np.abs(bands[k]), 0.995)
        wanted = bands[0] / (2 * r * r) if k == 0 else 0.5 + 0.5 * bands[k] / top99
        assert np.abs(seen - 255 * wanted.clip(0, 1)).max() <= 1.01


MISTAKES = [
    ([], "got no run folder"),
    (["--system", "fashion"], "did you mean fashion-mnist?"),
    (["--system", "001"], "allowed: imagenet64, fashion-mnist, tiny-imagenet, spectral"),
    (["--system", "tiny-imagenet", "--picture", "x.png"], "which has no bands"),
    (["--picture", "x.png"], "--picture without --system spectral"),
]


@pytest.mark.parametrize(("argv", "said"), MISTAKES)
def test_a_mistake_is_one_line(argv, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.report_main(argv) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_command_writes_three_files_and_refuses_what_is_no_picture(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.report_main(["--system", "003", "--out", "page.md"]) == 2
    assert "got --out page.md, which lies beside the page; --out page.html" in capsys.readouterr().err
    assert cli.report_main(["--system", "003"]) == 0
    assert capsys.readouterr().out.split() == [f"system-tiny-imagenet.{end}" for end in ("html", "md", "csv")]
    (tmp_path / "text.png").write_text("no")
    assert cli.report_main(["--system", "spectral", "--picture", "text.png"]) == 65
    assert "text.png: is no picture" in capsys.readouterr().err
    run = run_of(imnet.recipes["tiny-imagenet/resnet18_64"], tmp_path / "run", 0.5, evaluation=evaluation_of(200))
    assert cli.report_main(["--system", "tiny-imagenet", str(run), str(run)]) == 2
    assert "given twice" in capsys.readouterr().err
