"""Scores for the regression gate, taken so that a busy machine does not move them: a process of its own, one thread.

    python -m bench.probe --recipe NAME [--batch-size N] [--parts loader,model]

A score is the time of a plain PyTorch workload over that of ours, both in processor time, taken in turn: the median of
the ratios of neighbours in time. A lower clock or a neighbour in the cache slows both; slower code of ours only one.
The workload resembles the part (convolution, batch norm and their gradients for the step; gather, cast and scale for
the loader), because unlike ones are slowed unequally. One thread, because threads that wait for one another burn
processor time when somebody else has the core; and memory that is never given back to the system (``ALLOCATOR``),
because page faults cost what the rest of the machine makes them cost. Prints one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROUNDS = 30
PARTS = ("loader", "model")
# The C library keeps what it has: no mmap an allocation, no trimming.
ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"


def run(recipe: str, *, batch_images: int | None = None, parts: tuple[str, ...] = PARTS) -> dict[str, float]:
    """{name: score} from a new process; RuntimeError with its last line where it fails."""
    command = [sys.executable, "-m", f"{__package__}.probe", "--recipe", recipe, "--parts", ",".join(parts)]
    if batch_images is not None:
        command += ["--batch-size", str(batch_images)]
    return scores_of(command)


def scores_of(command: list[str]) -> dict[str, float]:
    """The line of JSON that a probe prints last."""
    paths = [str(Path(__file__).resolve().parents[1]), *sys.path]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLIBC_TUNABLES": ALLOCATOR,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the probe failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def scores(recipe_name: str, batch_images: int | None, parts: tuple[str, ...], rounds: int = ROUNDS) -> dict[str, Any]:
    """{``<part> <recipe>``: score} measured in this process."""
    import torch

    from imnet import device
    from imnet.run_options import RunOptions

    from .case import build, find_recipe, synthetic
    from .clock import samples

    recipe = find_recipe(recipe_name, None, batch_images=batch_images)
    with device.threads(RunOptions(threads=1)):
        case = build(synthetic(recipe), RunOptions(threads=1, compile=False))
        batches = case.batches()
        batch = next(batches)
        ours: dict[str, Callable[[], object]] = {
            "loader": lambda: next(batches),
            "model": lambda: case.train(batch),
        }
        yardsticks = {"loader": _loading, "model": _training}
        found = {}
        for part in parts:
            yardstick = yardsticks[part](torch.device(case.place.device), case.place.dtype)
            pair = {"ours": ours[part], "yardstick": yardstick}
            taken = samples(pair, rounds, slice_s=0.03)
            ratios = [theirs / mine for theirs, mine in zip(taken["yardstick"], taken["ours"], strict=True)]
            found[f"{part} {recipe.name}"] = statistics.median(ratios)
    return found


def _training(device: Any, dtype: Any) -> Callable[[], object]:
    """Convolution, batch norm, ReLU: forward and backward on 64 maps of 48 x 28 x 28, in plain PyTorch."""
    import torch
    from torch.nn import functional as F

    like = {"device": device, "dtype": dtype}
    images = torch.randn(64, 48, 28, 28, **like).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(48, 48, 3, 3, device=device, requires_grad=True)

    def call() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            maps = F.conv2d(images, weight, padding=1)
            loss = F.relu(F.batch_norm(maps, None, None, training=True)).float().sum()
        loss.backward()
        weight.grad = images.grad = None

    return call


def _loading(device: Any, dtype: Any) -> Callable[[], object]:
    """Gather 256 of 4096 images of 28 x 28 bytes, scale, shift, cast: in plain PyTorch.

    As few bytes as ours reads: more would empty the cache that ours finds warm, or not, by chance.
    """
    import torch

    images = torch.randint(0, 256, (4096, 28 * 28), dtype=torch.uint8, device=device)
    ids = torch.randperm(4096, device=device)[:256]
    return lambda: images[ids].float().mul_(1 / 255).add_(0.5).clamp_(0, 1).to(dtype)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--batch-size", type=int, default=None)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    values = parser.parse_args()
    print(json.dumps(scores(values.recipe, values.batch_size, tuple(values.parts.split(",")), values.rounds)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
