"""The regression gate: scores are saved to a file (--save) and later scores compared with it (--compare --fail-under).

A score is the time of a peer or of a plain PyTorch workload (``probe``) over our time, measured alternately in the same
run, so that it depends on the code more than on the machine's load. Three rules limit the remaining noise: a saved
score is the median of ``SAVE_ATTEMPTS`` measurements; the threshold ("line") is never above their second lowest, since
what the saved code itself reached is no regression; and a score below the line is measured again, up to ``ATTEMPTS``
times in all, and the best counts. Slower code is slower every time. Files of other machines are refused.

    python -m bench.gate --recipe NAME | --model NAME [--batch-size N] [--parts loader,model]

is the process of a probe. It has one thread, because threads that wait for each other use processor time while another
process has the core, and an allocator that never returns memory to the system (``ALLOCATOR``), because the cost of page
faults depends on the rest of the machine. The workload resembles the part (convolution, batch norm and their gradients
for the step; gather, cast and scale for the loader), because load slows unlike work unequally. It prints JSON.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shlex
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from imnet import device
from imnet.errors import DataError, DeviceError, IOFailure, UsageError
from imnet.files import write_json
from imnet.recipe import Recipe
from imnet.recipes import RECIPES
from imnet.run_options import RunOptions

from .case import build, find_recipe, synthetic
from .clock import Call, ratios, samples
from .form import aligned
from .machine import differences, fingerprint

SAVE_ATTEMPTS = 5
ATTEMPTS = 4
ROUNDS = 30
PARTS = ("loader", "model")
# The C library keeps all memory that it got: no mmap per allocation, no trimming.
ALLOCATOR = "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=8589934592"
Measure = Callable[[Collection[str] | None], dict[str, float]]
"""(names, or None for all) -> scores by name, higher is better; it may return more names than asked for."""


@dataclass(frozen=True)
class Verdict:
    """The comparison of one score; ``line`` is the threshold that ``new`` must reach, ``ratio`` is new over old."""

    name: str
    old: float
    new: float
    line: float
    attempts: int

    @property
    def ratio(self) -> float:
        return self.new / self.old

    @property
    def passed(self) -> bool:
        return self.new >= self.line


def keep(measure: Measure) -> dict[str, Any]:
    """The part that ``--save`` adds to a report: for every score the median ("score") and its measurements ("of")."""
    taken = [measure(None) for _ in range(SAVE_ATTEMPTS)]
    names = [name for name in taken[0] if all(name in one for one in taken)]
    return {name: {"score": statistics.median(v), "of": v} for name in names for v in [[one[name] for one in taken]]}


def save(path: Path, report: dict[str, Any], measure: Measure) -> None:
    """Add the scores to a report and write it. Warns if the machine is busy: scores that are too low now would let
    slower code pass later."""
    print(f"scores for the gate: {SAVE_ATTEMPTS} measurements of each", flush=True)
    load, cores = os.getloadavg()[0], report["fingerprint"]["cores"]
    if load > 1.5 * cores:
        print(f"the machine is busy (load {load:.1f} on {cores} cores): scores kept now let slower code pass later")
    report["gate"], report["load"] = keep(measure), load
    write_json(path, report)
    print(f"written: {path}")
    for name, entry in report["gate"].items():
        print(f"  {name}: {entry['score']:.4g} of {', '.join(f'{v:.4g}' for v in entry['of'])}")


def judge(old: Mapping[str, Sequence[float]], measure: Measure, fail_under: float) -> list[Verdict]:
    """A verdict for each name of ``old`` (the saved measurements) that ``measure`` returns too, in ``old``'s order.

    Scores below their line are measured again, up to ATTEMPTS times in all.
    """
    lines = {name: line(kept, fail_under) for name, kept in old.items()}
    best: dict[str, float] = {}
    attempts: Counter[str] = Counter()
    below: Collection[str] | None = None
    for _ in range(ATTEMPTS):
        found = measure(below)
        for name in found.keys() & old.keys() & set(old if below is None else below):
            best[name] = max(best.get(name, 0.0), found[name])
            attempts[name] += 1
        below = [name for name, value in best.items() if value < lines[name]]
        if not below:
            break
    return [
        Verdict(name, statistics.median(old[name]), best[name], lines[name], attempts[name])
        for name in old
        if name in best
    ]


def line(kept: Sequence[float], fail_under: float) -> float:
    """The least score that passes: ``fail_under`` times the saved median, but at most the second lowest saved score."""
    return min(fail_under * statistics.median(kept), sorted(kept)[min(1, len(kept) - 1)])


def read(path: Path) -> dict[str, Any]:
    """Read a file that ``--save`` wrote; raises IOFailure if it cannot be read, DataError if it is another file."""
    try:
        found = json.loads(path.read_text())
    except OSError as error:
        raise IOFailure(f"cannot be read: {error.strerror}", file=path, hint="give the file of --save") from error
    except ValueError as error:
        raise DataError(f"not JSON: {error}", file=path, hint="write it anew with --save") from error
    try:
        machine, kept = found["fingerprint"], [entry["of"] for entry in found["gate"].values()]
        sound = bool(kept) and all(0 < statistics.median(of) < math.inf for of in kept)
        sound = sound and not differences(machine, machine)
    except (AttributeError, KeyError, TypeError, statistics.StatisticsError):
        sound = False
    if not sound:
        raise DataError("no scores in it", file=path, hint="write it with imnet-bench ... --save FILE")
    return found


def check(path: Path, force: bool) -> None:
    """Check a saved file before anything is measured: its form and its machine. ``against`` also compares precision
    and threads, which are known only then."""
    kept = read(path)["fingerprint"]
    _other_machine(path, kept, fingerprint(kept.get("precision", "")) | {"threads": kept.get("threads")}, force)


def _other_machine(path: Path, kept: dict[str, Any], today: dict[str, Any], force: bool) -> list[str]:
    """The differences of the two machines; raises UsageError if there are any, unless ``force``."""
    other = differences(kept, today)
    if other and not force:
        what = f"got a file of another machine: {'; '.join(other)}"
        raise UsageError(what, file=path, hint="measure and --save here, or --force the comparison")
    return other


def against(path: Path, today: dict[str, Any], measure: Measure, fail_under: float, force: bool) -> tuple[str, bool]:
    """Compare today's code with a saved file; returns (table, whether all scores passed). ``today`` is a fingerprint.

    Raises UsageError if the machine is another one (unless ``force``), or if no score is in both.
    """
    base = read(path)
    other = _other_machine(path, base["fingerprint"], today, force)
    old = {name: entry["of"] for name, entry in base["gate"].items()}
    verdicts = judge(old, measure, fail_under)
    if not verdicts:
        raise UsageError("no name is in both", file=path, hint=f"it holds {', '.join(old)}")
    gone = ", ".join(sorted(old.keys() - {v.name for v in verdicts}))
    notes = [f"compared by force: {'; '.join(other)}"] if other else []
    notes += [f"kept and not measured today: {gone}"] if gone else []
    return "\n".join([*notes, table(verdicts, fail_under)]), all(v.passed for v in verdicts)


def table(verdicts: list[Verdict], fail_under: float) -> str:
    """The table of verdicts, one line per score, and the overall verdict."""
    cells = []
    for v in verdicts:
        note = ("" if v.passed else "SLOWER ") + (f"(best of {v.attempts})" if v.attempts > 1 else "")
        cells.append([v.name, f"{v.old:.4g}", f"{v.new:.4g}", f"{v.ratio:.3f}", f"{v.line / v.old:.3f}", note])
    slower = [v.name for v in verdicts if not v.passed]
    verdict = f"passed (--fail-under {fail_under}): {len(verdicts)} score(s)"
    if slower:
        verdict = f"FAILED (--fail-under {fail_under}): below the line in every attempt: {', '.join(slower)}"
    return f"{aligned(['score', 'old', 'new', 'ratio', 'line', ''], cells)}\ngate: {verdict}"


def probe(recipe: Recipe, parts: tuple[str, ...]) -> dict[str, float]:
    """{``<part> <recipe>``: score}, measured in a new process; raises DeviceError with its last line if it fails."""
    return scores_of([sys.executable, "-m", f"{__package__}.gate", *words_of(recipe, parts)])


def words_of(recipe: Recipe, parts: tuple[str, ...]) -> list[str]:
    """The options of a probe. A network that no recipe has is measured in the plain one that ``find_recipe`` makes."""
    which = ["--recipe", recipe.name] if recipe.name in RECIPES else ["--model", recipe.model]
    return [*which, "--batch-size", str(recipe.data.batch_images), "--parts", ",".join(parts)]


def scores_of(command: list[str]) -> dict[str, float]:
    """Run a probe's command in the environment that probes need; returns the JSON of its last line."""
    paths = [str(Path(__file__).resolve().parents[1]), *sys.path]
    env = os.environ | {
        "OMP_NUM_THREADS": "1",
        "GLIBC_TUNABLES": ALLOCATOR,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(f"the probe failed: {said}", hint=f"its own command says more: {shlex.join(command)}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def scores(recipe: Recipe, parts: Sequence[str], rounds: int) -> dict[str, float]:
    """As ``probe``, measured in this process."""
    found: dict[str, float] = {}
    with device.threads(RunOptions(threads=1)):
        case = build(synthetic(recipe), RunOptions(threads=1, compile=False))
        batches = case.batches()
        batch = next(batches)
        ours: dict[str, Call] = {"loader": lambda: next(batches), "model": lambda: case.train(batch)}
        yardsticks = {"loader": _loading, "model": _training}
        for part in parts:
            yardstick = yardsticks[part](case.place.device, case.place.dtype)
            taken = samples({"ours": ours[part], "yardstick": yardstick}, rounds, slice_s=0.03)
            found[f"{part} {recipe.name}"] = ratios(taken["ours"], taken["yardstick"])["ratio_median"]
    return found


def _training(device: torch.device, dtype: torch.dtype) -> Call:
    """Plain PyTorch to compare the step with: convolution, batch norm and ReLU, forward and backward, on
    (64, 48, 28, 28)."""
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


def _loading(device: torch.device, dtype: torch.dtype) -> Call:
    """Plain PyTorch to compare the loader with: gather 256 of 4096 images of 28 x 28 bytes, scale, shift, cast.

    It reads as few bytes as our loader: more would evict our data from the cache, or not, by chance.
    """
    images = torch.randint(0, 256, (4096, 28 * 28), dtype=torch.uint8, device=device)
    ids = torch.randperm(4096, device=device)[:256]
    return lambda: images[ids].float().mul_(1 / 255).add_(0.5).clamp_(0, 1).to(dtype)


def asked(argv: list[str] | None = None) -> tuple[Recipe, list[str], int]:
    """(recipe, parts, rounds) of a probe's options."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--recipe")
    parser.add_argument("--model")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    values = parser.parse_args(argv)
    recipe = find_recipe(values.recipe, values.model, batch_images=values.batch_size)
    return recipe, values.parts.split(","), values.rounds


def main() -> int:
    print(json.dumps(scores(*asked())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
