"""What is measured next: rows with a stated cost, parts with a share each, one budget. Standard library only.

Every part has its share of the budget, and what a part leaves goes to the first that can use it. A row begins only
where its cost fits beside what the other parts still have, and is ended when it has taken four times its cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Key = tuple[str, str, str]
Figures = dict[str, Any]
# What a row's figures need of the machine: nothing (they are no times), the device, or the device and the processor.
UNTIMED, DEVICE, HOST = 0, 1, 2
OVERRUN, OVERRUN_S = 4.0, 10.0
"""A row is ended after so many times its cost and so many seconds more; not measured, generous on purpose."""
BREATH, BREATH_S = 1.25, 3.0
"""So much it may always take, the end of the budget aside: to end a worker costs more than the breath."""
MOST_BESIDE = {UNTIMED: 1 << 20, DEVICE: 1, HOST: 0}
"""Jobs of the background that may run beside a row: one compilation uses the device for some seconds of its minute."""
FILL_S = 5.0
"""Rows of at most this cost fill the time in which all else waits, whatever their part has taken."""
POLL_S = 0.1


class UnfinishedError(Exception):
    """Raised by a row's work that goes on in a later call: no figure is kept of it."""


class UnavailableError(Exception):
    """Raised by a row's work for which something is not installed or not there: said, and no error."""


@dataclass(frozen=True)
class Setting:
    """What every part is told. ``dry``: tiny shapes on the CPU, nothing timed. ``scratch``: all but the figures."""

    dry: bool
    scratch: Path
    data_dir: str | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def backend(self) -> str:
        """Of torch.compile: a dry run stops before the C++ of a CPU build, which takes a minute."""
        return "aot_eager" if self.dry else "inductor"

    def few(self, count: int) -> int:
        """How often: once in a dry run."""
        return 1 if self.dry else count


@dataclass(frozen=True)
class Row:
    """One figure or a few. ``work`` is told how many seconds it may take and runs in a worker process."""

    part: str
    name: str
    variant: str
    cost_s: float
    work: Callable[[float], Figures] = field(compare=False, repr=False)
    timed: int = HOST
    needs: frozenset[str] = frozenset()
    """Jobs of the background (a build, a compilation) that must be done before it."""
    repeats: bool = False
    """It costs what another row of its name took."""
    goes_on: bool = False
    """It may take all that its part has, stops by itself in time, and a later call goes on with it."""

    @property
    def key(self) -> Key:
        return self.part, self.name, self.variant


class Background(Protocol):
    """Jobs that run beside the rows."""

    def running(self) -> Collection[str]: ...

    def failed(self) -> Mapping[str, str]: ...


class Plan:
    """Rows that are not measured yet, and the seconds that are left for them until ``end`` on the clock."""

    def __init__(self, rows: Iterable[Row], shares: Mapping[str, float], end: float, clock: Callable[[], float]):
        self.pending, self.clock, self.end = list(rows), clock, end
        wanted = {row.part for row in self.pending}
        total = sum(shares[part] for part in wanted)
        self.share_s = {part: self.left_s * shares[part] / total for part in wanted}
        self.spent_s: dict[str, float] = defaultdict(float)
        self.took_s: dict[tuple[str, str], float] = {}

    @property
    def left_s(self) -> float:
        return self.end - self.clock()

    def room_s(self, part: str) -> float:
        """What is left for a part: all but what the others still have of their shares, and can still use."""
        others = {row.part for row in self.pending if self.cost_s(row) <= self.left_s} - {part}
        return self.left_s - sum(max(0.0, self.share_s[p] - self.spent_s[p]) for p in others)

    def cost_s(self, row: Row) -> float:
        found = self.took_s.get((row.part, row.name)) if row.repeats else None
        return row.cost_s if found is None else found

    def next(self, running: Collection[str]) -> tuple[Row, float] | str | None:
        """(row, seconds that it may take); ``"wait"`` for the background; None where nothing fits any more."""
        blocked, free = [], []
        for row in self.pending:
            waits = row.needs & set(running) or len(running) > MOST_BESIDE[row.timed]
            (blocked if waits else free).append(row)
        if running:
            free.sort(key=lambda row: row.timed)  # what is no time cannot be disturbed
        for row in free:
            room = self.room_s(row.part)
            if self.cost_s(row) <= room:
                return row, self._limit_s(row, room)
        if any(self.cost_s(row) <= self.left_s for row in blocked):
            short = [row for row in free if row.timed == UNTIMED and self.cost_s(row) <= min(FILL_S, self.left_s)]
            return (short[0], self._limit_s(short[0], FILL_S)) if short else "wait"
        # Nothing keeps within its share any more: first what has had the least of it.
        for row in sorted(free, key=lambda row: self.spent_s[row.part] / self.share_s[row.part]):
            if self.cost_s(row) <= self.left_s:
                return row, self._limit_s(row, self.left_s)
        return None

    def _limit_s(self, row: Row, room: float) -> float:
        if row.goes_on:
            return room
        cost = self.cost_s(row)
        most = min(room, OVERRUN * cost + OVERRUN_S)
        return min(self.left_s, max(most, BREATH * cost + BREATH_S))

    def done(self, row: Row, took_s: float) -> None:
        self.pending.remove(row)
        self.spent_s[row.part] += took_s
        self.took_s[row.part, row.name] = took_s


class Results(Protocol):
    """Where rows go."""

    def begin(self, row: Row) -> None: ...

    def add(self, key: Key, figures: Figures) -> None: ...


def carry_out(
    plan: Plan,
    results: Results,
    run: Callable[[Row, float], Figures],
    background: Background,
    sleep: Callable[[float], None],
) -> None:
    """Measure until nothing fits; every row that was planned ends with figures, with an error or with why not."""
    while True:
        failed = background.failed()
        for row in [row for row in plan.pending if row.needs & failed.keys()]:
            plan.pending.remove(row)
            results.add(row.key, {"skipped": "; ".join(f"{n}: {failed[n]}" for n in sorted(row.needs & failed.keys()))})
        running = sorted(background.running())
        found = plan.next(running)
        if isinstance(found, str):
            sleep(POLL_S)
            continue
        if found is None:
            break
        row, limit = found
        results.begin(row)
        start = plan.clock()
        figures = run(row, limit)
        took = plan.clock() - start
        plan.done(row, took)
        beside = {"beside": running} if running and row.timed != UNTIMED else {}
        results.add(row.key, figures | beside | {"took_s": round(took, 2)})
    left = max(0.0, plan.left_s)
    for row in plan.pending:
        results.add(row.key, {"skipped": f"costs about {plan.cost_s(row):.0f} s, {left:.0f} s were left"})
