"""bench/results/*.json -> bench/RESULTS.md. No table in RESULTS.md is typed by hand.

python -m bench.results
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import gpu_tables
from . import result_tables as tables
from .fingerprint import PEERS
from .fingerprint import text as machine_text
from .result_tables import NOT_MEASURED, table

HERE = Path(__file__).resolve().parent


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


def where(data: dict[str, Any]) -> str:
    """The machine of a JSON in one line; files from before the fingerprint say it in other words."""
    if "fingerprint" in data:
        versions = data["fingerprint"]["versions"]
        peers = [f"{name} {versions[name]}" for name in PEERS if name in versions and name not in ("triton", "numpy")]
        return f"{machine_text(data['fingerprint'])}; {', '.join(peers)}"
    found = data.get("machine", data)
    return f"{found['hardware']['cpu']}, {found['threads']} threads, torch {found['versions']['torch']}"


def step(data: dict[str, Any]) -> str:
    """The training step against timm's."""
    lines = []
    for row in data["rows"]:
        times = [row["times"].get(k) for k in ("timm defaults", "timm flags", "imnet")]
        shown = [f"{t['best_s'] * 1e3:.1f} (IQR {t['iqr_s'] * 1e3:.1f})" if t else NOT_MEASURED for t in times]
        size = f"{row['network']}, {row['image_px']} px, batch {row['batch_images']}"
        ratios = [NOT_MEASURED if row[k] is None else f"{row[k]:.2f}x" for k in ("ratio_to_defaults", "ratio_to_flags")]
        lines.append([size, *shown, *ratios, str(row["times"]["imnet"]["n"])])
    head = ["network", "timm defaults, ms", "timm, equal flags, ms", "imnet, ms", "to defaults", "to equal flags", "n"]
    text = (
        f"CPU time per core, interleaved, best of n; {where(data)}, timm {data['timm']}. Defaults: fp32, NCHW, eager. "
        "Equal flags: channels-last, bf16 autocast, eager. timm's own parts in the order of its training script."
    )
    return f"## The training step against timm's\n\n{text}\n\n" + table(head, lines)


def kernels(data: dict[str, Any]) -> str:
    """The host tier against its peers."""
    lines = []
    for row in data["rows"]:
        peers = ", ".join(f"{name} {ratio:.2f}x" for name, ratio in row["ratio_to_host"].items())
        share = row.get("share_of_copy")
        case = f"{row['family']} {row['case']}"
        lines.append([case, row["dtype"], host_us(row), peers or "-", "-" if share is None else f"{share:.0%}"])
    about = ", ".join(f"{k} {v}" for k, v in data["environment"].items())
    if "fingerprint" in data:
        about = f"{where(data)}; {about}"
    head = ["case", "dtype", "host, us CPU", "peers take", "of copy bandwidth"]
    return f"## Kernels, host tier\n\n{about}.\n\n" + table(head, lines)


def host_us(row: dict[str, Any]) -> str:
    """The best of the host tier, with the median and the quartiles' distance where the file has them."""
    best = row["cpu_us"].get("host")
    if best is None:
        return "-"
    times = row.get("times", {}).get("host")
    spread = f" (median {1e6 * times['median_s']:,.0f}, IQR {1e6 * times['iqr_s']:,.0f})" if times else ""
    return f"{best:,.0f}{spread}"


SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "gpu": gpu_tables.document,
    "runs": runs,
    "throughput": lambda data: tables.throughput(data, where(data)),
    "reference": lambda data: tables.reference(data, where(data)),
    "step": step,
    "models": lambda data: tables.models(data, where(data)),
    "data": lambda data: tables.data(data, where(data)),
    "scaling": lambda data: tables.scaling(data, where(data)),
    "scaling model": tables.scaling_model,
    "kernels": kernels,
}


def kind(data: dict[str, Any]) -> str:
    return data.get("benchmark") or ("kernels" if "environment" in data else "unknown")


def expanded(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an `imnet-bench all`, or the JSON itself; what could not be measured is left out."""
    if kind(data) != "all":
        return [data]
    return [part for part in data["parts"].values() if "error" not in part]


def document(found: list[dict[str, Any]], notes: str) -> str:
    """RESULTS.md: a section a JSON, in the order of ``SECTIONS``, then the hand-written notes."""
    parts = [
        "# Results",
        "Every table is written by `python -m bench.results` from bench/results/*.json; the notes at the end are "
        "bench/NEGATIVES.md.",
    ]
    if not any(kind(data) == "gpu" for data in found):
        parts.append("On a GPU: not measured.")
    for name, section in SECTIONS.items():
        parts += [section(data) for data in found if kind(data) == name]
    return "\n\n".join([*parts, notes.rstrip()]) + "\n"


def main() -> None:
    paths = sorted((HERE / "results").glob("*.json"))
    found = [part for path in paths for part in expanded(json.loads(path.read_text()))]
    (HERE / "RESULTS.md").write_text(document(found, (HERE / "NEGATIVES.md").read_text()))


if __name__ == "__main__":
    main()
