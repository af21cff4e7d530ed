"""RESULTS.md is what the committed JSON files say, and every kind of JSON has its section."""

import json

import pytest

from bench import results
from bench.result_tables import short

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
GPU = {
    "benchmark": "gpu",
    "fingerprint": {"device": "NVIDIA Something", "versions": {"torch": "2.11.0"}, "date": "2026-11-22"},
    "complete": {"build": True},
    "rows": [{"part": "build", "name": "_C", "variant": "nvcc", "seconds": 61.5, "took_s": 61.5}],
}


def committed():
    paths = sorted((results.HERE / "results").glob("*.json"))
    return [one for path in paths for one in results.expanded(json.loads(path.read_text()))]


def test_results_md_is_what_the_committed_files_say():
    found = results.document(committed(), (results.HERE / "NEGATIVES.md").read_text())
    assert (results.HERE / "RESULTS.md").read_text() == found, "run python -m bench.results"


def test_every_committed_file_has_a_section():
    for data in committed():
        assert results.kind(data) in results.SECTIONS


def test_a_gpu_is_not_measured_until_its_file_is_there():
    without, with_gpu = (results.document(found, "notes") for found in ([THROUGHPUT], [THROUGHPUT, GPU]))
    assert "On a GPU: not measured." in without
    assert "On a GPU: not measured." not in with_gpu
    assert "NVIDIA Something" in with_gpu
    assert "61.5 s" in with_gpu


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


def test_the_parts_of_all_are_sections_and_a_failed_part_is_none():
    both = {"benchmark": "all", "parts": {"a": THROUGHPUT, "b": {"benchmark": "data", "error": "no disk"}}}
    assert results.expanded(both) == [THROUGHPUT]
    assert results.expanded(SCALING) == [SCALING]


@pytest.mark.parametrize(("value", "text"), [(None, "not measured"), (1234.5, "1,234"), (0.01234, "0.0123")])
def test_numbers_for_people(value, text):
    assert short(value) == text
