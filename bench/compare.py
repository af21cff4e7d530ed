"""The regression gate: scores kept in a file (--save), and held against it later (--compare --fail-under).

A score is a ratio to something measured in the same run (bench/probe.py, or a peer), so it belongs to the code more
than to the hour. What is left of chance is met twice: a kept score is the median of ``SAVE_ATTEMPTS`` measurements,
and a score below the line is measured again, up to ``ATTEMPTS`` times in all; the best counts. Slower code is slower
every time; chance is not. Other machines are refused, not corrected for.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.errors import DataError, IOFailure, UsageError

from .fingerprint import differences

SAVE_ATTEMPTS = 3
ATTEMPTS = 4

Measure = Callable[[Collection[str] | None], dict[str, float]]
"""Scores by name, higher is better; of the names given, or of all (it may return more than was asked for)."""


@dataclass(frozen=True)
class Verdict:
    """One line of the comparison; ``ratio`` is new over old."""

    name: str
    old: float
    new: float
    attempts: int
    passed: bool

    @property
    def ratio(self) -> float:
        return self.new / self.old


def keep(measure: Measure) -> dict[str, Any]:
    """What ``--save`` adds to a report: every score's median, and the measurements behind it."""
    taken = [measure(None) for _ in range(SAVE_ATTEMPTS)]
    names = [name for name in taken[0] if all(name in one for one in taken)]
    return {name: {"score": statistics.median(v), "of": v} for name in names for v in [[one[name] for one in taken]]}


def judge(old: dict[str, float], measure: Measure, fail_under: float) -> list[Verdict]:
    """Each name of ``old`` that is measured today too, in its order."""
    best: dict[str, float] = {}
    attempts: dict[str, int] = {}
    open_names: Collection[str] | None = None
    for _ in range(ATTEMPTS):
        found = measure(open_names)
        wanted = old.keys() & found.keys()
        for name in wanted if open_names is None else wanted & set(open_names):
            best[name] = max(best.get(name, 0.0), found[name])
            attempts[name] = attempts.get(name, 0) + 1
        open_names = [name for name, value in best.items() if value < fail_under * old[name]]
        if not open_names:
            break
    return [
        Verdict(name, old[name], best[name], attempts[name], best[name] >= fail_under * old[name])
        for name in old
        if name in best
    ]


def read(path: Path) -> dict[str, Any]:
    """A file that ``--save`` wrote. DataError where it is not one."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise IOFailure(f"cannot be read: {error.strerror}", file=path, hint="give the file of --save") from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path, hint="write it anew with --save") from error
    if not isinstance(found, dict) or not {"gate", "fingerprint"} <= found.keys():
        raise DataError("no scores in it", file=path, hint="write it with imnet-bench ... --save FILE")
    return found


def against(path: Path, today: dict[str, Any], measure: Measure, fail_under: float, force: bool) -> tuple[str, bool]:
    """(table, whether everything passed) of today's code against a kept file; ``today`` is this fingerprint.

    UsageError where the machine is another one (unless ``force``) or no name is in both.
    """
    base = read(path)
    other = differences(base["fingerprint"], today)
    if other and not force:
        what = f"got a file of another machine: {'; '.join(other)}"
        raise UsageError(what, file=path, hint="measure and --save here, or --force the comparison")
    old = {name: entry["score"] for name, entry in base["gate"].items()}
    verdicts = judge(old, measure, fail_under)
    if not verdicts:
        raise UsageError("no name is in both", file=path, hint=f"it holds {', '.join(old) or 'none'}")
    note = f"compared by force: {'; '.join(other)}\n" if other else ""
    return note + table(verdicts, fail_under), all(v.passed for v in verdicts)


def table(verdicts: list[Verdict], fail_under: float) -> str:
    """old, new, ratio, one line a name, and the verdict last."""
    width = max(len(v.name) for v in verdicts)
    lines = [f"{'score':<{width}} {'old':>9} {'new':>9} {'ratio':>6}"]
    for v in verdicts:
        tries = "" if v.passed and v.attempts == 1 else f"  (best of {v.attempts})"
        lines.append(
            f"{v.name:<{width}} {v.old:9.4g} {v.new:9.4g} {v.ratio:6.3f}{tries}{'' if v.passed else '  SLOWER'}"
        )
    slower = [v.name for v in verdicts if not v.passed]
    if slower:
        lines.append(f"gate: FAILED: below {fail_under} of the kept score in every attempt: {', '.join(slower)}")
    else:
        lines.append(f"gate: passed: {len(verdicts)} score(s), each at least {fail_under} of the kept one")
    return "\n".join(lines)
