"""imnet-train of this tree against an earlier commit of this repository: `python -m bench.against REV -- WORDS`.

Both sides run the same command alternately, each from its own files, with its own host module and an empty folder,
after one warm-up round. Reported are the seconds from start to end, and the part of them that is neither torch's
import, warm-up nor training: start-up, evaluation, checkpoints and report.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .clock import Timing
from .form import short

ROOT = Path(__file__).resolve().parents[1]


def environment(source: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(source), str(source / "kernels")])}


def seconds(source: Path, words: list[str]) -> tuple[float, float]:
    """(wall seconds, wall seconds without warm-up and training) of one run; SystemExit with its message if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "imnet.cli", *words, "--out", f"{folder}/run"]
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, env=environment(source))
        wall = time.perf_counter() - start
        if done.returncode:
            raise SystemExit(f"{source}: exit code {done.returncode}: {(done.stderr or done.stdout).strip()[-300:]}")
        run = json.loads(Path(folder, "run", "run.json").read_text())
    return wall, wall - run["seconds"] - (run.get("warm_up_s") or 0.0)


def import_torch_s() -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.against", description=__doc__, usage="python -m bench.against REV [--rounds N] -- WORDS"
    )
    parser.add_argument("revision", help="a commit of this repository")
    parser.add_argument("--rounds", type=int, default=5)
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    given, words = parser.parse_args(sys.argv[1:at]), sys.argv[at + 1 :]
    if given.rounds < 1:
        parser.error(f"got --rounds {given.rounds}; allowed: 1 or more")
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        if subprocess.run(
            ["git", "worktree", "add", "-q", "--detach", str(before), given.revision], cwd=ROOT, check=False
        ).returncode:
            raise SystemExit(f"got {given.revision}; allowed: a commit of {ROOT}")
        try:
            build = [sys.executable, "-m", "imnet_kernels.build", "--host"]
            subprocess.run(build, cwd=before, env=environment(before), check=True, stdout=subprocess.DEVNULL)
            sides = {given.revision: before, "here": ROOT}
            taken: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
            torch_s = []
            for number in range(given.rounds + 1):
                for name, source in sides.items():
                    found = seconds(source, words)
                    taken[name] += [found] if number else []
                torch_s += [import_torch_s()] if number else []
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(before)], cwd=ROOT, check=False)
    torch_import = Timing.of(torch_s)
    print(
        f"import torch {short(torch_import.median_s)} s; medians of {given.rounds} rounds, quartile distance after +-"
    )
    for name, values in taken.items():
        wall, rest = (Timing.of(list(column)) for column in zip(*values, strict=True))
        ours = rest.median_s - torch_import.median_s
        print(f"{name}: {wall.median_s:.2f} +- {wall.iqr_s:.2f} s, of which {ours:.2f} +- {rest.iqr_s:.2f} s ours")


if __name__ == "__main__":
    main()
