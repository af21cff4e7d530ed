"""Writes RESULTS.md from bench/results/*.json and bench/NEGATIVES.md: python -m bench.results.

The file of a GPU becomes one table per part, which a run of bench.gpu also prints at its end.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .form import NOT_MEASURED, grouped, markdown, short, spread
from .gpu.files import ERRORS, condensed
from .gpu.plan import Figures
from .tables import SECTIONS, section

HERE = Path(__file__).resolve().parent
STEPS = (
    "eager",
    "captured",
    "captured + our kernels",
    "captured + dense stage",
    "captured + kernels",
    "captured + Triton kernels",
    "compiled",
    "compiled + captured",
)
KERNELS = ("reference", "compiled", "triton", "cuda", "host")
NUM_KERNELS_SHOWN, NUM_FAILED_SHOWN = 6, 12


def gpu_section(values: dict[str, Any]) -> str:
    """The section ``## On a GPU: card, date`` with a table for every part that has rows."""
    found, versions = values["fingerprint"], values["fingerprint"]["versions"]
    where = f"{found['device']}, {found['date']}"
    driver = found.get("driver") or NOT_MEASURED
    others = ", ".join(f"{name} {versions[name]}" for name in ("triton", "cuda", "cudnn") if versions.get(name))
    commit = (found.get("git_sha") or "no commit")[:10]
    parts = {part: rows for (part,), rows in grouped(values["rows"], "part").items()}
    floors = {r["name"]: r["floor_images_per_s"] for r in parts.get("floor", []) if r.get("floor_images_per_s")}
    parts["steps"] = [row | {"floor_images_per_s": floors.get(row["name"])} for row in parts.get("steps", [])]
    lines = [f"## On a GPU: {where}"]
    lines.append(f"`python -m bench.gpu` at {commit}, torch {versions['torch']}, {others}, driver {driver}.")
    for part, (title, shown) in GPU_SECTIONS.items():
        good = [row for row in parts.get(part, []) if "error" not in row and "skipped" not in row]
        if good:
            lines.append(f"### {title} ({where})\n\n{shown(good)}")
            lines += _sittings(good, commit)
    return "\n\n".join([*lines, *_failed(values["rows"])])


def _sittings(rows: list[Figures], commit: str) -> list[str]:
    """Notes on rows that were measured at another commit, maybe on another machine with the same card, and the rows'
    own notes."""
    others: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.get("git_sha") not in (None, commit):
            others[row["git_sha"][:10]].append(f"{row['name']} {row['variant']}")
    lines = [f"- At {sha}, in another sitting: {'; '.join(names)}." for sha, names in others.items()]
    noted = {row["note"] for row in rows if row.get("note") and row["part"] != "recipes"}
    lines += [f"- Of some of these rows: {note}." for note in sorted(noted)]
    return ["\n".join(lines)] if lines else []


def _failed(rows: list[Figures]) -> list[str]:
    failed = [f"- {r['part']}: {r['name']}, {r['variant']}: {r['error'][:160]}" for r in rows if "error" in r]
    skipped: dict[str, int] = defaultdict(int)
    for row in rows:
        skipped[row["part"]] += "skipped" in row
    left = ", ".join(f"{part} {count}" for part, count in skipped.items() if count)
    more = [f"- and {len(failed) - NUM_FAILED_SHOWN} more"] if len(failed) > NUM_FAILED_SHOWN else []
    found = ["\n".join(["Failed:", "", *failed[:NUM_FAILED_SHOWN], *more])] if failed else []
    return [*found, *([f"Rows left out: {left}."] if left else [])]


def _each(rows: list[Figures], name: str) -> str:
    """The values of all runs: a mean would hide which run shared the card with other processes."""
    values = [row.get(name) for row in rows]
    return NOT_MEASURED if all(v is None for v in values) else " / ".join(short(v) for v in values)


def _recipes(rows: list[Figures]) -> str:
    lines, notes = [], []
    for (name, epochs, schedule), runs in grouped(rows, "name", "epochs", "schedule").items():
        first = runs[0]
        accuracy = first.get("published_top1")
        published = NOT_MEASURED if accuracy is None else f"{100 * accuracy:.2f} in {first['published_hours']:g} h, "
        published += first["published_hardware"] if accuracy is not None else ""
        how = f"{epochs} epochs, {schedule}" + (f", {first['how']}" if first.get("how") else "")
        figures = [spread([r["top1"] for r in runs], 100, 2), _each(runs, "seconds"), _each(runs, "wall_s")]
        lines.append([name, how, *figures, _each(runs, "images_per_s"), str(len(runs)), published])
        notes += [f"- {name}, seed {r['seed']}: {r['note']}" for r in runs if r.get("note")]
    head = ["recipe", "schedule", "top-1 %, last epoch", "training, s", "prompt to summary, s", "images/s", "n"]
    text = markdown([*head, "published top-1 %, best epoch"], lines)
    return "\n".join([text, "", *notes]) if notes else text


def _commands(rows: list[Figures]) -> str:
    lines = []
    for (name,), runs in grouped(rows, "name").items():
        top1 = spread([r["top1"] for r in runs], 100, 2)
        figures = [_each(runs, key) for key in ("wall_s", "seconds", "warm_up_s", "start_up_s")]
        lines.append([f"`{name}`", *figures, top1, str(len(runs))])
    head = ["command", "prompt to summary, s", "training, s", "warm-up, s", "all but training, s", "top-1 %", "n"]
    text = "The commands take turns. The first run starts with an empty cache of compiled kernels."
    return f"{text}\n\n" + markdown(head, lines)


def _steps(rows: list[Figures]) -> str:
    by_name = {name: {r["variant"]: r for r in found} for (name,), found in grouped(rows, "name").items()}
    shown = [v for v in STEPS if any(v in found for found in by_name.values())]
    shown += sorted({r["variant"] for r in rows} - {*shown})
    lines = []
    for name, found in by_name.items():
        cells = [_step_cell(found.get(variant)) for variant in shown]
        rates = [r for r in found.values() if r.get("images_per_s")]
        best = max(rates, key=lambda r: r["images_per_s"], default={})
        mfu = NOT_MEASURED if best.get("mfu") is None else f"{best['mfu']:.1%} ({best['variant']})"
        floor = best.get("floor_images_per_s")
        lines.append([name, *cells, mfu, NOT_MEASURED if floor is None else f"{best['images_per_s'] / floor:.0%}"])
    n = next((f"{r['n']} windows of {r['steps_a_window']} steps" for r in rows if r.get("n")), NOT_MEASURED)
    text = f"Images/s (ms per step; interquartile range), median of {n}, bf16, channels last."
    text += " MFU is relative to a measured matrix product of size 8192."
    text += " The floor, measured below, is the convolutions alone plus all other bytes at the copy rate."
    return f"{text}\n\n" + markdown(["network, batch", *shown, "best MFU", "of the floor"], lines)


def _floor(rows: list[Figures]) -> str:
    keys = ("forward_ms", "data_ms", "weight_ms", "rest_ms", "floor_ms", "floor_images_per_s")
    lines = [
        [r["name"], *(short(r[k]) for k in keys), f"{r['mfu_of_convolutions']:.1%}"] for r in rows if r["floor_ms"]
    ]
    head = ["network, batch", "forward", "data gradient", "weight gradient", "all else", "floor"]
    text = "Milliseconds per step: every convolution timed alone, and the bytes of all other layers at the copy rate."
    return f"{text}\n\n" + markdown([*head, "images/s at the floor", "MFU of the convolutions"], lines)


def _step_cell(row: Figures | None) -> str:
    if row is None or row.get("images_per_s") is None:
        return NOT_MEASURED
    beside = f", beside {len(row['beside'])} other processes" if row.get("beside") else ""
    spread_ms = f"; {row['step_ms_iqr']:.2f}" if row.get("step_ms_iqr") is not None else ""
    return f"{short(row['images_per_s'])} ({row['step_ms']:.1f}{spread_ms}{beside})"


def _kernels(rows: list[Figures]) -> str:
    roofs = [f"copy {short(r['gb_per_s'])} GB/s" for r in rows if r["name"] == "copy" and r.get("gb_per_s")]
    roofs += [f"bf16 matrix product {short(r['tflop_per_s'])} TFLOP/s" for r in rows if r.get("tflop_per_s")]
    timed = [r for r in rows if "us" in r]
    shown = [v for v in KERNELS if any(r["variant"] == v for r in timed)]
    lines = []
    for (name,), found in grouped(timed, "name").items():
        by_variant = {r["variant"]: r for r in found}
        others = [f"{v} {_kernel_cell(r)}" for v, r in by_variant.items() if v not in shown]
        lines.append([name, *(_kernel_cell(by_variant.get(v)) for v in shown), "; ".join(others) or "-"])
    text = "us a call of the device's own time, share of the copy's bandwidth, (us launched from Python)"
    return f"{text}; {', '.join(roofs) or NOT_MEASURED}.\n\n" + markdown(["kernel", *shown, "peers"], lines)


def _kernel_cell(row: Figures | None) -> str:
    if row is None or row.get("us") is None:
        return NOT_MEASURED
    share = "" if row["share_of_copy"] is None else f", {row['share_of_copy']:.0%}"
    launched = "" if row["us_launched"] is None else f" ({short(row['us_launched'])})"
    return f"{short(row['us'])}{share}{launched}"


def _checks(rows: list[Figures]) -> str:
    counted = [row for row in rows if "agree" in row] + condensed([row for row in rows if "agree" not in row])
    lines = []
    for r in counted:
        errors = [NOT_MEASURED if r[k] is None else f"{r[k]:.1e}" for k in ERRORS]
        lines.append([r["name"], r["variant"], f"{r['agree']} of {r['of']}", str(r["graph_replays_equal"]), *errors])
    head = ["family", "tier", "cases that agree", "graph replays equal"]
    return markdown([*head, *(f"largest error, {name.removeprefix('error_')}" for name in ERRORS)], lines)


def _profile(rows: list[Figures]) -> str:
    lines = []
    for row in rows:
        for k in row["top"][:NUM_KERNELS_SHOWN]:
            share, of_roof = ("-" if k[n] is None else f"{k[n]:.0%}" for n in ("share", "of_roof"))
            moved, flops = (None if k[n] is None else k[n] / 1e9 for n in ("bytes", "flops"))
            size = ["-" if v is None else short(v) for v in (moved, flops)]
            name = k["name"][:60].replace("|", "/")
            lines.append(
                [row["name"], row["variant"], f"`{name}`", f"{k['calls']:g}", short(k["us"]), share, *size, of_roof]
            )
        step = f"{short(row['step_ms'])} ms a step, {short(row['device_ms'])} of kernels, {row['launches']} launches"
        lines.append([row["name"], row["variant"], f"all: {step}", "", "", "", "", "", ""])
    head = ["network", "step", "kernel", "calls", "us a step", "share", "GB", "GFLOP", "of roof"]
    return markdown(head, lines)


def _tests(rows: list[Figures]) -> str:
    lines = [[r["name"], r["summary"], "; ".join(r.get("failed", [])[:3])] for r in rows]
    return markdown(["file", "pytest -m gpu", "failures"], lines)


def _build(rows: list[Figures]) -> str:
    return markdown(["job", "seconds"], [[r["name"], short(r["seconds"])] for r in rows])


def _dali(rows: list[Figures]) -> str:
    return markdown(["work", "us a batch", "n"], [[r["name"], short(r["us"]), str(r.get("n", "-"))] for r in rows])


def _photographs(rows: list[Figures]) -> str:
    lines = []
    for r in rows:
        rate = f"{short(r['images_per_s'])} (one stretch of {r['n']} batches)"
        lines.append([r["name"], r["variant"], rate, str(r["threads"]), short(r["bytes"] / 1e3)])
    return markdown(["work", "pipeline", "images/s", "threads", "kB a picture"], lines)


GPU_SECTIONS: dict[str, tuple[str, Callable[[list[Figures]], str]]] = {
    "recipes": ("Whole trainings", _recipes),
    "commands": ("Commands, from the prompt to the summary", _commands),
    "steps": ("Training steps", _steps),
    "trials": ("Trials of the whole step", _steps),
    "floor": ("The measured floor of a step", _floor),
    "profile": ("Where the device's time of a step goes", _profile),
    "kernels": ("Kernels", _kernels),
    "checks": ("Checks against the definition", _checks),
    "tests": ("Tests marked gpu", _tests),
    "dali": ("DALI", _dali),
    "photographs": ("Photographs to batches, no network behind them", _photographs),
    "build": ("Building and compiling, in the background", _build),
}


def expanded(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of the JSON of `imnet-bench all` that could be measured; any other JSON as it is."""
    if data["benchmark"] != "all":
        return [data]
    return [part for part in data["parts"].values() if "error" not in part]


def document(found: list[dict[str, Any]], notes: str) -> str:
    """The text of RESULTS.md: a section per JSON, first GPUs, then in the order of ``SECTIONS``; last the notes."""
    parts = [
        "# Results",
        "Every table is written by `python -m bench.results` from bench/results/*.json; the notes at the end are "
        "bench/NEGATIVES.md.",
    ]
    parts += [gpu_section(data) for data in found if data["benchmark"] == "gpu"] or ["On a GPU: not measured."]
    parts += [section(data) for name in SECTIONS for data in found if data["benchmark"] == name]
    return "\n\n".join([*parts, notes.rstrip()]) + "\n"


def main() -> None:
    argparse.ArgumentParser(prog="python -m bench.results", description=__doc__).parse_args()
    paths = sorted((HERE / "results").glob("*.json"))
    found = [part for path in paths for part in expanded(json.loads(path.read_text()))]
    (HERE / "RESULTS.md").write_text(document(found, (HERE / "NEGATIVES.md").read_text()))


if __name__ == "__main__":
    main()
