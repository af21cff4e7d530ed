"""Run folders -> one JSON of results: recipe, seeds, last-epoch accuracies, training time, hardware.

python -m bench.collect --json bench/results/runs-cpu.json RUN [RUN ...]
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from imnet.metrics import read_metrics


def read(folder: Path) -> dict[str, Any]:
    """One finished run."""
    run = json.loads((folder / "run.json").read_text())
    if run["status"] != "complete":
        raise SystemExit(f"{folder}: the run is {run['status']}, not complete")
    rows = read_metrics(folder / "metrics.jsonl")
    last = [r for r in rows if r["kind"] == "eval"][-1]
    rates = [r["images_per_s"] for r in rows if r["kind"] == "train"]
    evaluation = json.loads((folder / "evaluation.json").read_text())
    return {
        "recipe": run["recipe"]["name"],
        "published": run["recipe"]["published"],
        "parameters": run["parameters"],
        "epochs": run["recipe"]["epochs"],
        "seed": run["recipe"]["seed"],
        "precision": run["precision"],
        "top1": last["top1"],
        "top1_flip": evaluation["top1_flip"],
        "test_images": evaluation["num_images"],
        "seconds": run["seconds"],
        "images_per_s": statistics.median(rates),
        "hardware": run["hardware"],
        "versions": run["versions"],
        "git_sha": run["git_sha"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="write the rows here")
    parser.add_argument("runs", type=Path, nargs="+")
    values = parser.parse_args()
    rows = [read(folder) for folder in values.runs]
    values.json.write_text(json.dumps({"benchmark": "runs", "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
