"""A published recipe in full on this GPU: fashion-mnist/wrn28_10, 200 epochs, over as many calls as it takes.

The run is the trainer's own, in a process that is asked to stop (SIGTERM) when the time is up; the next call with the
same --runs goes on from its checkpoint. `python -m bench.gpu.recipe RECIPE FOLDER` is that process.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from .rows import Setting, Task, UnfinishedError

RECIPE = "fashion-mnist/wrn28_10"
STOP_S = 25
"""A run is asked to stop so long before the time is up: it writes and verifies 36 million parameters and momenta."""
REQUEUE = 75


def tasks(setting: Setting) -> Iterator[Task]:
    yield "quickstart" if setting.dry else RECIPE, "in full", lambda: _work(setting)


def _work(setting: Setting) -> dict[str, Any]:
    name = "quickstart" if setting.dry else RECIPE
    if not setting.dry and not _data_dir(setting):
        raise UnfinishedError("no fashion-mnist files; give --data-dir or $IMNET_DATA")
    folder = setting.runs / name.replace("/", "-")
    notes = []
    for graphs in (False,) if setting.dry else (True, False):
        code, last = _run(name, folder, graphs, setting)
        if code == REQUEUE:
            raise UnfinishedError(last)
        if _status(folder) == "complete":
            return figures(folder) | {"graphs": graphs, "notes": notes + ([last] if code else [])}
        notes.append(f"graphs {graphs}: exit code {code}: {last}")
        if list(folder.glob("checkpoints/step-*")):
            break  # it trained, so the graph was not what failed
    raise RuntimeError("; ".join(notes))


def _data_dir(setting: Setting) -> str | None:
    """The folder with Fashion-MNIST's files, as the trainer looks for it; nothing is downloaded on a bare machine."""
    wanted = setting.data_dir or os.environ.get("IMNET_DATA")
    if wanted is None:
        return None
    found = list(Path(wanted).rglob("train-images-idx3-ubyte*"))
    return str(found[0].parent) if found else None


def _run(name: str, folder: Path, graphs: bool, setting: Setting) -> tuple[int, str]:
    """(exit code, last line of its error output) of the training process."""
    from .parts import environment

    command = [sys.executable, "-m", f"{__package__}.recipe", name, str(folder)]
    command += ["--graphs"] if graphs else []
    command += ["--small"] if setting.dry else ["--data-dir", str(_data_dir(setting))]
    env = environment(False)
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    left = setting.left_s - STOP_S
    try:
        _, errors = process.communicate(timeout=max(1.0, left) if left < float("inf") else None)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGTERM)
        try:
            _, errors = process.communicate(timeout=STOP_S + 20)
        except subprocess.TimeoutExpired:
            process.kill()
            _, errors = process.communicate()
    lines = [line for line in errors.splitlines() if line.strip()]
    return process.returncode, lines[-1][:300] if lines else ""


def _status(folder: Path) -> str | None:
    path = folder / "run.json"
    return json.loads(path.read_text())["status"] if path.exists() else None


def figures(folder: Path) -> dict[str, Any]:
    """Accuracy of the last epoch, time and rate of a complete run, beside what was published."""
    run = json.loads((folder / "run.json").read_text())
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    evals = [r for r in rows if r["kind"] == "eval"]
    published = run["recipe"].get("published") or {}
    found = {
        "epochs": run["recipe"]["epochs"],
        "seed": run["recipe"]["seed"],
        "precision": run["precision"],
        "top1": evals[-1]["top1"],
        "curve": [[r["epoch"], round(r["top1"], 4)] for r in evals][-40:],
        "seconds": run["seconds"],
        "images_per_s": statistics.median(r["images_per_s"] for r in rows if r["kind"] == "train"),
        "kernels": {k: v["tier"] for k, v in run["kernels"].items()},
        "published_top1": published.get("top1"),
        "published_hours": published.get("hours"),
        "published_hardware": published.get("hardware"),
    }
    if run["device"] == "cpu":
        found |= {"seconds": None, "images_per_s": None}
    return found


def main(argv: list[str]) -> int:
    """The training process: RECIPE FOLDER [--graphs] [--small] [--data-dir DIR]."""
    from imnet.errors import ImnetError
    from imnet.recipes import by_name
    from imnet.run_options import RunOptions
    from imnet.start import train

    recipe, small = by_name(argv[0]), "--small" in argv
    common: dict[str, Any] = {"out": argv[1], "cuda_graphs": "--graphs" in argv, "on_nonfinite": "stop"}
    if small:
        data = replace(recipe.data, image_px=16, train_images=64, test_images=32, batch_images=16)
        recipe = replace(recipe, data=data, epochs=2, model="wrn10_1", model_options={})
        common |= {"device": "cpu", "threads": 1}
    else:
        common |= {"data_dir": argv[argv.index("--data-dir") + 1], "checkpoint_every_epochs": 20}
    try:
        return train(recipe, RunOptions(**common))[0]
    except ImnetError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
