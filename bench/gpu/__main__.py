"""Everything that needs a GPU, in one command, on a bare machine: torch, torchvision, timm and pytest will do.

    python -m bench.gpu --budget 5m [--out DIR] [--part NAME] [--data-dir DIR]   on a machine with a CUDA GPU
    python -m bench.gpu --dry                             the same on a CPU with tiny shapes; nothing is timed
    python -m bench.gpu --merge DIR bench/results/h100-2026-11-26.json   the file that is committed

Parts, in order of value: commands (the default commands, from the prompt to the summary), checks (every kernel against
its definition), profile (the kernels of a step), floor (what bounds it), steps, kernels, tests (those marked gpu),
recipes, dali, photographs (JPEG to batches), trials (what might make a step faster). What has no figure in
bench/results comes before what has one.
The CUDA library is built and the networks are compiled beside what is no time (checks, tests); what the processor's
load would disturb waits until they are done.

<out>/<device>.json holds every row as soon as it is known, and the next call with the same --out does not repeat what
is measured there. A row that failed says why in "error", one that was left out in "skipped". Times are kept within the
budget: see bench/gpu/plan.py.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import importlib
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

STARTED = time.monotonic()
BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(f) for f in (BENCH.parent / "kernels",) if f.is_dir()]

from imnet.command import guarded  # noqa: E402
from imnet.data.files import make_dir  # noqa: E402
from imnet.errors import DeviceError  # noqa: E402
from imnet.resources import num_cores  # noqa: E402

from .files import ResultFile, fingerprint, has_result, known, merge, untimed  # noqa: E402
from .plan import Figures, Plan, Row, Setting, carry_out  # noqa: E402
from .processes import Jobs, Worker, environment, serve  # noqa: E402

# Part -> (share of the budget, where its rows come from). Shares are of the parts that are asked for.
PARTS: dict[str, tuple[float, str]] = {
    "commands": (0.24, "commands.command_rows"),
    "checks": (0.13, "kernels.check_rows"),
    "profile": (0.25, "steps.profile_rows"),
    "floor": (0.10, "floor.floor_rows"),
    "steps": (0.15, "steps.step_rows"),
    "kernels": (0.10, "kernels.kernel_rows"),
    "tests": (0.10, "commands.test_rows"),
    "recipes": (0.50, "commands.recipe_rows"),
    "dali": (0.04, "kernels.dali_rows"),
    "photographs": (0.06, "photographs.photograph_rows"),
    "trials": (0.04, "trials.trial_rows"),
}
BACKGROUND_SHARE = 0.40
"""The share of the budget after which background jobs are ended and rows that need them are left out. An H100's host
took 54 s to compile four networks at once and 101 s for DenseNet (2026-11-26)."""
END_SHARE, END_S = 0.01, 2.0
"""The share of the budget and the seconds that are reserved for the last write and the table."""


def seconds(text: str) -> float:
    """``9m``, ``540``, ``540s`` -> seconds. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: seconds or minutes, e.g. 540 or 9m")
    return float(match[1]) * (60 if match[2] == "m" else 1)


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=seconds, default=540.0, help="time for all of it, e.g. 9m (default)")
    parser.add_argument("--part", choices=PARTS, action="append", help="only this part; may be given again")
    parser.add_argument("--skip", choices=PARTS, action="append", default=[], help="leave this part out")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the result file")
    scratch = Path(tempfile.gettempdir()) / "imnet-bench-gpu"
    parser.add_argument("--scratch", type=Path, default=scratch, help=f"compiled code, logs, runs (default {scratch})")
    parser.add_argument("--data-dir", help="folder with Fashion-MNIST's four files (also: $IMNET_DATA)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny, nothing timed")
    parser.add_argument("--git-sha", help="commit of this checkout, where it came without its .git")
    parser.add_argument("--merge", nargs=2, type=Path, metavar=("FROM", "FILE"), help="write the file to commit")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    return argparse.Namespace(**vars(parser.parse_args(argv)), argv=argv)


def setting_of(values: argparse.Namespace) -> Setting:
    scratch = values.out / "scratch" if values.dry else values.scratch
    data_dir = str(Path(values.data_dir).resolve()) if values.data_dir else None
    return Setting(dry=values.dry, scratch=scratch.resolve(), data_dir=data_dir)


def rows_of(values: argparse.Namespace, setting: Setting) -> list[Row]:
    """The rows of all requested parts, in the order of PARTS."""
    found: list[Row] = []
    for part, (_, place) in PARTS.items():
        if (not values.part or part in values.part) and part not in values.skip:
            module, _, name = place.partition(".")
            found += getattr(importlib.import_module(f".{module}", __package__), name)(setting)
    return found


def in_order(rows: list[Row], file: ResultFile) -> list[Row]:
    """The rows still to be measured, by part: first rows without any figure, then those with one only in bench/results,
    last those that failed before."""
    results, measured, tried = known(), file.measured(), file.tried()
    parts = list(PARTS)

    def order(row: Row) -> tuple[int, int]:
        return parts.index(row.part), 2 if row.key in tried else int(has_result(row, results))

    return sorted((row for row in rows if row.key not in measured), key=order)


def worker(values: argparse.Namespace) -> int:
    """The main function of a worker process. A dry run takes the same path with small roofs and without times."""
    import torch

    from .. import machine

    if values.dry:
        machine.COPY_BYTES["cpu"], machine.MATMUL["cpu"] = 1 << 20, 64
    else:
        if not torch.cuda.is_available():
            return 69  # the parent process reports the missing GPU
        torch.cuda.set_device(0)
    torch.manual_seed(0)
    work_of = {row.key: row for row in rows_of(values, setting_of(values))}
    hello = fingerprint(values.dry, values.git_sha)
    gc.freeze()  # what is imported stays, so that clean_up() need not look through it after every row
    return serve(work_of, hello, values.worker, clean_up, untimed if values.dry else dict)


def clean_up() -> bool:
    """Release the device's memory between rows; returns whether it still responds. Without one there is nothing to
    release, and looking for it takes longer than most rows of a dry run."""
    import torch

    if not torch.cuda.is_available():
        return True
    gc.collect()
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def built() -> bool:
    """Whether the CUDA library exists for this torch and is not older than its sources."""
    import torch
    from imnet_kernels import build

    library = build.PACKAGE / build.CUDA_MODULE.format(torch.__version__)
    sources = [p for folder in ("cuda", "common") for p in (build.csrc() / folder).iterdir()]
    return library.is_file() and library.stat().st_mtime >= max(p.stat().st_mtime for p in sources)


def jobs_of(rows: list[Row], values: argparse.Namespace, setting: Setting) -> list[tuple[str, list[str]]]:
    """(name, command) of the background jobs that these rows need; the slowest compilation does not come last."""
    from . import steps

    wanted = {name for row in rows for name in row.needs}
    build = [sys.executable, "-m", "imnet_kernels.build"]
    found: list[tuple[str, list[str]]] = []
    if values.dry:  # compiling one file takes as long as all else that a dry run does
        found.append(("_C", [*build, "--help"]))
    elif "_C" in wanted and not built():
        found.append(("_C", [*build, "--cuda"]))
    return [*found, *steps.jobs(wanted, setting)]


def measure(values: argparse.Namespace, setting: Setting, workers: dict[str, Worker], jobs: Jobs) -> ResultFile:
    """Start the background jobs and carry out the plan."""
    rows = rows_of(values, setting)
    file = ResultFile(values.out, values.dry, workers["main"].ready())
    rows = in_order(rows, file)
    jobs.start(jobs_of(rows, values, setting))
    end = STARTED + values.budget * (1 - END_SHARE) - END_S
    plan = Plan(rows, {part: share for part, (share, _) in PARTS.items()}, end, time.monotonic)

    def run(row: Row, limit_s: float) -> Figures:
        one = workers.get(row.part, workers["main"])
        with contextlib.suppress(RuntimeError):  # run() reports it as the row's error
            one.ready(plan.left_s)  # a restart after a row that was ended does not count as the next row's time
        found = one.run(row, min(limit_s, plan.left_s))
        at = f"{time.monotonic() - STARTED:5.0f} s"
        print(f"{at} {row.part}: {row.name}, {row.variant}: {brief(found)}", flush=True)
        return found

    carry_out(plan, file, run, jobs, time.sleep)
    for name, took_s in jobs.took_s.items():
        why = {"error": jobs.why[name]} if name in jobs.why else {}
        found = {"seconds": took_s, **why}
        file.add(("build", name, "in the background"), untimed(found) if values.dry else found)
    return file


def _compiler_env(env: dict[str, str]) -> dict[str, str]:
    """Limit the threads of a compilation: several run at once, each by default with as many threads as cores."""
    return env | {"TORCHINDUCTOR_COMPILE_THREADS": str(max(1, num_cores() // 5)), "OMP_NUM_THREADS": "1"}


def brief(figures: dict[str, Any]) -> str:
    """A row's figures as one short line for the log."""
    plain = {k: v for k, v in figures.items() if v is not None and not isinstance(v, (list, dict))}
    return ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in plain.items())[:200]


def start(values: argparse.Namespace) -> int:
    """Run everything and print the tables. Workers start first, because their imports take as long as this process's;
    all processes are ended at the end."""
    setting = setting_of(values)
    make_dir(setting.scratch)
    os.environ.update(environment(values.dry, setting.scratch))
    env, command = dict(os.environ), [sys.executable, "-m", str(__package__), *values.argv, "--worker"]
    profiles = not values.dry and "profile" in (values.part or PARTS) and "profile" not in values.skip
    workers = {name: Worker(command, env) for name in ("main", *(["profile"] if profiles else []))}
    jobs = Jobs(setting.scratch / "logs", _compiler_env(env), STARTED + BACKGROUND_SHARE * values.budget)
    try:
        import torch

        if not values.dry and not torch.cuda.is_available():
            raise DeviceError("got no CUDA GPU; allowed: a machine with one, or --dry")
        from ..results import gpu_section

        print(gpu_section(measure(values, setting, workers, jobs).values))
    finally:
        jobs.close()
        for one in workers.values():
            one.close()
    return 0


def main(argv: list[str] | None = None) -> int:
    return guarded("bench.gpu", _main, argv)


def _main(argv: list[str]) -> int:
    values = parse(argv)
    if values.merge:
        merge(*values.merge)
        print(f"wrote {values.merge[1]}")
        return 0
    values.out = make_dir(values.out.resolve())
    return start(values) if values.worker is None else worker(values)


if __name__ == "__main__":
    sys.exit(main())
