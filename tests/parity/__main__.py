"""Parity: imnet and a plain PyTorch trainer of each document, on the same images, five seeds each.

    python -m tests.parity --shared ../shared/data --work DIR --out bench/results/parity-cpu.json

One run at a time on one thread, the two sides in turn. Runs that the output file already holds are not repeated.
"""

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from scipy.stats import ttest_ind

from bench.clock import cpu_seconds
from bench.machine import fingerprint

from .cases import CASES, lay_out

ROOT = Path(__file__).resolve().parents[2]
SEEDS = range(5)
FAULTY_RUNS = 3
LEVEL = 0.01
SIDES = ("imnet", "plain", "fault")


def ours(case, data, seed, out):
    """Returns the command that runs imnet-train."""
    epochs = case.words.split("--epochs ")[1].split()[0]
    how = f"--device cpu --precision fp32 --threads 1 --eval-every-epochs {epochs}"
    words = [*case.words.split(), *how.split(), "--seed", str(seed), "--data-dir", str(data), "--out", str(out)]
    return [sys.executable, "-m", case.command, *words]


def peer(case, data, seed, changes):
    options = json.dumps({"seed": seed, **case.options, **changes})
    return [sys.executable, "-m", f"tests.parity.{case.peer}", str(data), options]


def result(case, side, data, seed, work):
    """Run one side; returns accuracy, seconds of training and evaluation, and processor seconds of the process."""
    out = work / "runs" / f"{case.peer}-{case.options.get('net', '')}-{seed}"
    shutil.rmtree(out, ignore_errors=True)  # left by an interrupted run
    changes = case.faulty if side == "fault" else {}
    command = ours(case, data, seed, out) if side == "imnet" else peer(case, data, seed, changes)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(work / "cache")}
    before = cpu_seconds(children=True)
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env, cwd=work)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    cpu = cpu_seconds(children=True) - before
    if side != "imnet":
        return {**json.loads(done.stdout.splitlines()[-1]), "cpu_s": cpu}
    evaluation, run = (json.loads((out / name).read_text()) for name in ("evaluation.json", "run.json"))
    return {"top1": evaluation["top1"], "seconds": run["seconds"], "cpu_s": cpu}


def compared(ours, theirs):
    """Returns the difference of two lists' means, its 95 % interval and p-value by Welch's t-test."""
    found = ttest_ind(ours, theirs, equal_var=False)
    low, high = found.confidence_interval(0.95)
    return {
        "difference": sum(ours) / len(ours) - sum(theirs) / len(theirs),
        "low": low,
        "high": high,
        "p": found.pvalue,
    }


def row(case, name, runs):
    """Returns what RESULTS.md shows of a case; ``runs`` is {side: {seed: result}}."""
    found = {"case": name, "system": case.system, "what": case.what, "fault": case.fault, "runs": runs}
    top1 = {side: [one["top1"] for one in runs.get(side, {}).values()] for side in SIDES}
    for key, side in (("parity", "plain"), ("sensitivity", "fault")):
        if min(len(top1["imnet"]), len(top1[side])) > 1:
            found[key] = compared(top1["imnet"], top1[side])
    return found


def problems(told):
    """Yields a line for each claim that fails: the accuracies are equal within the noise, and a deliberate fault of the
    plain trainer costs accuracy (one-sided), which shows that the noise would not hide a fault."""
    parity, seen = told["parity"], told["sensitivity"]
    if parity["p"] < LEVEL:
        yield f"{told['case']}: imnet is {parity['difference']:+.4f} away from plain PyTorch, p = {parity['p']:.4f}"
    if seen["p"] / 2 > LEVEL or seen["difference"] < 0:
        yield f"{told['case']}: {told['fault']} does not show, p = {seen['p'] / 2:.4f}"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--note", default="")
    parser.add_argument("cases", nargs="*", default=list(CASES))
    arguments = parser.parse_args(argv)
    measure(arguments.cases, arguments.shared, arguments.work.resolve(), arguments.out, arguments.note)


def measure(names, shared, work, out, note=""):
    """Run the cases ``names``, and write all rows to ``out`` after each run; returns what was written."""
    work.mkdir(parents=True, exist_ok=True)
    folders = lay_out(shared, work)
    told = {"benchmark": "parity", "fingerprint": fingerprint("fp32") | {"threads": 1}, "note": note, "rows": []}
    if out.is_file():
        told = json.loads(out.read_text())
    runs = {one["case"]: one["runs"] for one in told["rows"]}
    for seed, name, side in itertools.product(SEEDS, names, SIDES):
        sides = runs.setdefault(name, {}).setdefault(side, {})
        if str(seed) not in sides and (side != "fault" or seed < FAULTY_RUNS):
            sides[str(seed)] = result(CASES[name], side, folders[CASES[name].data], seed, work)
            print(name, side, seed, sides[str(seed)], flush=True)
            told["rows"] = [row(CASES[n], n, runs[n]) for n in CASES if n in runs]
            half = out.with_suffix(".half")
            half.write_text(json.dumps(told, indent=1) + "\n")
            half.replace(out)
    return told


if __name__ == "__main__":
    main()
