"""Writes RESULTS.md from bench/results/*.json and bench/NEGATIVES.md: python -m bench.results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .gpu import tables as gpu_tables
from .tables import SECTIONS, section

HERE = Path(__file__).resolve().parent


def expanded(data: dict[str, Any]) -> list[dict[str, Any]]:
    """The parts of an `imnet-bench all`, or the JSON itself; what could not be measured is left out."""
    if data["benchmark"] != "all":
        return [data]
    return [part for part in data["parts"].values() if "error" not in part]


def document(found: list[dict[str, Any]], notes: str) -> str:
    """RESULTS.md: a section a JSON, GPUs first, then in the order of ``SECTIONS``, then the hand-written notes."""
    parts = [
        "# Results",
        "Every table is written by `python -m bench.results` from bench/results/*.json; the notes at the end are "
        "bench/NEGATIVES.md.",
    ]
    parts += [gpu_tables.document(data) for data in found if data["benchmark"] == "gpu"] or ["On a GPU: not measured."]
    parts += [section(data) for name in SECTIONS for data in found if data["benchmark"] == name]
    return "\n\n".join([*parts, notes.rstrip()]) + "\n"


def main() -> None:
    paths = sorted((HERE / "results").glob("*.json"))
    found = [part for path in paths for part in expanded(json.loads(path.read_text()))]
    (HERE / "RESULTS.md").write_text(document(found, (HERE / "NEGATIVES.md").read_text()))


if __name__ == "__main__":
    main()
