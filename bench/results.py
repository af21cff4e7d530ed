"""bench/results/*.json -> bench/RESULTS.md. No table in RESULTS.md is typed by hand.

python -m bench.results
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def spread(values: list[float], scale: float, digits: int) -> str:
    """mean +- sample standard deviation."""
    mean = statistics.fmean(values) * scale
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {statistics.stdev(values) * scale:.{digits}f}"


def runs(data: dict[str, Any]) -> str:
    """Whole trainings, grouped by recipe."""
    groups: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in data["rows"]:
        groups[row["recipe"]].append(row)
    lines = []
    for name, rows in groups.items():
        first = rows[0]
        seeds = ", ".join(str(r["seed"]) for r in rows)
        flips = [r["top1_flip"] for r in rows if r["top1_flip"] is not None]
        lines.append([
            name,
            f"{first['parameters']:,}",
            str(first["epochs"]),
            spread([r["top1"] for r in rows], 100, 2),
            spread(flips, 100, 2) if flips else "not measured",
            spread([r["seconds"] for r in rows], 1, 0),
            f"{len(rows)} (seeds {seeds})",
            f"{first['hardware']['cpu']}, {first['hardware']['cores']} cores, {first['precision']}, "
            f"torch {first['versions']['torch']}",
        ])  # fmt: skip
    head = ["recipe", "parameters", "epochs", "top-1 %, last epoch", "with flip TTA", "seconds", "n", "hardware"]
    return "## Whole trainings\n\n" + table(head, lines)


def step(data: dict[str, Any]) -> str:
    """The training step against timm's."""
    lines = []
    for row in data["rows"]:
        times = [row["times"][k] for k in ("timm defaults", "timm flags", "imnet")]
        shown = [f"{t['best_s'] * 1e3:.1f} (IQR {t['iqr_s'] * 1e3:.1f})" for t in times]
        size = f"{row['network']}, {row['image_px']} px, batch {row['batch_images']}"
        ratios = [f"{row['ratio_to_defaults']:.2f}x", f"{row['ratio_to_flags']:.2f}x"]
        lines.append([size, *shown, *ratios, str(times[0]["n"])])
    head = ["network", "timm defaults, ms", "timm, equal flags, ms", "imnet, ms", "to defaults", "to equal flags", "n"]
    torch = data["versions"]["torch"]
    where = f"{data['hardware']['cpu']}, {data['threads']} threads, torch {torch}, timm {data['timm']}"
    text = (
        f"CPU time per core, interleaved, best of n; {where}. Defaults: fp32, NCHW, eager. Equal flags: channels-last, "
        "bf16 autocast, eager. timm's own parts in the order of its training script."
    )
    return f"## The training step against timm's\n\n{text}\n\n" + table(head, lines)


def kernels(data: dict[str, Any]) -> str:
    """The host tier against its peers."""
    environment = data["environment"]
    lines = []
    for row in data["rows"]:
        peers = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio_to_host"].items())
        host = row["cpu_us"].get("host")
        share = row.get("share_of_copy")
        lines.append([
            f"{row['family']} {row['case']}",
            row["dtype"],
            "-" if host is None else f"{host:,.0f}",
            peers or "-",
            "-" if share is None else f"{share:.0%}",
        ])  # fmt: skip
    about = ", ".join(f"{k} {v}" for k, v in environment.items())
    head = ["case", "dtype", "host, us CPU", "peers take", "of copy bandwidth"]
    return f"## Kernels, host tier\n\n{about}. On a GPU: not measured.\n\n" + table(head, lines)


SECTIONS = {"runs": runs, "step": step, "kernels": kernels}


def kind(data: dict[str, Any]) -> str:
    return data.get("benchmark") or ("kernels" if "environment" in data else "unknown")


def main() -> None:
    parts = [
        "# Results",
        "Every table is written by `python -m bench.results` from bench/results/*.json; the notes at the end are "
        "bench/NEGATIVES.md.",
    ]
    found = [json.loads(path.read_text()) for path in sorted((HERE / "results").glob("*.json"))]
    for name, section in SECTIONS.items():
        parts += [section(data) for data in found if kind(data) == name]
    parts.append((HERE / "NEGATIVES.md").read_text().rstrip())
    (HERE / "RESULTS.md").write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
