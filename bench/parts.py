"""The benches that other files of this folder own, as imnet-bench runs them: each in a process, JSON handed back.

A process, because they choose their own threads and kernel tiers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from imnet import device
from imnet.errors import DeviceError
from imnet.run_options import RunOptions

from .fingerprint import fingerprint

TIMEOUT_S = 900


def run(module: str, *arguments: str) -> dict[str, Any]:
    """``python -m <this package>.<module> ... --json FILE``; its lines pass through. DeviceError where it fails.

    Both run on one thread, which is what the fingerprint says.
    """
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [sys.executable, "-m", f"{__package__}.{module}", *arguments, "--json", str(out)]
        paths = [str(Path(__file__).resolve().parents[1]), *sys.path]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
        code = subprocess.run(command, env=env, timeout=TIMEOUT_S, check=False).returncode
        if code or not out.is_file():
            raise DeviceError(f"{module} ended with exit code {code}", hint="its own line is above")
        found = json.loads(out.read_text())
    with device.threads(RunOptions(threads=1)):
        return {"fingerprint": fingerprint("as each row says")} | found


def kernels(family: str | None = None, quick: bool = False) -> dict[str, Any]:
    """bench_kernels.py: every real case of every family, or of one."""
    arguments = ["--family", family] if family else []
    return run("bench_kernels", *arguments, *(["--quick"] if quick else []))


def kernel_scores(found: dict[str, Any]) -> dict[str, float]:
    """``<family> <case> <dtype>``: the reference's time over the host tier's, taken in turn."""
    return {
        f"{row['family']} {row['case']} {row['dtype']}": row["ratio_of_medians"]["reference"]
        for row in found["rows"]
        if "reference" in row["ratio_of_medians"]
    }


def data(*arguments: str) -> dict[str, Any]:
    """bench_data.py."""
    return run("bench_data", *arguments)


def data_scores(found: dict[str, Any]) -> dict[str, float]:
    """``<row> / <peer>``: the peer's time over ours, the median of neighbours in time."""
    return {f"{row['row']} / {row['peer']}": row["ratio_median"] for row in found["rows"] if row["ratio_median"]}
