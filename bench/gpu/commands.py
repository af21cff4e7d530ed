"""Rows that run a process: the default commands from start to summary, complete recipes, and the tests marked gpu."""

from __future__ import annotations

import functools
import importlib.util
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .. import whole
from .plan import UNTIMED, Row, Setting, UnavailableError, UnfinishedError
from .processes import ERROR_CHARACTERS, ROOT, environment

QUICK, LONG = "imnet-train", "imnet-train --recipe fashion-mnist/speedrun_long"
# Seconds from start to summary on an H100, 2026-11-26: speedrun_long 25; the quickstart's are a guess from that.
COMMANDS = {QUICK: 15.0, LONG: 25.0}
NUM_RUNS = 3
FAST = (
    "fashion-mnist/speedrun_gpu",
    *(
        f"fashion-mnist/{network}_fast"
        for network in ("wrn28_10", "densenet_bc100_12", "dpn28_10", "shake_shake26_2x64d", "shake_shake26_2x96d")
    ),
)
STOP_S = 25.0
"""A run is asked to stop this many seconds before its limit, to write and verify 36 million parameters and momenta."""
REQUEUE = 75
START_UP_S = 20.0
IMAGES_PER_S_GUESSED = {"densenet_bc100_12": 7718.0, "wrn28_10": 12898.0, "shake_shake26_2x96d": 11861.0}
"""Rates of captured steps on an H100, 2026-11-26."""
FLOPS_PER_S_GUESSED = 1.8e14
"""For other networks: not measured, a little below the rate of the slower wide network."""
DRY = ["--device", "cpu", "--threads", "1", "--epochs", "1", "--data.train_images", "128", "--data.test_images", "64"]
NUM_FAILURES_SHOWN = 12
SOME_FAILED, NOTHING_COLLECTED = 1, 5
"""Exit codes of pytest; the second also occurs if a whole file is skipped because a package is missing."""


def command_rows(setting: Setting) -> Iterator[Row]:
    """The runs of the commands, each in its own process and folder; run 1 of all commands comes before run 2 of any."""
    commands = {QUICK: 10.0} if setting.dry else COMMANDS
    for number in range(1, 2 if setting.dry else NUM_RUNS + 1):
        for name, cost_s in commands.items():
            work = functools.partial(_prompt_to_summary, name, number, setting)
            yield Row("commands", name, f"run {number}", cost_s, work, repeats=True)


def _prompt_to_summary(name: str, number: int, setting: Setting, limit_s: float) -> dict[str, Any]:
    """Wall seconds of the command, training seconds and accuracy from its run folder; ``start_up_s`` is the rest."""
    words, data_dir = name.split()[1:], _data_dir(setting)
    if any("fashion-mnist" in word for word in words):
        if data_dir is None:
            raise UnavailableError("no fashion-mnist files; give --data-dir or $IMNET_DATA")
        words += ["--data-dir", data_dir]
    words += DRY if setting.dry else []
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    # The first run of a command has an empty cache of compiled kernels, as on a new machine; later runs reuse it.
    with tempfile.TemporaryDirectory() as scratch:
        cache = setting.scratch / slug
        env, cold = environment(setting.dry, cache), not cache.exists()
        start = time.perf_counter()
        code, printed, errors = _train([*words, "--out", scratch], env, limit_s, limit_s)
        wall_s = time.perf_counter() - start
        if code:
            raise RuntimeError(f"exit code {code}: {errors}")
        found = whole.figures(Path(scratch), curve=False)
    warm_up = re.search(r"warm-up\s+([\d.]+) s", printed)
    times: dict[str, Any] = {"wall_s": wall_s, "start_up_s": wall_s - (found["seconds"] or 0.0)}
    times["warm_up_s"] = float(warm_up[1]) if warm_up else None
    rounded = {key: None if value is None else round(value, 2) for key, value in times.items()}
    return {**found, **rounded, "cold_cache": cold}


def _train(words: Sequence[str], env: dict[str, str], limit_s: float, kill_s: float) -> tuple[int, str, str]:
    """(exit code, stdout, last line of stderr) of imnet-train; it gets SIGTERM after ``limit_s`` seconds and is killed
    after ``kill_s``."""
    for package in ("jsonargparse", "rich"):
        if importlib.util.find_spec(package) is None:
            raise UnavailableError(f"{package} is not installed")
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        command = [sys.executable, "-m", "imnet.cli", *words]
        process = subprocess.Popen(command, env=env, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=out, stderr=err)
        try:
            process.wait(max(1.0, limit_s))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(max(1.0, kill_s - limit_s))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for file in (out, err):
            file.seek(0)
        lines = [line for line in err.read().splitlines() if line.strip()]
        return process.returncode, out.read(), " ".join(lines[-1:])[:ERROR_CHARACTERS]


def _data_dir(setting: Setting) -> str | None:
    """The folder with Fashion-MNIST's files below --data-dir or $IMNET_DATA, or None; nothing is downloaded."""
    from imnet.data.files import environment_path

    wanted = setting.data_dir or environment_path("IMNET_DATA")
    found = sorted(Path(wanted).rglob("train-images-idx3-ubyte*")) if wanted else []
    return str(found[0].parent) if found else None


def recipe_names() -> list[str]:
    """The speed recipe, the fast forms of the five networks, then all documented recipes by their predicted time."""
    from imnet.recipes import RECIPES

    documented = [r.name for r in RECIPES.values() if r.name.startswith("fashion-mnist/") and r.published is not None]
    documented = [name for name in documented if not name.endswith("_as_run") and name not in FAST]
    return [*FAST, *sorted(documented, key=predicted_s)]


def recipe_rows(setting: Setting) -> Iterator[Row]:
    """Rows of recipes. A fast one starts only if it can finish; a documented one uses the time left, and a later call
    resumes it."""
    for name in ["quickstart"] if setting.dry else recipe_names():
        ends = setting.dry or name in FAST
        cost_s = 10.0 if setting.dry else predicted_s(name) if ends else 2 * STOP_S + START_UP_S
        work = functools.partial(_recipe, name, 2.0 if ends else STOP_S, setting)
        yield Row("recipes", name, "in full", cost_s, work, goes_on=not ends)


@functools.cache
def predicted_s(name: str) -> float:
    """Predicted seconds of a recipe's command, from measured rates if there are any; 1 for an unknown recipe."""
    from imnet.recipes import RECIPES

    from ..case import train_flops

    recipe = RECIPES.get(name)
    if recipe is None:
        return 1.0
    rate = IMAGES_PER_S_GUESSED.get(recipe.model) or FLOPS_PER_S_GUESSED / train_flops(recipe)
    # 10 % more for ten evaluations on 40,000 images.
    return START_UP_S + 1.1 * recipe.epochs * 30_000 / rate


def _recipe(name: str, stop_s: float, setting: Setting, limit_s: float) -> dict[str, Any]:
    """The figures of a complete run; raises UnfinishedError if it was stopped and saved."""
    from imnet.recipes import RECIPES

    if name not in RECIPES:
        raise LookupError(f"no recipe is called {name}")
    folder, words = setting.scratch / "runs" / name.replace("/", "-"), ["--recipe", name]
    if setting.dry:
        words = DRY
    elif (data_dir := _data_dir(setting)) is None:
        raise UnavailableError("no fashion-mnist files; give --data-dir or $IMNET_DATA")
    else:
        words += ["--data-dir", data_dir, "--checkpoint-every-epochs", "20"]
    env = environment(setting.dry)
    start = time.perf_counter()
    code, _, errors = _train([*words, "--out", str(folder)], env, limit_s - stop_s, limit_s - 1)
    wall_s = round(time.perf_counter() - start, 1)
    if code == REQUEUE:
        raise UnfinishedError(errors)
    if code:
        raise RuntimeError(f"exit code {code}: {errors}")
    return {**whole.figures(folder), "wall_s": wall_s}


def gpu_test_files() -> list[Path]:
    """The files with tests marked gpu. Others are not collected, since they may import packages that are missing."""
    marked = re.compile(r"mark\.gpu\b")
    return [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if marked.search(p.read_text())]


def test_rows(setting: Setting) -> Iterator[Row]:
    """One row per file; in a dry run a single row collects all files."""
    files = gpu_test_files()
    for some in [files] if setting.dry else [[path] for path in files]:
        name = "all files" if setting.dry else some[0].relative_to(ROOT).as_posix()
        work = functools.partial(_run_tests, some, setting)
        yield Row("tests", name, "pytest -m gpu", 20.0, work, timed=UNTIMED)


def _run_tests(paths: list[Path], setting: Setting, limit_s: float) -> dict[str, Any]:
    """pytest's last line and failures; a dry run only collects tests. Raises RuntimeError if pytest cannot run."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    command += ["--collect-only"] if setting.dry else []
    options: dict[str, Any] = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL, "timeout": limit_s}
    done = subprocess.run([*command, *map(str, paths)], cwd=ROOT, env=environment(False), check=False, **options)
    with (setting.scratch / "tests.log").open("a") as log:
        log.write(done.stdout)
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]]
    if done.returncode not in (0, SOME_FAILED, NOTHING_COLLECTED):
        raise RuntimeError(f"pytest ended with {done.returncode}: {' '.join(lines[-3:])}")
    failed = [line[:200] for line in lines if line.startswith(("FAILED", "ERROR"))]
    return {"summary": lines[-1], "failed": failed[:NUM_FAILURES_SHOWN]}
