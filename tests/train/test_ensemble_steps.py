"""What an ensemble prints of its bands, and how it takes their steps in turn."""

import dataclasses
import shutil
from types import SimpleNamespace

import pytest

from imnet import ensemble
from imnet.errors import DataError, Preempted
from imnet.start import train
from imnet.watch import Signals

from .test_ensemble import BANDS, how

SHARED = ["ensemble", "recipe", "data", "note", "pipeline", "device", "batch", "step", "kernels"]
OWN = ["run", "warm-up", "epoch", "epoch", "top-1,", "top-1,", "validation,", "report"]


def said(capsys):
    """The first words of the lines of the whole, and of the lines of each band; without those of progress."""
    words = [line.split() for line in capsys.readouterr().out.splitlines()]
    bands = {w[1]: [v[2] for v in words if v[:2] == w[:2] and v[2] != "step"] for w in words if w[0] == "band"}
    return [w[0] for w in words if w[0] != "band"], bands


def test_what_holds_for_all_bands_is_printed_once(tmp_path, capsys):
    recipe = dataclasses.replace(BANDS, epochs=1, ema_decay=None)
    train(recipe, how(tmp_path, "1,3"))
    assert said(capsys) == ([*SHARED, "ensemble"], {"1": OWN, "3": OWN})
    # Also if the first band has nothing left to do.
    shutil.rmtree(max((tmp_path / "band-3" / "checkpoints").glob("step-*")))
    train(recipe, how(tmp_path, "1,3"))
    whole, bands = said(capsys)
    assert whole == [*SHARED, "ensemble"]
    assert bands["1"][0] == "complete"
    assert bands["3"][0] == "run"


def test_the_time_left_is_that_of_all_bands(capsys):
    voice = ensemble.Voice(2, 0, 3, Signals(alone=True), lead=iter([]), enabled=True)
    voice.interval_s = 0.0
    voice.progress(5, 1.0, 2, 0.5, 0.1, 100.0, 10.0)
    line = capsys.readouterr().out
    assert line.startswith("band 2     step 5 ")
    assert "0:30 left" in line


@pytest.mark.parametrize(("bands", "ranks", "each"), [
    ((0, 1, 2, 3), 2, None), ((0, 1), 2, None), ((0, 1), 4, 2), ((2,), 3, 3), ((2,), 1, None),
])  # fmt: skip
def test_a_rank_runs_its_bands_as_a_launch_of_one_band_would(tmp_path, bands, ranks, each):
    on_cpu, on_gpus = how(tmp_path, procs=ranks, device="auto"), how(tmp_path, gpus=ranks, device="auto")
    assert ensemble.of_rank(on_cpu, bands) == dataclasses.replace(on_cpu, procs=each, device="cpu")
    assert ensemble.of_rank(on_gpus, bands) == dataclasses.replace(on_gpus, gpus=each)
    one = how(tmp_path)
    assert ensemble.of_rank(one, bands) == one
    assert ensemble.ranks_a_band((), ranks) == ranks


@pytest.mark.parametrize(("ranks", "where"), [
    (1, ": 0 1 3"), (2, ", over 2 ranks: 0 | 1 3"), (3, ", over 3 ranks: 0 | 1 | 3"), (6, ", 2 ranks a band: 0 1 3"),
])  # fmt: skip
def test_the_first_line_says_which_rank_trains_what(ranks, where):
    assert ensemble.told(BANDS, (0, 1, 3), ranks) == f"3 of 4 bands, a network each{where}"


class Steps:
    """A run at ``step`` of ten, which raises ``error`` at step ``at``. It writes its steps and its end to ``log``."""

    def __init__(self, band, step, log, at=None, error=None):
        self.band, self.log, self.at, self.error = band, log, at, error
        self.state = SimpleNamespace(step=step)

    def steps(self):
        try:
            while self.state.step < 10:
                if self.state.step == self.at:
                    raise self.error
                yield
                self.log.append((self.band, self.state.step))
                self.state.step += 1
        finally:
            self.log.append((self.band, "closed"))


def test_bands_that_are_behind_catch_up_first():
    log = []
    ensemble.in_step({band: Steps(band, step, log) for band, step in ((0, 4), (1, 0), (3, 2), (5, 10))})
    steps = [entry for entry in log if entry[1] != "closed"]
    assert steps == sorted(steps, key=lambda entry: entry[1])
    assert {band: sum(b == band for b, _ in steps) for band in (0, 1, 3)} == {0: 6, 1: 10, 3: 8}
    assert [step for band, step in steps if band == 0] == list(range(4, 10))


@pytest.mark.parametrize(("stopped", "told"), [
    ((1,), "band 1: SIGTERM"), ((0, 1), "band 0: SIGTERM, and 1 more band(s)"),
    ((0, 1, 2), "band 0: SIGTERM, and 2 more band(s)"),
])  # fmt: skip
def test_a_stop_is_passed_on_after_every_band_has_ended(stopped, told):
    log = []
    runs = {band: Steps(band, 0, log, 5 if band in stopped else None, Preempted("SIGTERM")) for band in range(3)}
    with pytest.raises(Preempted) as caught:
        ensemble.in_step(runs)
    assert caught.value.what == told
    assert [run.state.step for run in runs.values()] == [5 if band in stopped else 10 for band in range(3)]


def test_the_error_of_a_band_names_it_and_closes_the_others():
    log = []
    with pytest.raises(DataError) as caught:
        ensemble.in_step({band: Steps(band, 0, log, 3 if band else None, DataError("torn")) for band in range(2)})
    assert caught.value.what == "band 1: torn"
    assert [band for band, what in log if what == "closed"] == [1, 0]
