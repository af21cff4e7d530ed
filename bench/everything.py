"""imnet-bench all: small cases of every part, one JSON, under ten minutes on two CPU cores."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from imnet import device
from imnet.errors import ImnetError
from imnet.run_options import RunOptions

from . import bench_step, parts, scaling, throughput
from .case import find_recipe
from .fingerprint import fingerprint

THROUGHPUT = (("fashion-mnist/speedrun", None), ("tiny-imagenet/resnet18_64", 32))
STEP_NETWORKS = ("speednet", "timm:resnet18")
STEP_ROUNDS = 6
DATA_ROUNDS = 6
SCALING = ("fashion-mnist/speedrun", 128)
LEFT_OUT = [
    "throughput: two recipes, the second with 32 images a step; `imnet-bench throughput --recipe NAME` takes any",
    f"step: {', '.join(STEP_NETWORKS)} only, {STEP_ROUNDS} rounds; `imnet-bench step` takes the whole table, 12 rounds",
    "kernels: fewer rounds and no compiled column; `imnet-bench kernels` takes all",
    f"data: {DATA_ROUNDS} rounds, no row that needs JPEG or IDX files; `python -m bench.bench_data --help` names them",
    "scaling: up to two processes; the model on paper is `imnet-bench scaling --model 1024`",
    "published hardware: `imnet-bench throughput --against CARD`",
]


def report() -> dict[str, Any]:
    """{"benchmark": "all", "parts": {name: JSON}}; a part that cannot run says why, the others go on."""
    took: dict[str, float] = {}
    found: dict[str, Any] = {}
    for name, run in PARTS.items():
        print(f"== {name}", flush=True)
        start = time.perf_counter()
        try:
            found[name] = run()
        except (ImnetError, RuntimeError, OSError) as error:
            found[name] = {"benchmark": name, "error": str(error).splitlines()[0]}
            print(f"not measured: {found[name]['error']}", flush=True)
        took[name] = round(time.perf_counter() - start, 1)
    print("took " + ", ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    print("left out:\n" + "\n".join(f"  {line}" for line in LEFT_OUT))
    with device.threads(RunOptions()):
        machine = fingerprint(device.resolve(RunOptions()).precision)
    return {"benchmark": "all", "fingerprint": machine, "parts": found, "took_s": took, "left_out": LEFT_OUT}


def _throughput() -> dict[str, Any]:
    recipes = [find_recipe(name, None, batch_images=batch) for name, batch in THROUGHPUT]
    return throughput.report(recipes, RunOptions(), seconds=15)


def _step() -> dict[str, Any]:
    with device.threads(RunOptions()):
        rows, last = [], {}
        for name in STEP_NETWORKS:
            if name.startswith("timm:") and not bench_step.has_timm():
                continue
            last = bench_step.report(name, STEP_ROUNDS)
            rows += last["rows"]
        return last | {"rows": rows}


def _scaling() -> dict[str, Any]:
    recipe = find_recipe(SCALING[0], None, batch_images=SCALING[1])
    gpus = device.num_gpus()
    options = RunOptions() if gpus else RunOptions(device="cpu")
    found = scaling.report(recipe, options, scaling.parse_ranks(max(2, gpus)), steps=12)
    print(scaling.text(found))
    return found


PARTS: dict[str, Callable[[], dict[str, Any]]] = {
    "throughput": _throughput,
    "step": _step,
    "scaling": _scaling,
    "kernels": lambda: parts.kernels(quick=True),
    "data": lambda: parts.data("--rounds", str(DATA_ROUNDS)),
}
