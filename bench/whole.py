"""Whole trainings: the figures of run folders, and the whole command against timm's own training script.

The comparison goes from class folders of pictures to an evaluated network, with the same network, pictures, precision,
layout, batch, epochs, optimiser and horizontal flip on both sides, which run alternately. It counts wall and processor
seconds of all processes, with start-up, reading, evaluation and checkpoints; in every round our side also packs the
pictures. timm's script is not in its package: pass the train.py of its repository at the installed version's tag.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from imnet.errors import DataError, DeviceError, IOFailure
from imnet.metrics import read_metrics
from imnet.report.comparison import experiment
from imnet.report.read import load, read_json

from .clock import Timing, cpu_seconds, ratios

LR, MOMENTUM, DECAY, WORKERS = 0.05, 0.9, 5e-4, 2


def timm_command(script: Path, pictures: Path, out: Path, case: dict[str, Any]) -> list[str]:
    """timm's script with our choices; what it would do in addition (jitter, smoothing, other crops) is switched off."""
    sizes = ["--img-size", case["image_px"], "--num-classes", case["num_classes"], "-b", case["batch_images"]]
    optimiser = ["--opt", "sgd", "--lr", LR, "--momentum", MOMENTUM, "--weight-decay", DECAY]
    schedule = ["--epochs", case["epochs"], "--sched", "cosine", "--warmup-epochs", 0]
    plain = ["--scale", 1, 1, "--ratio", 1, 1, "--color-jitter", 0, "--smoothing", 0, "--crop-pct", 1]
    device = ["--device", "cpu", "--amp", "--amp-dtype", "bfloat16", "--channels-last", "-j", WORKERS]
    where = ["--data-dir", pictures, "--output", out]
    words = ["--model", case["model"], *sizes, *optimiser, *schedule, *plain, *device, *where]
    return [sys.executable, str(script), *map(str, words)]


def our_command(pictures: Path, out: Path, case: dict[str, Any]) -> list[str]:
    """imnet-train on the same folder of pictures, which it packs first."""
    augment = ["--augment.crop_pad_px", 0, "--label-smoothing", 0]
    optimiser = ["--lr", LR, "--optim.momentum", MOMENTUM, "--optim.weight_decay", DECAY, "--schedule.kind", "cosine"]
    sizes = ["--epochs", case["epochs"], "--batch-size", case["batch_images"], "--precision", "bf16"]
    what = [pictures, "--model", f"timm:{case['model']}", "--device", "cpu", "--out", out]
    words = [*what, *sizes, *optimiser, *augment]
    return [sys.executable, "-m", "imnet.cli", *map(str, words)]


def seconds_of(command: list[str], cache: Path) -> tuple[float, float]:
    """(wall, processor) seconds of a command run with an empty cache; DeviceError with its last line if it fails."""
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    wall, cpu = time.perf_counter(), cpu_seconds(children=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cache, env=env)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeviceError(f"{' '.join(command[:3])} ended with {done.returncode}: {lines[-1]}")
    return time.perf_counter() - wall, cpu_seconds(children=True) - cpu


def rows(script: Path, pictures: Path, rounds: int, epochs: int, **case: Any) -> Iterator[dict[str, Any]]:
    """Yield one row, after printing a line per run. ``pictures`` has class folders in train/ and val/."""
    for place in (script, pictures / "train", pictures / "val"):
        if not (place.is_file() if place is script else place.is_dir()):
            raise IOFailure("no such file or folder", file=place, hint="timm's train.py; a folder with train/ and val/")
    counts = {part: _pictures_a_class(pictures / part) for part in ("train", "val")}
    case = {**case, "epochs": epochs, "num_classes": len(counts["train"])}
    case |= {"train_images": sum(counts["train"]), "test_images": sum(counts["val"])}
    taken: dict[str, list[tuple[float, float]]] = {"timm": [], "imnet": []}
    for number in range(rounds):
        for name, all_taken in taken.items():
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder)
                command = timm_command(script, pictures, out, case) if name == "timm" else (
                    our_command(pictures, out / "run", case))  # fmt: skip
                all_taken.append(seconds_of(command, out))
            wall, cpu = all_taken[-1]
            print(f"round {number + 1}, {name}: {wall:.1f} s, {cpu:.1f} CPU s", flush=True)
    row: dict[str, Any] = dict(case)
    for i, clock in enumerate(("wall", "cpu")):
        ours, theirs = ([one[i] for one in taken[name]] for name in ("imnet", "timm"))
        row[clock] = {"imnet": Timing.of(ours).as_dict(), "timm": Timing.of(theirs).as_dict(), **ratios(ours, theirs)}
    yield row


def _pictures_a_class(part: Path) -> list[int]:
    """The number of files in each class folder that is not empty; files beside the folders (.DS_Store) are ignored."""
    found = [len(list(folder.iterdir())) for folder in sorted(part.iterdir()) if folder.is_dir()]
    if not any(found):
        raise DataError("no class folders with pictures", file=part, hint="e.g. train/cat/1.jpg, val/cat/2.jpg")
    return [number for number in found if number]


def figures(folder: Path, curve: bool = True) -> dict[str, Any]:
    """Last-epoch accuracy, training seconds and rate of a complete run; with ``curve`` also its accuracy by epoch and
    the published figures. Raises DataError if the run is not complete.
    """
    run = read_json(folder / "run.json")
    if run["status"] != "complete":
        raise DataError(f"the run is {run['status']}, not complete", file=folder, hint="go on with it first")
    rows = read_metrics(folder / "metrics.jsonl")
    evals, recipe = [r for r in rows if r["kind"] == "eval"], run["recipe"]
    if not evals:
        raise DataError("has no evaluation", file=folder / "metrics.jsonl", hint="put a copy of it back")
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


def run_rows(folders: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """The rows of ``imnet-bench runs``: recipe, seed, last-epoch accuracy, training time and hardware of each run."""
    for folder in folders:
        found = figures(folder, curve=False)
        run, evaluation = read_json(folder / "run.json"), read_json(folder / "evaluation.json")
        about = {key: run[key] for key in ("parameters", "device", "num_ranks", "hardware", "versions", "git_sha")}
        about |= {"published": run["recipe"]["published"], "test_images": evaluation["num_images"]}
        about |= {"experiment": experiment(load(folder))[:8]}
        yield found | about | {"top1_flip": evaluation["top1_flip"]}
