"""The launcher of several ranks on this machine: starts, watches and stops them, and reports why they failed.

The terminal sends Ctrl-C to every process in the foreground. Ranks are started with SIGINT blocked, so only the
launcher receives it, and passes it on once, as SIGUSR2. This keeps one Ctrl-C apart from a second one.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch.distributed as dist

from imnet.command import complain, die_with, failure_of, printable
from imnet.errors import DeviceError, ImnetError, Preempted
from imnet.launch import handled, leave
from imnet.resources import FEWER

POLL_S = 0.2
REPORTS_S = 0.5
"""Seconds after the first failure in which other ranks may report theirs; the earliest report is the cause."""
PATIENCE_S = 2.0
"""Seconds from SIGTERM until a rank is killed: a rank that waits in a barrier does not react to signals."""
FROZEN_S = 5.0
"""Seconds for which a rank may be stopped (SIGSTOP), while all others wait for it, before it counts as lost."""
ELSEWHERE = "a signal at another rank"
PASSED_ON = {signal.SIGINT: signal.SIGUSR2} | {n: n for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}


@dataclass(frozen=True)
class Report:
    """Why a rank ended: its error as an ImnetError, or None for an exception of any other kind, and the traceback."""

    at: float
    error: ImnetError | None
    trace: str


def run_ranks(
    entry: Callable[..., int],
    args: tuple[Any, ...],
    num_ranks: int,
    max_restarts: int,
    environment: Mapping[str, Any] | None = None,
) -> int:
    """Run ``entry(*args)`` in ``num_ranks`` processes. Returns 0, or 1 if a rank failed and its traceback was printed.

    The ranks get those variables of ``environment`` that the user has not set.

    Raises the ImnetError that a rank raised (Preempted if all have saved), or DeviceError if a rank was killed. If a
    rank is lost, all start again, at most ``max_restarts`` times; not after an ImnetError, which would only recur.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    asked: list[signal.Signals] = []
    with handled(PASSED_ON, lambda number, _: asked.append(signal.Signals(number))):
        more = {name: value for name, value in (environment or {}).items() if name not in os.environ}
        for life in range(max_restarts + 1):
            with _environment(more):
                group = _Group(entry, args, num_ranks, life, store.port)
            with group:
                rank, code = group.watch(asked)
                report = group.first_report() if code else None
            if code == 0:
                return 0
            if report is not None and report[1].error is not None:
                raise _named(*report, asked)
            if code < 0 and code != -signal.SIGABRT:
                report = None  # the other ranks' tracebacks only show that they lost the connection to the killed one
            if asked:
                raise Preempted(f"{asked[0].name}: stopped before the first step", hint="run the same command again")
            what = f"rank {rank} {group.how(rank, code)}"
            if life < max_restarts:
                complain(f"imnet: {what}; all start again ({life + 1} of {max_restarts})")
            elif report is None:
                frozen = rank in group.stopped_at
                hint = "the same command goes on" if frozen else "out of memory? the same command goes on"
                raise DeviceError(what, hint=hint if code < 0 else "see its words above")
            else:
                complain(f"rank {report[0]}:\n{report[1].trace.rstrip()}")
    return 1


def _named(rank: int, report: Report, asked: list[signal.Signals]) -> ImnetError:
    """The rank's error, with the rank's number added unless it is 0, and with its traceback for ``--debug``."""
    error = report.error
    assert error is not None
    if isinstance(error, Preempted):
        error.what = error.what.replace(ELSEWHERE, asked[0].name if asked else ELSEWHERE)
    elif rank:
        error.what = f"rank {rank}: {error.what}"
    error.add_note(report.trace)
    return error


class _Group:
    """The processes of one attempt, as a context manager; all have ended when the block ends."""

    def __init__(self, entry: Callable[..., int], args: tuple[Any, ...], num_ranks: int, life: int, port: int):
        context = multiprocessing.get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.stopped_at: dict[int, float] = {}
        """Rank -> the time at which it was first seen stopped (SIGSTOP); ranks that run are absent."""
        self.pipes: list[Connection] = []
        for rank in range(num_ranks):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(entry, args, writer), name=f"rank {rank}")
            names = {
                "RANK": rank,
                "LOCAL_RANK": rank,
                "WORLD_SIZE": num_ranks,
                "LOCAL_WORLD_SIZE": num_ranks,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "TORCHELASTIC_RESTART_COUNT": life,
                "TORCHELASTIC_USE_AGENT_STORE": "True",  # the TCPStore of the launcher
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1),
            }
            with _environment(names), _sigint_blocked():
                process.start()
            writer.close()
            self.processes.append(process)
            self.pipes.append(reader)

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *_: object) -> None:
        """Send SIGTERM to all ranks and kill those that are alive after PATIENCE_S."""
        self.tell(signal.SIGTERM)
        end = time.monotonic() + PATIENCE_S
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            if process.is_alive():
                process.kill()
            process.join()

    def tell(self, number: int) -> None:
        for process in self.processes:
            if process.is_alive() and process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, number)

    def watch(self, asked: list[signal.Signals]) -> tuple[int, int]:
        """Wait for the ranks; returns (rank, exit code) of the failure to report, or (0, 0) if all ended well.

        Passes on the first signal of ``asked``. A second Ctrl-C raises KeyboardInterrupt: the user will not wait.
        """
        told = False
        while any(p.is_alive() for p in self.processes):
            wait([p.sentinel for p in self.processes if p.is_alive()], POLL_S)
            failed = [(r, p.exitcode) for r, p in enumerate(self.processes) if p.exitcode]
            # Ranks that are preempted stop together, so wait for all of them; any other failure ends the wait.
            if any(code != Preempted.exit_code for _, code in failed):
                break
            self._end_frozen()
            if asked and not told:
                self.tell(PASSED_ON[asked[0]])
                told = True
            if asked.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
        failed = [(r, p.exitcode) for r, p in enumerate(self.processes) if p.exitcode]
        # A killed rank (negative code) comes first: the others only lost their connection to it.
        return min(failed, key=lambda rank_code: rank_code[1] or 0, default=(0, 0))  # pyright: ignore[reportReturnType]

    def _end_frozen(self) -> None:
        for rank, process in enumerate(self.processes):
            if not _is_stopped(process.pid or 0):
                self.stopped_at.pop(rank, None)
            elif time.monotonic() - self.stopped_at.setdefault(rank, time.monotonic()) > FROZEN_S:
                process.kill()
                process.join()

    def how(self, rank: int, code: int) -> str:
        """Words for how a rank ended with the exit code ``code``, which is not 0."""
        if rank in self.stopped_at:
            return f"was stopped (SIGSTOP) and did not go on for {FROZEN_S:g} s"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"

    def first_report(self) -> tuple[int, Report] | None:
        """(rank, report) of the earliest ImnetError, or of the earliest other exception if there is none; None if no
        rank has sent a report."""
        end = time.monotonic() + REPORTS_S
        while any(p.is_alive() for p in self.processes) and time.monotonic() < end:
            wait([p.sentinel for p in self.processes if p.is_alive()], max(0.0, end - time.monotonic()))
        found: list[tuple[int, Report]] = []
        for rank, pipe in enumerate(self.pipes):
            with contextlib.suppress(EOFError):
                if pipe.poll():
                    found.append((rank, pipe.recv()))
        return min(found, key=lambda row: (row[1].error is None, row[1].at), default=None)


def _is_stopped(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False  # the process is gone, or this is not Linux
    return state == "T"


def _rank(entry: Callable[..., int], args: tuple[Any, ...], pipe: Connection) -> None:
    """The main function of a rank's process. Sends a failure to the launcher, which reports one for all ranks."""
    printable()
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    die_with(launcher.pid or 0)()
    try:
        code = entry(*args)
    except ImnetError as error:
        report, code = Report(time.monotonic(), error, traceback.format_exc()), error.exit_code
    except Exception as error:
        known = failure_of(error, FEWER)
        report, code = Report(time.monotonic(), known, traceback.format_exc()), known.exit_code if known else 1
    else:
        report = None
    if report is not None:
        with contextlib.suppress(BrokenPipeError):  # the launcher has ended
            pipe.send(report)
    pipe.close()
    leave(code)


@contextlib.contextmanager
def _environment(names: Mapping[str, Any]) -> Iterator[None]:
    """Set variables for the processes that are started in the block; torch reads some of them when it is imported."""
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(value) for name, value in names.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _sigint_blocked() -> Iterator[None]:
    """Block SIGINT, so that processes started in the block inherit this; one sent meanwhile is delivered afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
