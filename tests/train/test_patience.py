"""--patience: a run ends when held-out accuracy no longer improves, reports that, and does the same after a kill."""

import dataclasses
import json
import os
import signal

import pytest

from imnet.errors import UsageError
from imnet.metrics import read_metrics
from imnet.report import summary
from imnet.start import train

from .conftest import TINY, options
from .test_resume import digests, wait_for_step

PATIENT = dataclasses.replace(
    TINY, epochs=30, patience=2, data=dataclasses.replace(TINY.data, val_images=64, val_stratified=True)
)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, spawn):
    folder = tmp_path_factory.mktemp("patient") / "run"
    process = spawn(PATIENT, options(folder, checkpoint_every_steps=5))
    process.join(120)
    assert process.exitcode == 0
    return folder


def test_it_stops_so_many_epochs_after_the_best_one(stopped):
    run = json.loads((stopped / "run.json").read_text())
    values = [row for row in read_metrics(stopped / "metrics.jsonl") if row["kind"] == "val"]
    assert [row["epoch"] for row in values] == list(range(1, run["stopped"] + 1))  # evaluated at every epoch
    best = max(values, key=lambda row: row["top1"])["epoch"]  # the earliest if several are equal
    assert run["best"]["epoch"] == best
    assert run["stopped"] == best + 2 < 30
    assert run["status"] == "complete"
    assert f"Finished: {run['stopped']} epochs of 30, stopped by --patience 2" in summary(stopped)


def test_a_killed_run_stops_at_the_same_epoch_with_the_same_bytes(stopped, spawn, tmp_path):
    process = spawn(PATIENT, options(tmp_path, checkpoint_every_steps=5))
    wait_for_step(tmp_path, process)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    process = spawn(PATIENT, options(tmp_path, checkpoint_every_steps=5))
    process.join(120)
    assert process.exitcode == 0
    assert digests(tmp_path) == digests(stopped)


def test_killed_after_the_last_checkpoint_it_still_ends_there(stopped, spawn, capsys):
    """The files of the end that are missing are written again; a complete run is left alone."""
    before = digests(stopped)
    (stopped / "evaluation.json").unlink()
    spawn(PATIENT, options(stopped)).join(120)
    assert digests(stopped) == before
    assert (stopped / "evaluation.json").is_file()
    train(PATIENT, options(stopped))
    assert "complete already" in capsys.readouterr().out


def test_more_patience_goes_on_where_it_is_allowed(stopped):
    end = json.loads((stopped / "run.json").read_text())["stopped"]
    more = dataclasses.replace(PATIENT, patience=None, epochs=end + 1)
    with pytest.raises(UsageError, match="patience was 2"):
        train(more, options(stopped))
    train(more, options(stopped, allow_change=True))
    run = json.loads((stopped / "run.json").read_text())
    assert run["stopped"] is None
    assert read_metrics(stopped / "metrics.jsonl")[-1]["epoch"] == end + 1


@pytest.mark.parametrize("changes", [{}, {"hold_out": 0.1}])
def test_without_held_out_images_it_is_one_line(tmp_path, changes):
    recipe = dataclasses.replace(TINY, patience=2, data=dataclasses.replace(TINY.data, **changes))
    with pytest.raises(UsageError, match=r"patience without held-out|hold_out is 0\.1 for data set shapes"):
        train(recipe, options(tmp_path / "run"))
    assert not list((tmp_path / "run").glob("*.json*"))
