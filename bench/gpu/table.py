"""The parts' rows as a table of at most 60 lines, and as the one file that is committed."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

from .parts import PARTS
from .rows import Row

MAX_LINES = 60
NOT_MEASURED = "not measured"


def read(folder: Path) -> list[dict[str, Any]]:
    """Every part file in the folder, in the parts' order."""
    paths = [folder / f"{part}.json" for part in PARTS]
    return [json.loads(path.read_text()) for path in paths if path.exists()]


def table(parts: list[dict[str, Any]]) -> str:
    """The short table."""
    lines: list[str] = []
    for part in parts:
        state = "complete" if part["complete"] else f"INCOMPLETE ({part.get('paused', 'out of time')})"
        failed = [r for r in part["rows"] if "error" in r]
        lines.append(f"== {part['part']}: {state}, {len(part['rows'])} rows, {len(failed)} failed")
        lines += LINES[part["part"]](part["rows"])
        lines += [f"   ! {r['name']}, {r['variant']}: {r['error'][:110]}" for r in failed[:3]]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], f"... {len(lines) - MAX_LINES + 1} more lines in the JSON files"]
    return "\n".join(line[:180] for line in lines)


def merge(folder: Path, target: Path) -> None:
    """One file of every part's rows. Raises SystemExit for a dry run, or for parts of different machines."""
    parts = read(folder)
    if not parts:
        raise SystemExit(
            f"{folder}: got no part files; allowed: an --out folder of a run; run python -m bench.gpu first"
        )
    if any(part["dry"] for part in parts):
        raise SystemExit(
            f"{folder}: got a dry run; allowed: a run on a GPU, since nothing here was measured; leave it out"
        )
    devices = sorted({part["fingerprint"]["device"] for part in parts})
    if len(devices) > 1:
        raise SystemExit(f"{folder}: got parts of {' and '.join(devices)}; allowed: one device; merge them apart")
    rows = [row for part in parts for row in part["rows"]]
    complete = {part["part"]: part["complete"] for part in parts}
    values = {"benchmark": "gpu", "fingerprint": parts[-1]["fingerprint"], "complete": complete, "rows": rows}
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(values, indent=1) + "\n")


def _number(value: float | None, form: str = "{:,.1f}") -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _build(rows: list[Row]) -> list[str]:
    return [f"   {r['name']} by {r['variant']}: {_number(r['seconds'])} s" for r in rows if "seconds" in r]


def _checks(rows: list[Row]) -> list[str]:
    """One line a family and tier: how many agree, and the largest errors."""
    groups: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for row in rows:
        groups[row["name"].split(" ")[0], row["variant"]].append(row)
    lines = []
    for (family, tier), members in groups.items():
        good = [r for r in members if "error" not in r]
        worst = {k: max((r[k] for r in good if r.get(k) is not None), default=None) for k in (
            "error_forward", "error_gradient", "error_fp64")}  # fmt: skip
        shown = ", ".join(f"{k.removeprefix('error_')} {v:.1e}" for k, v in worst.items() if v is not None)
        replayed = sum(r.get("graph_replay_equal") is True for r in good)
        lines.append(
            f"   {family} {tier}: {len(good)} of {len(members)} agree; largest {shown}; {replayed} graph replays equal"
        )
    return lines


def _by_name(rows: list[Row]) -> dict[str, dict[str, Row]]:
    found: dict[str, dict[str, Row]] = defaultdict(dict)
    for row in rows:
        found[row["name"]][row["variant"]] = row
    return found


def _kernels(rows: list[Row]) -> list[str]:
    lines = []
    for name, by_variant in _by_name(rows).items():
        shown = []
        for variant, r in by_variant.items():
            rate = r.get("gb_per_s", r.get("tflop_per_s"))
            if "error" in r:
                shown.append(f"{variant} failed")
            elif "us" in r:
                share = "" if r.get("share_of_copy") is None else f" {r['share_of_copy']:.0%}"
                shown.append(f"{variant} {_number(r['us'])}{share} ({_number(r.get('us_launched'))})")
            else:
                shown.append(f"{variant} {_number(rate)}")
        lines.append(f"   {name}: {' | '.join(shown)}")
    return ["   us a call on the device, share of copy bandwidth (us launched from Python)", *lines]


def _steps(rows: list[Row]) -> list[str]:
    lines = []
    for name, by_variant in _by_name([r for r in rows if r["name"] != "peak"]).items():
        rates = {v: r["images_per_s"] for v, r in by_variant.items() if r.get("images_per_s") is not None}
        if not rates:
            lines.append(f"   {name}: {NOT_MEASURED} ({len(by_variant)} variants ran)")
            continue
        best = max(rates, key=lambda v: rates[v])
        r = by_variant[best]
        others = ", ".join(f"{v} {rate:,.0f}" for v, rate in rates.items())
        lines.append(
            f"   {name}: best {best} {rates[best]:,.0f} img/s, MFU {r['mfu']:.1%}, {r['of_target']:.2f} of target"
        )
        lines.append(f"      {others}")
    return lines


def _tests(rows: list[Row]) -> list[str]:
    lines = []
    for r in rows:
        lines.append(f"   {r['name']}: {r.get('summary', r.get('collected', 'failed'))}")
        lines += [f"      {text[:150]}" for text in r.get("failed", [])[:3]]
    return lines


def _recipe(rows: list[Row]) -> list[str]:
    lines = []
    for r in (r for r in rows if "top1" in r):
        minutes = None if r["seconds"] is None else r["seconds"] / 60
        published = (
            "" if r["published_top1"] is None else f"; published {r['published_top1']:.2%} in {r['published_hours']} h"
        )
        text = f"{r['epochs']} epochs, last-epoch top-1 {r['top1']:.2%}, {_number(minutes)} min"
        lines.append(f"   {r['name']}: {text}, {_number(r['images_per_s'])} img/s{published}")
    return lines


def _dali(rows: list[Row]) -> list[str]:
    return [
        f"   {r['name']}: {r.get('note') or _number(r.get('us')) + ' us a batch'}" for r in rows if "error" not in r
    ]


LINES = {
    "build": _build,
    "checks": _checks,
    "kernels": _kernels,
    "steps": _steps,
    "tests": _tests,
    "recipe": _recipe,
    "dali": _dali,
}
