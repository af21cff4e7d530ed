"""The whole command against timm's own training script: from class folders of pictures to a judged network.

The same network, pictures, precision, layout, batch, epochs, optimiser and mirror; wall and processor seconds of every
process that takes part, start-up, reading, evaluation and checkpoints too, the two sides in turn. Ours packs first, in
every round. timm's script is not in its package: give the train.py of its repository, at the tag that is installed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from imnet.errors import DeviceError

from .clock import Timing, cpu_seconds, ratios
from .fingerprint import fingerprint

LR, MOMENTUM, DECAY, WORKERS = 0.05, 0.9, 5e-4, 2


def timm_command(script: Path, pictures: Path, out: Path, case: dict[str, Any]) -> list[str]:
    """timm's script with our choices; what it would do besides (jitter, smoothing, other crops) is switched off."""
    sizes = ["--img-size", case["image_px"], "--num-classes", case["num_classes"], "-b", case["batch_images"]]
    optimiser = ["--opt", "sgd", "--lr", LR, "--momentum", MOMENTUM, "--weight-decay", DECAY]
    schedule = ["--epochs", case["epochs"], "--sched", "cosine", "--warmup-epochs", 0]
    plain = ["--scale", 1, 1, "--ratio", 1, 1, "--color-jitter", 0, "--smoothing", 0, "--crop-pct", 1]
    device = ["--device", "cpu", "--amp", "--amp-dtype", "bfloat16", "--channels-last", "-j", WORKERS]
    where = ["--data-dir", pictures, "--output", out]
    words = ["--model", case["model"], *sizes, *optimiser, *schedule, *plain, *device, *where]
    return [sys.executable, str(script), *map(str, words)]


def our_command(pictures: Path, out: Path, case: dict[str, Any]) -> list[str]:
    """imnet-train on the same folder, which it packs first."""
    augment = ["--augment.crop_pad_px", 0, "--label-smoothing", 0]
    optimiser = ["--lr", LR, "--optim.momentum", MOMENTUM, "--optim.weight_decay", DECAY, "--schedule.kind", "cosine"]
    sizes = ["--epochs", case["epochs"], "--batch-size", case["batch_images"], "--precision", "bf16"]
    words = [
        pictures,
        "--model",
        f"timm:{case['model']}",
        *sizes,
        *optimiser,
        *augment,
        "--device",
        "cpu",
        "--out",
        out,
    ]
    return [sys.executable, "-m", "imnet.cli", *map(str, words)]


def seconds_of(command: list[str], cache: Path) -> tuple[float, float]:
    """(wall, processor) seconds of a command with an empty cache; DeviceError with its last line where it fails.

    Both sides find this package as it is found here.
    """
    env = os.environ | {"XDG_CACHE_HOME": str(cache)}
    wall, cpu = time.perf_counter(), cpu_seconds(children=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=cache, env=env)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["no message"]
        raise DeviceError(f"{' '.join(command[:3])} ended with {done.returncode}: {lines[-1]}")
    return time.perf_counter() - wall, cpu_seconds(children=True) - cpu


def report(script: Path, pictures: Path, rounds: int, epochs: int, **case: Any) -> dict[str, Any]:
    """The JSON of ``imnet-bench whole``; prints a line a round. ``pictures`` holds train/ and val/ of class folders."""
    counts = {part: [len(list(c.iterdir())) for c in sorted((pictures / part).iterdir())] for part in ("train", "val")}
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
    return {"benchmark": "whole", "fingerprint": fingerprint("bf16", rounds), "rows": [row]}
