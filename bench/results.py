"""Writes RESULTS.md from bench/results/*.json and bench/NEGATIVES.md: python -m bench.results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import gpu_tables, tables

HERE = Path(__file__).resolve().parent

SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "gpu": gpu_tables.document,
    "runs": tables.runs,
    "throughput": tables.throughput,
    "reference": tables.reference,
    "whole": tables.whole,
    "step": tables.step,
    "data": tables.data,
    "scaling": tables.scaling,
    "scaling model": tables.scaling_model,
    "kernels": tables.kernels,
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
