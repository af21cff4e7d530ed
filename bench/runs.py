"""Whole trainings: what a run folder says, as rows of results."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from imnet.errors import DataError
from imnet.metrics import read_metrics


def figures(folder: Path, curve: bool = True) -> dict[str, Any]:
    """Last epoch's accuracy, training seconds and rate of a complete run folder, beside what was published.

    Raises DataError where the run is not complete.
    """
    run = json.loads((folder / "run.json").read_text())
    if run["status"] != "complete":
        raise DataError(f"the run is {run['status']}, not complete", file=folder, hint="go on with it first")
    rows = read_metrics(folder / "metrics.jsonl")
    evals, recipe = [r for r in rows if r["kind"] == "eval"], run["recipe"]
    rates = [r["images_per_s"] for r in rows if r["kind"] == "train"]
    published = recipe.get("published") or {}
    found = {
        "recipe": recipe["name"],
        "epochs": recipe["epochs"],
        "schedule": recipe["schedule"]["kind"],
        "seed": recipe["seed"],
        "precision": run["precision"],
        "top1": evals[-1]["top1"],
        "seconds": run["seconds"],
        "images_per_s": statistics.median(rates) if rates else None,
        "kernels": {k: v["tier"] for k, v in run["kernels"].items()},
    }
    if curve:
        found["curve"] = [[r["epoch"], round(r["top1"], 4)] for r in evals][-40:]
        found |= {f"published_{key}": published.get(key) for key in ("top1", "hours", "hardware")}
    return found


def report(folders: Iterable[Path]) -> dict[str, Any]:
    """The JSON of ``imnet-bench runs``: recipe, seeds, last-epoch accuracies, training time, hardware."""
    rows = []
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        evaluation = json.loads((folder / "evaluation.json").read_text())
        about = {key: run[key] for key in ("parameters", "hardware", "versions", "git_sha")}
        about |= {"published": run["recipe"]["published"], "test_images": evaluation["num_images"]}
        rows.append(figures(folder, curve=False) | about | {"top1_flip": evaluation["top1_flip"]})
    return {"benchmark": "runs", "rows": rows}
