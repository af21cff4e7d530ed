"""Schedules the measurements: rows with a stated cost, parts with shares of one budget. Standard library only.

Every part has a share of the budget; what it does not use goes to the first part that can use it. A row starts only if
its cost fits without taking from the remaining shares of other parts, and is ended well after its stated cost.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

Key = tuple[str, str, str]
Figures = dict[str, Any]
# What must be undisturbed while a row is measured: nothing (no times), the device, or the device and the processor.
UNTIMED, DEVICE, HOST = 0, 1, 2
BASELINE = "as it is"
"""The variant that trials are compared with. Sittings differ, so that each measures it anew."""
OVERRUN, OVERRUN_S = 4.0, 10.0
"""A row is ended after OVERRUN times its cost plus OVERRUN_S seconds; generous on purpose, not measured."""
BREATH, BREATH_S = 1.25, 3.0
"""The time that a row always gets (factor on its cost, seconds), up to the end of the budget: ending a worker costs
more than that."""
MOST_BESIDE = {UNTIMED: 1 << 20, DEVICE: 1, HOST: 0}
"""The most background jobs that may run beside a row. A compilation uses the device for some seconds of its minute."""
FILL_S = 5.0
"""Untimed rows of at most this cost are run while all others wait, even if their part has used its share."""
POLL_S = 0.1


class UnfinishedError(Exception):
    """Raised by a row's work that a later call continues; no figure is kept."""


class UnavailableError(Exception):
    """Raised by a row's work if something that it needs is not installed or not present; reported, but no error."""


@dataclass(frozen=True)
class Setting:
    """The options of a run for all parts. ``dry``: tiny shapes on the CPU, nothing timed. ``scratch``: a folder for all
    files but the figures."""

    dry: bool
    scratch: Path
    data_dir: str | None = None

    @property
    def device(self) -> str:
        return "cpu" if self.dry else "cuda"

    @property
    def backend(self) -> str:
        """The backend of torch.compile. A dry run does not compile C++ for the CPU, which takes a minute."""
        return "aot_eager" if self.dry else "inductor"

    def few(self, count: int) -> int:
        """``count``, or 1 in a dry run."""
        return 1 if self.dry else count


@dataclass(frozen=True)
class Row:
    """One measurement. ``work`` runs in a worker process, takes its time limit in seconds and returns the figures."""

    part: str
    name: str
    variant: str
    cost_s: float
    work: Callable[[float], Figures] = field(compare=False, repr=False)
    timed: int = HOST
    needs: frozenset[str] = frozenset()
    """Background jobs (a build, a compilation) that must be done before."""
    repeats: bool = False
    """Whether its cost is the time that another row of the same name took, once that is known."""
    goes_on: bool = False
    """Whether it may use all that its part has left, stops by itself in time, and is continued by a later call."""

    @property
    def key(self) -> Key:
        return self.part, self.name, self.variant


class Background(Protocol):
    """Jobs that run in the background: the names of those running, and the reason for each that failed."""

    def running(self) -> Collection[str]: ...

    def failed(self) -> Mapping[str, str]: ...


class Plan:
    """The rows that are not measured yet, and the seconds that remain for them until ``end`` on the clock."""

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
        """Seconds left for a part: all that is left, less the unused shares of other parts that can still use them."""
        others = {row.part for row in self.pending if self.cost_s(row) <= self.left_s} - {part}
        return self.left_s - sum(max(0.0, self.share_s[p] - self.spent_s[p]) for p in others)

    def cost_s(self, row: Row) -> float:
        found = self.took_s.get((row.part, row.name)) if row.repeats else None
        return row.cost_s if found is None else found

    def next(self, running: Collection[str]) -> tuple[Row, float] | str | None:
        """(row, its time limit in seconds); "wait" if rows wait for the background; None if nothing fits any more."""
        blocked, free = [], []
        for row in self.pending:
            waits = row.needs & set(running) or len(running) > MOST_BESIDE[row.timed]
            (blocked if waits else free).append(row)
        if running:
            free.sort(key=lambda row: row.timed)  # untimed rows first, which the background cannot disturb
        for row in free:
            room = self.room_s(row.part)
            if self.cost_s(row) <= room:
                return row, self._limit_s(row, room)
        if any(self.cost_s(row) <= self.left_s for row in blocked):
            short = [row for row in free if row.timed == UNTIMED and self.cost_s(row) <= min(FILL_S, self.left_s)]
            return (short[0], self._limit_s(short[0], FILL_S)) if short else "wait"
        # No row fits in its part's share any more: take the part that has used the least of its share.
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
    """The place that rows are written to."""

    def begin(self, row: Row) -> None: ...

    def add(self, key: Key, figures: Figures) -> None: ...


def carry_out(
    plan: Plan,
    results: Results,
    run: Callable[[Row, float], Figures],
    background: Background,
    sleep: Callable[[float], None],
) -> None:
    """Measure until nothing fits. Every planned row gets figures, an error, or the reason why it was skipped."""
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
