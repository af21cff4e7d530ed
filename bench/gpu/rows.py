"""A part's result file: every row is on disk as soon as it is known, and a part goes on where it stopped.

    {"benchmark": "gpu", "part": ..., "dry": ..., "complete": ..., "running": null, "fingerprint": {...}, "rows": [...]}

A row is {"part", "name", "variant", figures ..., "took_s"}; one that failed has "error", one line, instead of figures.
``running`` names the row at work, so that a process that died (a bad address in a kernel) is known by its row.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Task = tuple[str, str, Callable[[], dict[str, Any]]]
Row = dict[str, Any]
ERROR_CHARACTERS = 400
DEVICE_LOST = 3
"""Exit code of a worker whose CUDA context is broken: another process may go on."""


class UnfinishedError(Exception):
    """Raised by a row's work that may go on in a later call; no row is written."""


@dataclass(frozen=True)
class Setting:
    """What every part is told. ``dry``: tiny shapes on the CPU, nothing timed."""

    device: str
    dry: bool
    out: Path
    runs: Path
    data_dir: str | None = None
    deadline: float = float("inf")

    @property
    def left_s(self) -> float:
        return self.deadline - time.monotonic()


def fingerprint(dry: bool, git_sha: str | None = None) -> dict[str, Any]:
    """What a figure needs beside it: device, driver, versions, commit, date (UTC)."""
    import datetime

    import torch

    from imnet.runfolder import environment

    found = environment()
    found["git_sha"] = found["git_sha"] or git_sha
    found["date"] = datetime.datetime.now(datetime.UTC).date().isoformat()
    found["device"] = "CPU, dry run: no GPU figure"
    if not dry:
        p = torch.cuda.get_device_properties(0)
        found["device"] = p.name
        found["gpu"] = {"multiprocessors": p.multi_processor_count, "memory_gib": round(p.total_memory / 2**30, 1)}
        found["gpu"] |= {"l2_mib": p.L2_cache_size / 2**20, "capability": f"{p.major}.{p.minor}", **_smi()}
        found["versions"]["cudnn"] = torch.backends.cudnn.version()
    try:
        import triton

        found["versions"]["triton"] = triton.__version__
    except ImportError:
        pass
    return found


def _smi() -> dict[str, str]:
    """Driver and clocks as nvidia-smi reads them; it sets nothing."""
    import subprocess

    names = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")
    command = ["nvidia-smi", f"--query-gpu={','.join(names)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(names, (v.strip() for v in done.stdout.splitlines()[0].split(",")), strict=False))


class PartFile:
    """``<out>/<part>.json``. Raises SystemExit where the file there is of another device."""

    def __init__(self, folder: Path, part: str, dry: bool, about: dict[str, Any]):
        self.path = folder / f"{part}.json"
        self.values: dict[str, Any] = {"benchmark": "gpu", "part": part, "dry": dry, "complete": False}
        self.values |= {"running": None, "fingerprint": about, "rows": [], "cut": []}
        if self.path.exists():
            self._take_up(json.loads(self.path.read_text()))

    def _take_up(self, old: dict[str, Any]) -> None:
        before, now = old["fingerprint"]["device"], self.values["fingerprint"]["device"]
        if before != now:
            raise SystemExit(f"{self.path} is of {before}; allowed: {now}; give another --out, or --fresh")
        self.values |= {"complete": old["complete"], "rows": old["rows"], "cut": old.get("cut", [])}
        if old["running"] is not None:
            name, variant = old["running"]
            self.add(name, variant, {"error": "the process ended here"})

    def cut_off(self, running: list[str] | None) -> None:
        """The process was ended for time while at ``running``: once, it may try again; the second time it failed."""
        if running is None:
            return
        self.rows[:] = [r for r in self.rows if [r["name"], r["variant"]] != running]
        if running in self.values["cut"]:
            self.add(running[0], running[1], {"error": "ended twice for want of time; give a larger --budget"})
            return
        self.values["cut"].append(running)
        self.pause(f"out of time at {running[0]}, {running[1]}")

    @property
    def rows(self) -> list[Row]:
        return self.values["rows"]

    @property
    def complete(self) -> bool:
        return self.values["complete"]

    def reset(self) -> None:
        """Forget every row."""
        self.values |= {"complete": False, "rows": [], "cut": []}

    def has(self, name: str, variant: str) -> bool:
        return any(row["name"] == name and row["variant"] == variant for row in self.rows)

    def begin(self, name: str, variant: str) -> None:
        self.values["running"] = [name, variant]
        self._write()

    def add(self, name: str, variant: str, figures: dict[str, Any]) -> None:
        self.rows.append({"part": self.values["part"], "name": name, "variant": variant, **figures})
        self.values["running"] = None
        self._write()

    def pause(self, reason: str) -> None:
        self.values |= {"running": None, "paused": reason}
        self._write()

    def finish(self) -> None:
        self.values["complete"] = True
        self.values.pop("paused", None)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1) + "\n")
        os.replace(temporary, self.path)


def run_tasks(file: PartFile, tasks: Iterable[Task], setting: Setting) -> int:
    """Work through what the file lacks until the deadline; returns the process's exit code."""
    for name, variant, work in tasks:
        if file.has(name, variant):
            continue
        if setting.left_s <= 0:
            print(f"{file.path.stem}: out of time before {name}, {variant}", flush=True)
            return 0
        file.begin(name, variant)
        start = time.monotonic()
        try:
            figures = work()
        except UnfinishedError as reason:
            file.pause(str(reason))
            print(f"{file.path.stem}: {name}, {variant}: not finished: {reason}", flush=True)
            return 0
        except Exception as error:
            figures = {"error": one_line(error)}
        file.add(name, variant, figures | {"took_s": round(time.monotonic() - start, 2)})
        print(f"{file.path.stem}: {name}, {variant}: {brief(figures)}", flush=True)
        if not clean_up(setting.device):
            return DEVICE_LOST
    file.finish()
    return 0


def clean_up(device: str) -> bool:
    """Give memory back between rows; whether the device still answers."""
    gc.collect()
    if device != "cuda":
        return True
    import torch

    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        return False
    return True


def one_line(error: BaseException) -> str:
    """Type and message without line breaks, cut to a size that a table can show."""
    text = " ".join(f"{type(error).__name__}: {error}".split())
    return text if len(text) <= ERROR_CHARACTERS else text[: ERROR_CHARACTERS - 3] + "..."


def brief(figures: dict[str, Any]) -> str:
    """A row's figures in a few words, for the log."""
    shown = [f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items() if v is not None]
    return ", ".join(shown)[:160]
