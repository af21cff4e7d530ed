"""The parts of `python -m bench.gpu` in the order of their value, and the short ones: building and the GPU's tests."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from .rows import Setting, Task

ROOT = Path(__file__).resolve().parents[2]
# Name -> (share of the budget, module that holds its tasks). Unused time goes to the parts that follow.
PARTS: dict[str, tuple[float, str]] = {
    "build": (0.12, "parts"),
    "checks": (0.14, "check"),
    "kernels": (0.18, "kernels"),
    "steps": (0.34, "steps"),
    "tests": (0.08, "parts"),
    "recipe": (0.50, "recipe"),
    "dali": (0.04, "dali"),
}
NUM_FAILURES_SHOWN = 12
NOTHING_COLLECTED = 5
"""pytest's exit code where a whole file is skipped, for a package that is not here."""


def tasks_of(part: str, setting: Setting) -> Iterator[Task]:
    """The rows of a part, each with the work that measures it."""
    module = importlib.import_module(f".{PARTS[part][1]}", __package__)
    return getattr(module, f"{part}_tasks" if PARTS[part][1] == "parts" else "tasks")(setting)


def environment(dry: bool) -> dict[str, str]:
    """What a child process needs: this checkout first, no buffering, Triton interpreted where there is no GPU."""
    folders = [str(f) for f in (ROOT, ROOT / "kernels") if (f / "imnet_kernels").is_dir() or (f / "imnet").is_dir()]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"} | ({"TRITON_INTERPRET": "1"} if dry else {})


def build_tasks(setting: Setting) -> Iterator[Task]:
    """The CUDA library with nvcc against this torch, loaded; the CPU module with the C++ compiler."""
    yield "_C", "nvcc", lambda: _build("cuda", setting)
    yield "_host", "c++", lambda: _build("host", setting)


def built() -> bool:
    """Whether the CUDA library lies here for this torch, and is no older than its sources.

    The rows of an earlier machine may be complete where this one has nothing built.
    """
    import torch
    from imnet_kernels import build

    library = build.PACKAGE / build.CUDA_MODULE.format(torch.__version__)
    sources = [p for folder in ("cuda", "common") for p in (build.csrc() / folder).iterdir()]
    return library.is_file() and library.stat().st_mtime >= max(p.stat().st_mtime for p in sources)


def _build(which: str, setting: Setting) -> dict[str, Any]:
    """Seconds of a build into the package (in a dry run: into a folder that is thrown away)."""
    from imnet_kernels import build, cudalib

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if setting.dry else None
        start = time.perf_counter()
        target = build.build_cuda(folder) if which == "cuda" else build.build_host(folder)
        seconds = time.perf_counter() - start
        found: dict[str, Any] = {"seconds": round(seconds, 1), "file": target.name, "bytes": target.stat().st_size}
        if which == "cuda":
            ops = cudalib.ops(target.parent)
            found["loaded"] = ops.augment.default.name()
        return found


def gpu_test_files() -> list[Path]:
    """Test files with tests marked gpu; others are not collected, since they may import what is not installed."""
    marked = re.compile(r"mark\.gpu\b")
    return [p for p in sorted((ROOT / "tests").rglob("test_*.py")) if marked.search(p.read_text())]


def tests_tasks(setting: Setting) -> Iterator[Task]:
    for path in gpu_test_files():
        yield path.relative_to(ROOT).as_posix(), "pytest -m gpu", lambda path=path: run_tests(path, setting)


def run_tests(path: Path, setting: Setting) -> dict[str, Any]:
    """Counts and failures of one file; in a dry run its tests are only collected. Raises where pytest cannot run."""
    with tempfile.TemporaryDirectory() as scratch:
        report = Path(scratch) / "junit.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
        command += ["--collect-only"] if setting.dry else []
        done = subprocess.run(
            [*command, str(path)],
            cwd=ROOT,
            env=environment(False),
            capture_output=True,
            text=True,
            timeout=max(30.0, setting.left_s) if setting.left_s < float("inf") else None,
            check=False,
        )
        last = (done.stdout.strip().splitlines() or [done.stderr.strip()[-200:]])[-1]
        if setting.dry:
            if done.returncode not in (0, NOTHING_COLLECTED):
                raise RuntimeError(f"pytest could not collect: {done.stdout[-300:]}{done.stderr[-300:]}")
            return {"collected": last}
        if not report.exists():
            raise RuntimeError(f"pytest ended with {done.returncode}: {last}")
        return _counts(report) | {"summary": last}


def _counts(report: Path) -> dict[str, Any]:
    suite = next(ElementTree.parse(report).getroot().iter("testsuite"))
    counts = {k: int(suite.get(k, "0")) for k in ("tests", "failures", "errors", "skipped")}
    failed = []
    for case in suite.iter("testcase"):
        for problem in [*case.findall("failure"), *case.findall("error")]:
            message = " ".join((problem.get("message") or "").split())[:200]
            failed.append(f"{case.get('name')}: {message}")
    return counts | {"failed": failed[:NUM_FAILURES_SHOWN]}
