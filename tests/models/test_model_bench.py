"""bench_models: no time without its gate, and what its ratios are made of."""

import json

import pytest
import timm
import torch
import torchvision

from bench import bench_models
from imnet.models import build


def test_the_gate_refuses_another_network_and_passes_the_same_one():
    ours, images = build("resnet18", 1000), torch.randn(2, 3, 32, 32)
    bench_models.gate(ours, timm.create_model("resnet18"), images)
    with pytest.raises(SystemExit, match="parameters against"):
        bench_models.gate(ours, torchvision.models.resnet34(), images)
    theirs = torchvision.models.resnet18()
    theirs.layer1.register_forward_hook(lambda module, inputs, output: output * 1.01)
    with pytest.raises(AssertionError, match="not close"):
        bench_models.gate(ours, theirs, images)


def test_ratios_are_taken_round_by_round():
    times = {"ours": [1.0, 2.0, 4.0, 1.0], "theirs": [2.0, 4.0, 8.0, 3.0]}
    row = bench_models.row_of(bench_models.PAIRS[0], 8, False, times)
    assert (row.ratio_median, row.ratio_best, row.n) == (2.0, 2.0, 4)
    assert row.ratio_iqr == pytest.approx(0.75)
    assert bench_models.row_of(bench_models.PAIRS[-1], 8, False, {"ours": [1.0, 2.0]}).theirs is None


def test_the_json_names_machine_peers_and_sides(tmp_path, capsys):
    out, threads = tmp_path / "out.json", torch.get_num_threads()
    bench_models.main(["--only", "resnet18", "--rounds", "6", "--batch", "1", "--seconds", "1", "--json", str(out)])
    torch.set_num_threads(threads)
    found = json.loads(out.read_text())
    assert found["benchmark"] == "models"
    assert found["fingerprint"]["versions"]["timm"] == timm.__version__
    assert [(row["peer"], row["same"], row["n"]) for row in found["rows"]] == [
        ("torchvision", True, 6),
        ("timm", False, 6),
    ]
    assert all(row["ratio_median"] > 0 and row["theirs"]["best_s"] > 0 for row in found["rows"])
    assert capsys.readouterr().out.count("resnet18") == 2
