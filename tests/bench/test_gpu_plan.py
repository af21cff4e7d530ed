"""How `python -m bench.gpu` divides its time budget, tested with simulated rows and a clock that only they advance."""

from __future__ import annotations

import random

import pytest

from bench.gpu.plan import DEVICE, HOST, OVERRUN, OVERRUN_S, UNTIMED, Plan, Row, carry_out

SHARES = {"a": 0.5, "b": 0.3, "c": 0.2}


class World:
    """Simulates a clock, background jobs that end at given seconds, and rows that take a given time."""

    def __init__(self, jobs=None, failing=(), takes=None):
        self.now, self.jobs, self.failing, self.takes = 0.0, dict(jobs or {}), set(failing), takes or {}
        self.order, self.rows, self.began = [], {}, {}

    def clock(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds

    def running(self):
        return {name for name, end in self.jobs.items() if self.now < end}

    def failed(self):
        return {name: "no compiler" for name in self.failing if name not in self.running()}

    def begin(self, row):
        self.order.append(row.name)
        self.began[row.name] = self.now

    def add(self, key, figures):
        assert key[1] not in self.rows, "one result a row"
        self.rows[key[1]] = figures

    def run(self, row, limit_s):
        """Advance the clock by the row's time; a row that would exceed ``limit_s`` is ended there, with an error."""
        takes = self.takes.get(row.name, row.cost_s)
        self.now += min(takes, limit_s)
        return {"figure": 1} if takes <= limit_s else {"error": "ended"}


def row(part, name, cost_s, **changes):
    return Row(part, name, "variant", cost_s, lambda limit_s: {}, **changes)


def carried_out(rows, budget_s, **world):
    found = World(**world)
    plan = Plan(rows, SHARES, budget_s, found.clock)
    carry_out(plan, found, found.run, found, found.sleep)
    assert set(found.rows) == {r.name for r in rows}
    return found, plan


def of(world, kind):
    return [name for name, figures in world.rows.items() if kind in figures]


def test_parts_keep_to_their_shares_and_the_rest_says_why():
    rows = [row(part, f"{part}{i}", 10.0) for part in SHARES for i in range(20)]
    world, plan = carried_out(rows, 100.0)
    assert of(world, "figure") == ["a0", "a1", "a2", "a3", "a4", "b0", "b1", "b2", "c0", "c1"]
    assert plan.spent_s == {"a": 50, "b": 30, "c": 20}
    assert world.rows["a5"] == {"skipped": "costs about 10 s, 0 s were left"}


def test_where_nothing_keeps_within_its_share_the_one_that_had_least_of_it_comes_first():
    world = World()
    plan = Plan([row("a", "a0", 20.0), row("b", "b0", 20.0), row("c", "c0", 20.0)], SHARES, 100.0, world.clock)
    plan.spent_s.update(a=60.0, b=5.0, c=1.0)
    world.now = 66.0
    assert plan.next([])[0].name == "c0"
    plan.spent_s.update(c=40.0)
    assert plan.next([])[0].name == "b0"


def test_nothing_is_kept_for_a_part_whose_rows_are_too_large():
    world = World()
    plan = Plan([row("a", "a0", 40.0), row("c", "c0", 90.0)], {"a": 0.2, "c": 0.8}, 100.0, world.clock)
    assert plan.room_s("a") == 20.0
    world.now = 50.0
    assert plan.room_s("a") == 50.0


def test_a_slow_row_takes_nothing_from_the_other_parts():
    rows = [row("a", "slow", 10.0), row("a", "a1", 1.0), row("b", "b0", 30.0), row("c", "c0", 20.0)]
    world, _ = carried_out(rows, 100.0, takes={"slow": 1e6})
    assert world.now <= 100.0
    assert world.rows["slow"] == {"error": "ended", "took_s": min(50.0, OVERRUN * 10 + OVERRUN_S)}
    assert of(world, "figure") == ["b0", "c0"]
    cheap = [row("a", "slow", 1.0), row("a", "a1", 30.0), row("b", "b0", 30.0)]
    world, _ = carried_out(cheap, 100.0, takes={"slow": 1e6})
    assert of(world, "figure") == ["a1", "b0"]


def test_what_a_part_leaves_goes_to_the_first_that_can_use_it():
    rows = [row("a", "a0", 60.0), row("a", "a1", 5.0), row("b", "b0", 5.0), row("c", "c0", 2.0)]
    world, _ = carried_out(rows, 100.0)
    # a0 does not fit into its half of the budget; it fits once the others have left enough of theirs.
    assert world.order == ["a1", "b0", "a0", "c0"]
    assert of(world, "figure") == ["a1", "b0", "a0", "c0"]


def test_what_is_no_time_runs_beside_the_background_and_the_processors_times_wait():
    """Checks and device times may run during the compilations; times of the CPU wait until these no longer load it."""
    rows = [
        row("a", "host", 5.0, timed=HOST),
        row("a", "cuda", 5.0, timed=UNTIMED, needs=frozenset({"_C"})),
        row("b", "device", 5.0, timed=DEVICE),
        row("c", "check", 5.0, timed=UNTIMED),
    ]
    world, _ = carried_out(rows, 100.0, jobs={"_C": 20.0})
    assert world.order == ["check", "device", "host", "cuda"]
    assert world.began["host"] == pytest.approx(20.0, abs=0.2)
    assert world.rows["device"]["beside"] == ["_C"]
    assert "beside" not in world.rows["check"]
    assert "beside" not in world.rows["host"]


def test_rows_of_a_job_that_failed_say_so():
    rows = [row("a", "cuda", 5.0, needs=frozenset({"_C"})), row("a", "other", 5.0)]
    world, _ = carried_out(rows, 100.0, jobs={"_C": 3.0}, failing={"_C"})
    assert world.rows["cuda"] == {"skipped": "_C: no compiler"}
    assert of(world, "figure") == ["other"]


def test_nothing_waits_for_a_background_that_leaves_no_time():
    world, _ = carried_out([row("a", "late", 95.0)], 100.0, jobs={"_C": 50.0})
    assert world.now < 10
    assert "skipped" in world.rows["late"]


def test_a_repeated_row_costs_what_it_took():
    rows = [row("a", "one", 10.0, repeats=True), Row("a", "one", "again", 10.0, lambda limit_s: {}, repeats=True)]
    plan = Plan(rows, SHARES, 100.0, lambda: 0.0)
    plan.done(rows[0], 3.0)
    assert plan.cost_s(rows[1]) == 3.0


def test_a_row_that_goes_on_may_take_all_that_its_part_has():
    rows = [row("a", "run", 10.0, goes_on=True), row("b", "b0", 20.0)]
    world, _ = carried_out(rows, 100.0, takes={"run": 1e6})
    assert world.rows["run"]["took_s"] == pytest.approx(100.0 * 0.5 / 0.8)
    assert of(world, "figure") == ["b0"]


@pytest.mark.parametrize("seed", range(30))
def test_the_budget_is_kept_whatever_rows_take(seed):
    """The budget is never exceeded, and a row is left out only if its cost exceeds the time left in the end."""
    chance = random.Random(seed)
    rows = [
        row(part, f"{part}{i}", chance.uniform(0.5, 20), timed=chance.choice([UNTIMED, DEVICE, HOST]))
        for part in SHARES
        for i in range(chance.randrange(1, 40))
    ]
    takes = {r.name: r.cost_s * chance.choice([0.5, 1, 1, 3, 50]) for r in rows}
    for some in ({}, takes):
        world, plan = carried_out(rows, 200.0, jobs={"_C": chance.uniform(0, 60)}, takes=some)
        assert world.now <= 200.0 * 1.001
        least = min((r.cost_s for r in rows if r.name in of(world, "skipped")), default=None)
        assert least is None or least > 200.0 - world.now
        assert plan.left_s == pytest.approx(200.0 - world.now)
