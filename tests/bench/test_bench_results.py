"""RESULTS.md shows the figures of the committed JSON files, and every kind of JSON has its section."""

import json

import pytest

import imnet
from bench import results, tables, whole
from bench.cli import main
from bench.form import short
from bench.tables import SECTIONS, shown
from imnet.report.measured import of_results
from imnet.report.read import load

MACHINE = {
    "cpu": "Z80",
    "cores": 2,
    "gpu": None,
    "threads": 2,
    "precision": "bf16",
    "versions": {"torch": "2.15.0"},
    "git_sha": "0123456789abcdef",
    "date": "2026-11-21",
}


def part(value):
    return {"images_per_s": value, "images_per_s_iqr": value / 10, "images_per_s_by_clock": value, "n": 12}


THROUGHPUT = {
    "benchmark": "throughput",
    "fingerprint": MACHINE,
    "rows": [
        {
            "recipe": "fashion-mnist/speedrun",
            "image_px": 28,
            "batch_images": 256,
            "precision": "bf16",
            "clock": "CPU time per core",
            "rates": {"loader": part(1e6), "model": part(4000.0), "end to end": part(3900.0)},
            "first_step_s": 1.25,
            "peak_memory_bytes": 3 << 29,
            "mfu": 0.123,
            "matmul_flops_per_s": 1.7e12,
            "copy_bytes_per_s": 23e9,
            "bound": "bound by the model",
        }
    ],
}
SCALING = {
    "benchmark": "scaling",
    "fingerprint": MACHINE,
    "recipe": "quickstart",
    "model": "speednet",
    "backend": "gloo",
    "rows": [
        {"kind": "weak", "ranks": 2, "batch_images": 64, "step_s": 0.032, "step_s_iqr": 0.001, "efficiency": 0.875,
         "n": 20, "oversubscribed": False}
    ],
}  # fmt: skip


def gpu(device, rate):
    about = {"device": device, "gpu": device, "driver": "1.2", "versions": {"torch": "2.11.0"}, "date": "2026-11-22"}
    step = {"part": "steps", "name": "wrn28_10@28, 256", "images_per_s": rate, "step_ms": 20.0, "mfu": 0.4, "n": 7}
    common = {"epochs": 20, "schedule": "onecycle", "published_top1": None, "images_per_s": 9e3, "wall_s": 96.0}
    run = {"part": "recipes", "name": "fashion-mnist/wrn28_10", "top1": 0.9427, "seconds": 44.5, **common}
    kernel = {"part": "kernels", "name": "augment", "us": 8.48, "share_of_copy": 0.371, "us_launched": 89.0}
    rows = [
        step | {"variant": "captured", "steps_a_window": 10},
        run | {"variant": "seed 0", "seed": 0},
        run | {"variant": "seed 1", "seed": 1, "top1": 0.9433, "note": "beside another run"},
        kernel | {"variant": "triton"},
        kernel | {"variant": "cuda", "us": None},
        {"part": "build", "name": "_C", "variant": "in the background", "seconds": 61.5},
        {"part": "steps", "name": "resnet50@224, 256", "variant": "eager", "error": "out of memory"},
        {"part": "steps", "name": "resnet50@224, 256", "variant": "compiled", "skipped": "no time"},
    ]
    return {"benchmark": "gpu", "fingerprint": about, "rows": rows}


GPU = gpu("NVIDIA Something", 12898.4)


def committed():
    paths = sorted((results.HERE / "results").glob("*.json"))
    return [one for path in paths for one in results.expanded(json.loads(path.read_text()))]


def test_results_md_is_what_the_committed_files_say():
    found = results.document(committed(), (results.HERE / "NEGATIVES.md").read_text())
    assert (results.HERE / "RESULTS.md").read_text() == found, "run python -m bench.results"


def test_every_committed_file_has_a_section():
    for data in committed():
        assert data["benchmark"] in {"gpu", *SECTIONS}


def test_a_gpu_is_not_measured_until_its_file_is_there():
    without, with_gpu = (results.document(found, "notes") for found in ([THROUGHPUT], [THROUGHPUT, GPU]))
    assert "On a GPU: not measured." in without
    assert "On a GPU: not measured." not in with_gpu
    assert "NVIDIA Something" in with_gpu
    for figure in ("12,898 (20.0)", "40.0% (captured)", "94.30 ± 0.04", "44.5 / 44.5", "8.48, 37% (89)", "61.5"):
        assert figure in with_gpu, figure
    assert "- steps: resnet50@224, 256, eager: out of memory" in with_gpu
    assert "Rows left out: steps 1." in with_gpu


def test_cards_stand_beside_each_other_each_with_its_name():
    text = results.document([GPU, gpu("NVIDIA Other", 20000.0)], "notes")
    sections = text.split("## On a GPU: ")[1:]
    assert [section.split(",")[0] for section in sections] == ["NVIDIA Something", "NVIDIA Other"]
    for section, rate in zip(sections, ("12,898", "20,000"), strict=True):
        assert rate in section
        heads = [line for line in section.splitlines() if line.startswith("### ")]
        assert all("2026-11-22" in head for head in heads)


@pytest.mark.parametrize(
    ("data", "figures"),
    [
        (THROUGHPUT, ["1,000,000", "4,000 (IQR 400)", "12.3%", "1.2", "1.50 GiB", "1.7 TFLOP/s", "Z80, 2 cores"]),
        (SCALING, ["32.0 (IQR 1.0)", "2,000", "87.5%", "gloo", "Z80, 2 cores"]),
    ],
)
def test_a_section_shows_its_figures_and_its_machine(data, figures):
    text = results.document([data], "notes")
    for figure in figures:
        assert figure in text


@pytest.mark.parametrize(("share", "said"), [(2.2, True), (0.99, False), (None, False)])
def test_a_share_above_the_copys_is_explained(share, said):
    data = {
        "fingerprint": MACHINE,
        "environment": {"isa": "z80"},
        "rows": [{"share_of_copy": 0.5}, {"share_of_copy": share}],
    }
    assert ("over 100 %: in the caches" in SECTIONS["kernels"].about(data)) is said


def test_the_parts_of_all_are_sections_and_a_failed_part_is_none():
    both = {"benchmark": "all", "parts": {"a": THROUGHPUT, "b": {"benchmark": "data", "error": "no disk"}}}
    assert results.expanded(both) == [THROUGHPUT]
    assert results.expanded(SCALING) == [SCALING]


def test_a_row_is_a_line_where_it_fits_and_else_a_line_a_column():
    line = shown("scaling", SCALING["rows"][0])
    assert line == (
        "weak: ranks 2; global batch 64; ms a step 32.0 (IQR 1.0); images/s 2,000; efficiency 87.5%; "
        "the model's not measured; n 20"
    )
    wide = shown("throughput", THROUGHPUT["rows"][0]).splitlines()
    assert wide[0] == "fashion-mnist/speedrun, 28 px, batch 256, bf16"
    assert wide[-1].split(maxsplit=1) == ["bound", "bound by the model"]
    assert len(wide) == len(SECTIONS["throughput"].head)


@pytest.mark.parametrize(("value", "text"), [(None, "not measured"), (1234.5, "1,234"), (0.01234, "0.0123")])
def test_numbers_for_people(value, text):
    assert short(value) == text


def test_runs_of_one_recipe_that_are_several_experiments_are_not_averaged(tmp_path):
    tiny = imnet.replace(imnet.recipes["quickstart"], epochs=1, model_options={"width": 8})
    tiny = imnet.replace(tiny, data=imnet.replace(tiny.data, train_images=32, test_images=16, batch_images=16))
    slower = imnet.replace(tiny, optim=imnet.replace(tiny.optim, lr=0.01))
    each = {"a": tiny, "b": imnet.replace(tiny, seed=1), "c": slower}
    folders = [imnet.train(recipe, out=tmp_path / name, device="cpu", threads=1).path for name, recipe in each.items()]
    rows = list(whole.run_rows(folders))
    one, other = tables._runs(rows)
    assert [line[6] for line in (one, other)] == ["2 (seeds 0, 1)", "1 (seeds 0)"]
    assert one[0] != other[0]
    assert [line[0] for line in tables._runs(rows[:2])] == ["quickstart"]


def test_a_complete_run_whose_log_is_gone_is_one_line(tmp_path, capsys):
    (tmp_path / "run.json").write_text('{"status": "complete", "recipe": {}}')
    assert main(["runs", str(tmp_path)]) == 65
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert "metrics.jsonl: has no evaluation" in told.err


@pytest.mark.parametrize(
    ("device", "ranks", "said"),
    [
        ("cuda", 8, "8 x NVIDIA H200"),
        ("cpu", 1, "EPYC, 64 cores"),
        ("cpu", 2, "EPYC, 64 cores, 2 processes"),
    ],
)
def test_the_hardware_of_a_run_is_the_same_on_a_systems_page_as_in_its_report(device, ranks, said, tmp_path):
    """Of a run on a machine with GPUs, whichever of them it used."""
    tiny = imnet.replace(imnet.recipes["quickstart"], epochs=1, model_options={"width": 8})
    tiny = imnet.replace(tiny, data=imnet.replace(tiny.data, train_images=32, test_images=16, batch_images=16))
    run = imnet.train(tiny, out=tmp_path / "run", device="cpu", threads=1)
    here = {"cpu": "EPYC", "cores": 64, "gpus": ["NVIDIA H200"] * 8}
    told = run.info | {"device": device, "num_ranks": ranks, "hardware": here}
    (run.path / "run.json").write_text(json.dumps(told))
    rows = {"benchmark": "runs", "fingerprint": MACHINE, "rows": list(whole.run_rows([run.path]))}
    (tmp_path / "runs.json").write_text(json.dumps(rows))
    assert load(run.path).hardware == said
    assert [one.hardware for one in of_results(tmp_path / "runs.json")] == [said]
