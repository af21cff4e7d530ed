"""Runs trials, each as imnet-train in a process of its own, several at once, and keeps their outcomes on the disk.

A trial's folder is a run folder with two more files: ``trial.log``, the output of the command, and ``trial.json``:

    number, id, values, command     what was run
    code, error                     its exit code and error line; null while it runs, or if the sweep was killed
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imnet.command import die_with
from imnet.errors import DataError, DeviceError, IOFailure, Preempted
from imnet.files import exists, write_json
from imnet.resources import num_cores
from imnet.runfolder import BUSY, is_complete, runs_of, writer
from imnet.sweep.grid import Trial, needs

FILE = "trial.json"
POLL_S = 0.1
ORPHANS_S = 60.0
"""Seconds for which a sweep waits for trials of a killed sweep, which save and end."""


def unwritable(error: OSError, folder: Path) -> IOFailure:
    return IOFailure(f"cannot be written: {error.strerror}", file=folder, hint="choose another --out")


def state(trial: Trial, out: Path) -> str:
    """The trial's state: "complete", "running", "failed", "stopped" or "not run"."""
    folder = out / trial.name
    with contextlib.suppress(IOFailure):
        if all(map(is_complete, runs_of(folder, trial.bands))):
            return "complete"
    if busy(trial, out):
        return "running"
    code = outcome(folder).get("code")
    if code in (None, 0, Preempted.exit_code):  # 0: an ensemble was complete with fewer bands than are wanted now
        return "stopped" if exists(folder) else "not run"
    return "failed"


def busy(trial: Trial, out: Path) -> str | None:
    """The process that is writing to the trial's folder, or None."""
    folder = out / trial.name
    return next(filter(None, map(writer, {folder, *runs_of(folder, trial.bands)})), None)


def outcome(folder: Path) -> dict[str, Any]:
    """The contents of trial.json; empty if there is none."""
    try:
        found = json.loads((folder / FILE).read_text(encoding="utf-8"))
        if not isinstance(found, dict) or not isinstance(found.get("code"), int | None):
            raise ValueError("it is no object with a code, an integer or null")
        return found
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be read: {error}", file=folder / FILE, hint="remove it") from error


@dataclass(frozen=True)
class Slot:
    """A place where one trial runs at a time: its GPUs in the form of CUDA_VISIBLE_DEVICES, and words that it adds to
    the trial's own."""

    gpus: str | None
    words: tuple[str, ...] = ()


def slots(jobs: int | None, needed: Sequence[Trial]) -> list[Slot]:
    """``jobs`` slots. By default there is one for every visible GPU (or group of GPUs, if trials need several), or a
    single one on a CPU."""
    each, ranks, on_cpu = needs(needed)
    devices = [] if on_cpu else _visible()
    chunks = [",".join(devices[i : i + each]) for i in range(0, len(devices) - each + 1, each)]
    if devices and not chunks:
        raise DeviceError(f"a trial asks for {each} GPUs, and {len(devices)} are visible", hint="lower --gpus")
    if chunks:
        gpus = [chunks[i % len(chunks)] for i in range(jobs or len(chunks))]
        words = _shared(needed, min(len(gpus), len(needed)), each)
        return [Slot(visible, words) for visible in gpus]
    return [Slot(None, _shared(needed, jobs or 1, ranks))] * (jobs or 1)


def _shared(needed: Sequence[Trial], at_once: int, ranks: int) -> tuple[str, ...]:
    """The words with which each of several trials ``at_once`` takes its share of the cores: by themselves its ``ranks``
    would take all, on GPUs for threads that decode pictures, each of which keeps a batch in page-locked memory."""
    if at_once == 1 or any(trial.options.threads for trial in needed):
        return ()
    return (f"--threads={max(1, num_cores() // (at_once * ranks))}",)


def _visible() -> list[str]:
    from imnet.device import num_gpus  # reads torch

    count, words = num_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    return words.split(",")[:count] if words else [str(i) for i in range(count)]


class Sweep:
    """Runs trials in slots; ``say(word, trial, text)`` is called when a trial starts, waits or ends."""

    def __init__(self, out: Path, places: Sequence[Slot], say: Callable[[str, Trial, str], None]):
        self.out, self.say = out, say
        self.free = list(places)
        self.running: dict[subprocess.Popen[bytes], tuple[Trial, Slot]] = {}
        self.asked: list[signal.Signals] = []
        self.waiting: list[Trial] = []
        self.until: float | None = None
        """Time at which to give up waiting for trials that other processes run, if nothing else is left to do."""

    def run(self, trials: Sequence[Trial]) -> None:
        """Run until every trial has ended or failed. Raises Preempted after a signal; the trials have then saved."""
        self.waiting = list(trials)
        with self._listening():
            while (self.waiting and not self.asked) or self.running:
                if not self.asked and not self._start_ready():
                    break
                time.sleep(POLL_S)
                self._collect()
        if self.asked:
            raise Preempted(f"{self.asked[0].name}: the trials have saved", hint="run the same command to go on")

    def _start_ready(self) -> bool:
        """Start the trials that can start. False if all that are left have run in other processes for too long."""
        ready = [trial for trial in self.waiting if not busy(trial, self.out)]
        for trial in ready[: len(self.free)]:
            self.waiting.remove(trial)
            if state(trial, self.out) != "complete":  # another sweep may have completed it in the meantime
                self._start(trial, self.free.pop(0))
        if ready or self.running or not self.waiting:
            self.until = None
            return True
        if self.until is None:
            self.until = time.monotonic() + ORPHANS_S
            for trial in self.waiting:
                self.say("elsewhere", trial, f"{busy(trial, self.out)} is writing there; waiting a minute")
        return time.monotonic() < self.until

    def _start(self, trial: Trial, slot: Slot) -> None:
        folder = self.out / trial.name
        command = [sys.executable, "-m", "imnet.cli", *trial.words, *slot.words, f"--out={folder}"]
        environment = os.environ | ({} if slot.gpus is None else {"CUDA_VISIBLE_DEVICES": slot.gpus})
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._note(trial, command, None, None)
            with (folder / "trial.log").open("ab") as log:
                # In a process group of its own, so that a Ctrl-C reaches it only through the sweep, and only once.
                process = subprocess.Popen(
                    command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
                    process_group=0, preexec_fn=die_with(os.getpid()),
                )  # fmt: skip
        except OSError as error:
            raise unwritable(error, folder) from error
        self.running[process] = trial, slot
        if self.asked:  # a signal arrived while the process was being started
            self._tell(signal.SIGTERM)
        self.say("start", trial, f"on GPU {slot.gpus}" if slot.gpus else "")

    def _note(self, trial: Trial, command: Sequence[str], code: int | None, error: str | None) -> None:
        values = {"number": trial.number, "id": trial.id, "values": dict(trial.values), "command": list(command)}
        write_json(self.out / trial.name / FILE, values | {"code": code, "error": error})

    def _collect(self) -> None:
        for process in [p for p in self.running if p.poll() is not None]:
            trial, slot = self.running.pop(process)
            self.free.append(slot)
            # A trial that a signal killed after the sweep was asked to stop has not failed: it could not save yet.
            code = Preempted.exit_code if self.asked and process.returncode < 0 else process.returncode
            error = None if code == 0 else _last_words(self.out / trial.name / "trial.log", code)
            if code == IOFailure.exit_code and BUSY in str(error):  # another sweep was faster
                self.waiting.append(trial)
                continue
            self._note(trial, process.args, code, error)  # pyright: ignore[reportArgumentType]
            word = "done" if code == 0 else "stopped" if code == Preempted.exit_code else "FAILED"
            self.say(word, trial, error or "")

    @contextlib.contextmanager
    def _listening(self) -> Iterator[None]:
        """Handle signals in the block: the first is passed on as SIGTERM, so that the trials save; a second Ctrl-C
        kills them. No trial is left running, whatever ends the block."""
        old = {n: signal.signal(n, self._heard) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)}
        try:
            yield
        finally:
            self._tell(signal.SIGKILL if self.asked.count(signal.SIGINT) > 1 else signal.SIGTERM)
            for process in self.running:
                process.wait()
            for number, handler in old.items():
                signal.signal(number, handler)

    def _heard(self, number: int, _: Any) -> None:
        again = bool(self.asked)
        self.asked.append(signal.Signals(number))
        if not again:
            self._tell(signal.SIGTERM)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    def _tell(self, number: int) -> None:
        for process in self.running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)


def _last_words(log: Path, code: int) -> str:
    """Why a trial ended: the signal that killed it, or its exit code with the error line or the last line of its log.
    IOFailure if the log is gone."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        hint = "was the folder moved? the same command with --out of its new place goes on"
        raise IOFailure(f"cannot be read: {error.strerror}", file=log, hint=hint) from error
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if line.startswith("imnet-train: ")), (lines or ["nothing said"])[-1])
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}: {said.removeprefix('imnet-train: ')}"
