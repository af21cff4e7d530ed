"""The regression gate: scores kept in a file (--save), and held against it later (--compare --fail-under).

A score is a ratio to something measured in the same run (bench/probe.py, or a peer), so it belongs to the code more
than to the hour. What is left of chance is met thrice: a kept score is the median of ``SAVE_ATTEMPTS`` measurements;
the line is never above their second lowest, since what the kept code did itself is no regression; and a score below the
line is measured again, up to ``ATTEMPTS`` times in all, the best counts. Slower code is slower every time; chance is
not. Other machines are refused, not corrected for.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.errors import DataError, IOFailure, UsageError

from .fingerprint import differences

SAVE_ATTEMPTS = 5
ATTEMPTS = 4

Measure = Callable[[Collection[str] | None], dict[str, float]]
"""Scores by name, higher is better; of the names given, or of all (it may return more than was asked for)."""


@dataclass(frozen=True)
class Verdict:
    """One line of the comparison; ``ratio`` is new over old."""

    name: str
    old: float
    new: float
    line: float
    attempts: int

    @property
    def ratio(self) -> float:
        return self.new / self.old

    @property
    def passed(self) -> bool:
        return self.new >= self.line


def keep(measure: Measure) -> dict[str, Any]:
    """What ``--save`` adds to a report: every score's median, and the measurements behind it."""
    taken = [measure(None) for _ in range(SAVE_ATTEMPTS)]
    names = [name for name in taken[0] if all(name in one for one in taken)]
    return {name: {"score": statistics.median(v), "of": v} for name in names for v in [[one[name] for one in taken]]}


def judge(old: Mapping[str, Sequence[float]], measure: Measure, fail_under: float) -> list[Verdict]:
    """Each name of ``old`` (the kept measurements) that is measured today too, in its order."""
    lines = {name: line(kept, fail_under) for name, kept in old.items()}
    best: dict[str, float] = {}
    attempts: Counter[str] = Counter()
    below: Collection[str] | None = None
    for _ in range(ATTEMPTS):
        found = measure(below)
        for name in found.keys() & old.keys() & set(old if below is None else below):
            best[name] = max(best.get(name, 0.0), found[name])
            attempts[name] += 1
        below = [name for name, value in best.items() if value < lines[name]]
        if not below:
            break
    return [
        Verdict(name, statistics.median(old[name]), best[name], lines[name], attempts[name])
        for name in old
        if name in best
    ]


def line(kept: Sequence[float], fail_under: float) -> float:
    """Below this a score is slower: a share of the kept median, and no more than their second lowest."""
    return min(fail_under * statistics.median(kept), sorted(kept)[min(1, len(kept) - 1)])


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
    old = {name: entry["of"] for name, entry in base["gate"].items()}
    verdicts = judge(old, measure, fail_under)
    if not verdicts:
        raise UsageError("no name is in both", file=path, hint=f"it holds {', '.join(old) or 'none'}")
    note = f"compared by force: {'; '.join(other)}\n" if other else ""
    return note + table(verdicts, fail_under), all(v.passed for v in verdicts)


def table(verdicts: list[Verdict], fail_under: float) -> str:
    """old, new, ratio, one line a name, and the verdict last."""
    width = max(len(v.name) for v in verdicts)
    rows = [f"{'score':<{width}} {'old':>9} {'new':>9} {'ratio':>6} {'line':>6}"]
    for v in verdicts:
        note = f"  (best of {v.attempts})" if v.attempts > 1 else ""
        note += "" if v.passed else "  SLOWER"
        rows.append(f"{v.name:<{width}} {v.old:9.4g} {v.new:9.4g} {v.ratio:6.3f} {v.line / v.old:6.3f}{note}")
    slower = [v.name for v in verdicts if not v.passed]
    if slower:
        rows.append(f"gate: FAILED (--fail-under {fail_under}): below the line in every attempt: {', '.join(slower)}")
    else:
        rows.append(f"gate: passed (--fail-under {fail_under}): {len(verdicts)} score(s)")
    return "\n".join(rows)
