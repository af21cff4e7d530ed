"""bench/clock.py: what its clocks count, and in which order it makes the calls that it times."""

import statistics
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from bench import clock, data

on_cpu = pytest.mark.skipif(torch.cuda.is_available(), reason="processor time is the clock of a CPU only")


def burn(seconds):
    """Use ``seconds`` of processor time, however busy the machine is."""
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


@pytest.mark.parametrize("n", [2, 3, 4, 5, 12])
def test_the_summary_is_that_of_numpy_and_statistics(n):
    values = [3.0, 1.0, 2.0, 10.0, 4.0, 7.0, 5.0, 8.0, 9.0, 6.0, 11.0, 12.0][:n]
    found = clock.Timing.of(values)
    quartiles = np.quantile(values, [0.25, 0.75])
    assert (found.best_s, found.median_s, found.n) == (1.0, statistics.median(values), n)
    assert found.iqr_s == pytest.approx(quartiles[1] - quartiles[0])
    assert found.iqr_s < max(values) - min(values)


def test_the_summary_of_one_sample_is_that_sample():
    assert clock.Timing.of([2.0]).as_dict() == {"best_s": 2.0, "median_s": 2.0, "iqr_s": 0.0, "n": 1}


def test_calls_are_taken_in_turn_after_two_uncounted_ones():
    order = []
    found = clock.samples({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert "".join(order) == "aabb" + "ab" * 3
    assert {name: len(values) for name, values in found.items()} == {"a": 3, "b": 3}


@on_cpu
def test_sleeping_costs_wall_time_and_no_processor_time():
    (window,) = clock.windows({"sleep": lambda: time.sleep(0.05)}, rounds=1)["sleep"]
    assert window.wall_s >= 0.05
    assert window.seconds < 0.02


@on_cpu
def test_processor_time_is_divided_by_the_threads_that_it_was_given():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = clock.interleaved({"burn": lambda: burn(0.02)}, rounds=2)["burn"]
    finally:
        torch.set_num_threads(before)
    assert found.best_s == pytest.approx(0.01, rel=0.3)


def test_the_time_of_ended_children_counts_where_asked():
    code = "import time\nwhile time.process_time() < 0.3: pass"
    before = clock.cpu_seconds(children=True), clock.cpu_seconds()
    subprocess.run([sys.executable, "-c", code], check=True)
    assert clock.cpu_seconds(children=True) - before[0] > 0.29
    assert clock.cpu_seconds() - before[1] < 0.2


def test_work_on_the_cpu_is_in_its_time_also_after_a_benchmark_of_the_gpu(monkeypatch):
    """`imnet-bench all` measures both in one process. Without a GPU, torch is made to say that CUDA is in use."""
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    nap = {"nap": lambda: time.sleep(0.02)}
    assert clock.interleaved(nap, rounds=2)["nap"].best_s < 0.01
    (row,) = data.compared("nap", 1, nap["nap"], nap, rounds=2)
    assert row["ours"]["best_s"] < 0.01
    assert clock.samples(nap, rounds=2)["nap"][0] >= 0.02


def test_a_slice_holds_as_many_calls_as_fill_it_and_a_budget_ends_the_rounds():
    calls = []
    found = clock.windows({"nap": lambda: calls.append(time.sleep(0.01))}, 50, slice_s=0.05, budget_s=0.2)["nap"]
    assert 3 <= len(found) < 50
    per_window = (len(calls) - clock.WARM_UP_ROUNDS) / len(found)
    assert 1 <= per_window <= 6
    assert all(window.wall_s >= 0.01 for window in found)  # the time per call, not per window
