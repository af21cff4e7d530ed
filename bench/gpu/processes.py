"""The processes of a run: workers that measure rows, and background jobs that build and compile beside them."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..form import clipped
from .plan import Figures, Key, Row, UnavailableError, UnfinishedError

ROOT = Path(__file__).resolve().parents[2]
ERROR_CHARACTERS = 400
STARTED_WITHIN_S = 90.0


def environment(dry: bool, cache: Path | None = None) -> dict[str, str]:
    """The environment of a process: this checkout first on the path, unbuffered output, one cache of compiled code.

    A dry run interprets Triton. CUPTI stays attached after a profile, because detaching and attaching it again beside
    CUDA graphs has crashed (as torch.profiler notes); profiles have a process of their own here.
    """
    folders = [str(f) for f in (ROOT, ROOT / "kernels") if (f / "imnet_kernels").is_dir() or (f / "imnet").is_dir()]
    path = os.pathsep.join([*folders, *filter(None, [os.environ.get("PYTHONPATH")])])
    found = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    found |= {"DISABLE_CUPTI_LAZY_REINIT": "1", "TEARDOWN_CUPTI": "0"}
    if cache is not None:
        found |= {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"), "TRITON_CACHE_DIR": str(cache / "triton")}
    if dry:
        found |= {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return found


def end(process: subprocess.Popen[Any]) -> None:
    """End a process and all that it has started, so that none keeps the device or a core."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)


def one_line(error: BaseException) -> str:
    """An error's type and message on one line, cut to ERROR_CHARACTERS."""
    return clipped(" ".join(f"{type(error).__name__}: {error}".split()), ERROR_CHARACTERS)


class Worker:
    """A process that measures rows in sequence. It starts at once, and again after a row that ended it."""

    def __init__(self, command: list[str], env: dict[str, str]):
        self.command, self.env = command, env
        self.process: subprocess.Popen[Any] | None = None
        self._start()

    def _start(self) -> None:
        read, write = os.pipe()
        command = [*self.command, str(write)]
        options: dict[str, Any] = {"stdin": subprocess.PIPE, "pass_fds": [write], "start_new_session": True}
        self.process = subprocess.Popen(command, env=self.env, **options)
        os.close(write)
        self.replies = os.fdopen(read, "rb", buffering=0)
        self.read = b""
        self.hello: Figures | None = None

    def ready(self, timeout_s: float = STARTED_WITHIN_S) -> Figures:
        """Wait until the worker has imported everything and return its fingerprint; raises RuntimeError if it fails."""
        if self.process is None:
            self._start()
        if self.hello is None:
            self.hello = self._reply(timeout_s)
        if self.hello is None or "error" in self.hello:
            raise RuntimeError(f"a worker did not start: {(self.hello or {}).get('error', f'in {timeout_s:.0f} s')}")
        return self.hello

    def run(self, row: Row, limit_s: float) -> Figures:
        """The row's figures, or {"error": ...}, also if the process died or was ended after ``limit_s`` seconds."""
        try:
            self.ready()
            assert self.process is not None
            assert self.process.stdin is not None
            self.process.stdin.write(json.dumps([list(row.key), limit_s]).encode() + b"\n")
            self.process.stdin.flush()
            found = self._reply(limit_s)
        except (OSError, RuntimeError) as error:
            found = {"error": one_line(error)}
            self.close()
        if found is None:
            found = {"error": f"ended after {limit_s:.0f} s; stated cost {row.cost_s:.0f} s"}
            self.close()
        elif found.pop("device_lost", False) or self.process is None or self.process.poll() is not None:
            self.close()
        return found

    def _reply(self, timeout_s: float) -> Figures | None:
        """The next line of JSON from the process; None if none comes in time, {"error": ...} if the process ended."""
        until = time.monotonic() + timeout_s
        while b"\n" not in self.read:
            ready, _, _ = select.select([self.replies], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                return None
            more = self.replies.read(1 << 16)
            if not more:
                assert self.process is not None
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(5)
                return {"error": f"the process ended here (exit code {self.process.returncode})"}
            self.read += more
        line, _, self.read = self.read.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        if self.process is not None:
            end(self.process)
            self.replies.close()
        self.process = None


def serve(
    work_of: dict[Key, Row],
    hello: Figures,
    reply_to: int,
    clean_up: Callable[[], bool],
    shown: Callable[[Figures], Figures] = dict,
) -> int:
    """The main loop of a worker: read a row's key and time limit from stdin, measure it, and write ``shown(figures)``
    to ``reply_to``, until stdin is closed."""
    os.set_inheritable(reply_to, False)
    with os.fdopen(reply_to, "wb", buffering=0) as replies:
        replies.write(json.dumps(hello).encode() + b"\n")
        for line in sys.stdin:
            key, limit_s = json.loads(line)
            figures: Figures
            try:
                figures = shown(work_of[key[0], key[1], key[2]].work(limit_s))
            except UnfinishedError as reason:
                figures = {"skipped": f"not finished: {reason}"}
            except UnavailableError as reason:
                figures = {"skipped": str(reason)}
            except Exception as error:
                figures = {"error": one_line(error)}
            if not clean_up():
                figures["device_lost"] = True
            replies.write(json.dumps(figures).encode() + b"\n")
    return 0


class Jobs:
    """The background jobs: processes that all start together and are ended at the time ``until`` (monotonic clock)."""

    def __init__(self, logs: Path, env: dict[str, str], until: float):
        self.logs, self.env, self.until = logs, env, until
        self.open: dict[str, tuple[subprocess.Popen[Any], float]] = {}
        self.why: dict[str, str] = {}
        self.took_s: dict[str, float] = {}

    def start(self, jobs: Iterable[tuple[str, list[str]]]) -> None:
        self.logs.mkdir(parents=True, exist_ok=True)
        for name, command in jobs:
            with self._log(name).open("w") as log:
                process = subprocess.Popen(
                    command, env=self.env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
                )
            self.open[name] = process, time.monotonic()

    def _log(self, name: str) -> Path:
        return self.logs / f"{name.replace(' ', '-').replace(',', '').replace('@', '-')}.log"

    def running(self) -> set[str]:
        late = time.monotonic() > self.until
        for name, (process, start) in list(self.open.items()):
            code = process.poll()
            if code is None and not late:
                continue
            self.took_s[name] = round(time.monotonic() - start, 1)
            if code is None:
                end(process)
                self.why[name] = f"not ready after {self.took_s[name]:.0f} s"
            elif code:
                lines = self._log(name).read_text(errors="replace").strip().splitlines()
                self.why[name] = f"exit code {code}: {' '.join(lines[-1:])[:ERROR_CHARACTERS]}"
            del self.open[name]
        return set(self.open)

    def failed(self) -> dict[str, str]:
        self.running()
        return self.why

    def close(self) -> None:
        for process, _ in self.open.values():
            end(process)
