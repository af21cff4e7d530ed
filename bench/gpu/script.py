"""Everything that needs a GPU, in one command, on a bare machine: torch, torchvision, timm and pytest will do.

    python -m bench.gpu --budget 9m [--out DIR] [--part N|NAME] [--data-dir DIR]     on a machine with a CUDA GPU
    python -m bench.gpu ... --out runs/gpu; cp runs/gpu/*.json $OUT              where only $OUT comes back: seven files
    python -m bench.gpu --dry                                   the same on a CPU with tiny shapes; nothing is timed
    python -m bench.gpu --merge DIR bench/results/h200-2026-11-21.json               the file that is committed

Parts, in order of value: build (nvcc), checks (every kernel against its definition), kernels, steps, tests (those
marked gpu), recipe (fashion-mnist/wrn28_10, 200 epochs), dali. Each writes <out>/<part>.json after every row, and the
next call with the same --out goes on where it stopped; a complete part is skipped, --fresh measures it again. A row
that failed says why in "error". A part whose process dies is started again behind the row that killed it.

Schema of the merged file, which bench/results.py turns into a section of RESULTS.md:

    {"benchmark": "gpu", "complete": {part: bool},
     "fingerprint": {"device", "gpu", "versions", "hardware", "git_sha", "date"},
     "rows": [{"part", "name", "variant", "took_s", ...}]}

    kernels   us, us_iqr, us_launched, gb_per_s, share_of_copy, gate_error, n; target_us or target_share
    steps     images_per_s, step_ms, step_ms_iqr, mfu, peak_gib, warm_up_s, target_images_per_s, of_target, n
    checks    error_forward, error_gradient, error_fp64, graph_replay_equal
    recipe    top1, seconds, images_per_s, epochs, curve, published_top1, published_hours
    any       error (one line) instead of figures; null where nothing was measured
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

BENCH = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(f) for f in (BENCH.parent / "kernels",) if f.is_dir()]

from . import table  # noqa: E402
from .parts import PARTS, ROOT, built, environment, tasks_of  # noqa: E402
from .rows import DEVICE_LOST, PartFile, Setting, fingerprint, run_tasks  # noqa: E402

MAX_STARTS = 6
GRACE_S = 45
"""A row that is at work when its part's time is up may take so long more."""


def seconds(text: str) -> float:
    """``9m``, ``540``, ``540s`` -> seconds. Raises argparse.ArgumentTypeError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([sm]?)", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"got {text!r}; allowed: seconds or minutes, e.g. 540 or 9m")
    return float(match[1]) * (60 if match[2] == "m" else 1)


def part_name(text: str) -> str:
    """A part by name or by number, from 1."""
    names = list(PARTS)
    if text in names:
        return text
    if text.isdigit() and 1 <= int(text) <= len(names):
        return names[int(text) - 1]
    raise argparse.ArgumentTypeError(f"got {text!r}; allowed: 1 .. {len(names)} or {', '.join(names)}")


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--budget", type=seconds, default=540.0, help="time for all of it, e.g. 9m (default)")
    parser.add_argument("--part", type=part_name, action="append", help="only this part; may be given again")
    parser.add_argument("--skip", type=part_name, action="append", default=[], help="leave this part out")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="folder of the parts' JSON files")
    parser.add_argument("--runs", type=Path, help="folder of the recipe's run (default: recipe-runs beside --out)")
    parser.add_argument("--data-dir", help="folder with Fashion-MNIST's four files (also: $IMNET_DATA)")
    parser.add_argument("--dry", action="store_true", help="on the CPU, tiny, nothing timed")
    parser.add_argument("--fresh", action="store_true", help="forget what --out holds of these parts")
    parser.add_argument("--git-sha", help="commit of this checkout, where it came without its .git")
    parser.add_argument("--merge", nargs=2, type=Path, metavar=("DIR", "FILE"), help="write one file of all parts")
    parser.add_argument("--worker", type=part_name, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def worker(values: argparse.Namespace) -> int:
    """One part, in this process."""
    import torch

    if not values.dry:
        torch.cuda.set_device(0)
    setting = Setting(
        device="cpu" if values.dry else "cuda",
        dry=values.dry,
        out=values.out,
        runs=values.runs,
        data_dir=values.data_dir,
        deadline=time.monotonic() + values.budget,
    )
    torch.manual_seed(0)
    file = PartFile(values.out, values.worker, values.dry, fingerprint(values.dry, values.git_sha))
    if values.worker == "build" and not values.dry and not built():
        file.reset()
    return 0 if file.complete else run_tasks(file, tasks_of(values.worker, setting), setting)


def start_worker(part: str, values: argparse.Namespace, share_s: float, limit_s: float) -> int | None:
    """Exit code of a part's process; None where it had to be ended."""
    command = [sys.executable, "-m", str(__package__), "--worker", part, "--budget", f"{max(1.0, share_s):.0f}"]
    command += ["--out", str(values.out), "--runs", str(values.runs)]
    command += ["--dry"] if values.dry else []
    command += ["--data-dir", values.data_dir] if values.data_dir else []
    command += ["--git-sha", values.git_sha] if values.git_sha else []
    env = environment(values.dry)
    if ROOT.name != "site-packages" and values.dry:
        env["OMP_NUM_THREADS"] = env.get("OMP_NUM_THREADS", "1")
    process = subprocess.Popen(command, env=env, cwd=ROOT, start_new_session=True)
    try:
        return process.wait(limit_s)
    except subprocess.TimeoutExpired:
        end(process)
        note_cut(values.out / f"{part}.json")
        return None
    except KeyboardInterrupt:
        end(process)
        raise


def end(process: subprocess.Popen[bytes]) -> None:
    """End a part's process and those that it started: none may hold the device any longer."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)


def note_cut(path: Path) -> None:
    """Say in a part's file which row was at work when its process was ended."""
    if not path.exists():
        return
    values = json.loads(path.read_text())
    about, running = values["fingerprint"], values["running"]
    PartFile(path.parent, values["part"], values["dry"], about).cut_off(running)


def run_part(part: str, values: argparse.Namespace, share_s: float, left_s: float) -> None:
    """Start the part's process, and again where it died, within its time."""
    end, limit = time.monotonic() + share_s, time.monotonic() + min(left_s, share_s + GRACE_S)
    for _ in range(MAX_STARTS):
        code = start_worker(part, values, end - time.monotonic(), max(5.0, limit - time.monotonic()))
        if code == 0:
            return
        why = {None: "was ended: out of time", DEVICE_LOST: "lost the device"}.get(code, f"ended with code {code}")
        print(f"{part}: the process {why}", flush=True)
        if code is None or time.monotonic() > end:
            return


def run(values: argparse.Namespace) -> None:
    """Every wanted part in turn; what a part leaves of its time goes to those after it."""
    wanted = [p for p in PARTS if (not values.part or p in values.part) and p not in values.skip]
    values.out.mkdir(parents=True, exist_ok=True)
    if values.fresh:
        for part in wanted:
            (values.out / f"{part}.json").unlink(missing_ok=True)
    end = time.monotonic() + values.budget
    for i, part in enumerate(wanted):
        left = end - time.monotonic()
        if left < 5:
            print(f"{part}: no time left", flush=True)
            break
        weights = [PARTS[p][0] for p in wanted[i:]]
        run_part(part, values, left * weights[0] / sum(weights), left)


def main(argv: list[str] | None = None) -> int:
    values = parse(argv)
    if values.merge:
        table.merge(*values.merge)
        print(f"wrote {values.merge[1]}")
        return 0
    values.out = values.out.resolve()
    values.runs = (values.runs or values.out.parent / "recipe-runs").resolve()
    values.data_dir = str(Path(values.data_dir).resolve()) if values.data_dir else None
    if values.worker:
        return worker(values)
    import torch

    if not values.dry and not torch.cuda.is_available():
        print("bench.gpu: got no CUDA GPU; allowed: a machine with one; or prove the parts with --dry", file=sys.stderr)
        return 69
    run(values)
    print(table.table(table.read(values.out)))
    return 0
