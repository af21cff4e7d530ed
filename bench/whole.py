"""The whole command against timm's own training script: from class folders of pictures to a judged network.

The same network, pictures, precision, layout, batch, epochs, optimiser and mirror; wall and processor seconds of every
process that takes part, start-up, reading, evaluation and checkpoints too, the two sides in turn. Ours packs first, in
every round. timm's script is not in its package: give the train.py of its repository, at the tag that is installed.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
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


def our_commands(pictures: Path, out: Path, case: dict[str, Any]) -> list[list[str]]:
    """imnet-data pack, then imnet-train."""
    data: dict[str, Any] = {"name": "packed"}
    data |= {key: case[key] for key in ("image_px", "num_classes", "batch_images", "train_images", "test_images")}
    optim = {"lr": LR, "momentum": MOMENTUM, "weight_decay": DECAY}
    augment = {"hflip": "random", "mean": "[0.485,0.456,0.406]", "std": "[0.229,0.224,0.225]"}
    options = {"data": data, "optim": optim, "augment": augment, "schedule": {"kind": "cosine"}}
    words = [w for part, values in options.items() for k, v in values.items() for w in (f"--{part}.{k}", str(v))]
    train = ["--model", f"timm:{case['model']}", "--epochs", str(case["epochs"]), "--precision", "bf16", *words]
    store = str(out / "store")
    return [
        [sys.executable, "-m", "imnet.data.tool", "pack", str(pictures), store, "--size", str(case["image_px"])],
        [sys.executable, "-m", "imnet.cli", *train, "--data-dir", store, "--device", "cpu", "--out", str(out / "run")],
    ]


def seconds_of(commands: Sequence[list[str]]) -> tuple[float, float]:
    """(wall, processor) seconds of the commands one after the other; DeviceError with the last line of one that fails.

    Both sides find this package as it is found here.
    """
    wall, cpu = time.perf_counter(), cpu_seconds(children=True)
    for command in commands:
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tempfile.gettempdir())
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
                theirs = [timm_command(script, pictures, out, case)]
                all_taken.append(seconds_of(theirs if name == "timm" else our_commands(pictures, out, case)))
            wall, cpu = all_taken[-1]
            print(f"round {number + 1}, {name}: {wall:.1f} s, {cpu:.1f} CPU s", flush=True)
    row: dict[str, Any] = dict(case)
    for i, clock in enumerate(("wall", "cpu")):
        ours, theirs = ([one[i] for one in taken[name]] for name in ("imnet", "timm"))
        row[clock] = {"imnet": Timing.of(ours).as_dict(), "timm": Timing.of(theirs).as_dict(), **ratios(ours, theirs)}
    return {"benchmark": "whole", "fingerprint": fingerprint("bf16", rounds), "rows": [row]}
