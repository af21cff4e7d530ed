"""imnet reaches the accuracy of the documents' plain PyTorch trainers, and the committed figures show it."""

import json

import pytest

from .__main__ import ROOT, SEEDS, measure, problems, row
from .cases import CASES

SHARED = ROOT.parent / "shared" / "data"
COMMITTED = ROOT / "bench" / "results" / "parity-cpu.json"


@pytest.mark.nightly
@pytest.mark.parametrize("name", CASES)
def test_imnet_and_plain_pytorch_reach_the_same_accuracy(name, tmp_path):
    """Runs five seeds of each side through the command line; a case takes about six minutes on one core."""
    if not SHARED.is_dir():
        pytest.skip(f"{SHARED} is not on this machine")
    told = measure([name], SHARED, tmp_path, tmp_path / "parity.json")
    assert not list(problems(told["rows"][0]))


def of(imnet, plain, fault):
    """Returns a row as ``measure`` makes it, from the accuracies of each side."""
    sides = {"imnet": imnet, "plain": plain, "fault": fault}
    runs = {side: {str(i): {"top1": x} for i, x in enumerate(top1)} for side, top1 in sides.items()}
    return row(CASES["wrn"], "wrn", runs)


@pytest.mark.parametrize(
    ("imnet", "said"),
    [
        ([0.70, 0.72, 0.71, 0.69, 0.73], []),
        ([0.70, 0.72, 0.71, 0.69, 0.63], []),
        ([0.64, 0.66, 0.65, 0.63, 0.67], ["away from plain PyTorch"]),
        ([0.77, 0.78, 0.76, 0.79, 0.77], ["away from plain PyTorch"]),
        ([0.30, 0.50, 0.40, 0.45, 0.35], ["away from plain PyTorch", "does not show"]),
    ],
)
def test_a_verdict(imnet, said):
    found = list(problems(of(imnet, [0.71, 0.70, 0.72, 0.73, 0.69], [0.5, 0.51, 0.49])))
    assert len(found) == len(said)
    for problem, words in zip(found, said, strict=True):
        assert words in problem


def test_what_is_committed_says_that_they_are_equal():
    rows = json.loads(COMMITTED.read_text())["rows"]
    assert [one["case"] for one in rows] == list(CASES)
    for one in rows:
        assert len(one["runs"]["imnet"]) == len(one["runs"]["plain"]) == len(SEEDS)
        assert not list(problems(one))
