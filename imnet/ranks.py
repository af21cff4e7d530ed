"""Several ranks on this machine: started, watched, told to stop, and asked why they failed.

The terminal sends Ctrl-C to every process in front of it. Ranks do not see it, since they are started with SIGINT
blocked; the launcher does, and passes it on once, as SIGUSR2. So one Ctrl-C is one wish, and a second is a second.
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

from imnet.command import complain, die_with, output_failure, printable
from imnet.errors import DeviceError, ImnetError, Preempted
from imnet.launch import heard, leave

POLL_S = 0.2
REPORTS_S = 0.5
"""After the first failure: so long for the others' own words, of which the earliest is the cause."""
PATIENCE_S = 2.0
"""From being told to stop to being killed, where another rank has failed: who waits in a barrier hears nothing."""
FROZEN_S = 5.0
"""So long a rank may be stopped (SIGSTOP), while all others wait for it, before it counts as lost."""
ELSEWHERE = "a signal at another rank"
PASSED_ON = {signal.SIGINT: signal.SIGUSR2} | {n: n for n in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)}


@dataclass(frozen=True)
class Report:
    """Why a rank ended: an error that says so itself, or a traceback."""

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
    """Run ``entry(*args)`` in ``num_ranks`` processes; 0, or 1 where a rank failed with a traceback, which is printed.

    ``environment`` is set for them where the user has not set it.

    Raises the ImnetError that a rank raised (Preempted, when all have saved), and DeviceError for one that was killed.
    A rank that is lost makes all start again, at most ``max_restarts`` times; an ImnetError would only come again.
    """
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    with _asked_to_stop() as asked:
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
                report = None  # the others' tracebacks say that they lost their connection to it
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
    """The rank's error with its number, where that is not the first, and with its traceback for ``--debug``."""
    error = report.error
    assert error is not None
    if isinstance(error, Preempted):
        error.what = error.what.replace(ELSEWHERE, asked[0].name if asked else ELSEWHERE)
    elif rank:
        error.what = f"rank {rank}: {error.what}"
    error.add_note(report.trace)
    return error


class _Group:
    """The processes of one life; none is left when the block ends."""

    def __init__(self, entry: Callable[..., int], args: tuple[Any, ...], num_ranks: int, life: int, port: int):
        context = multiprocessing.get_context("spawn")
        self.processes: list[BaseProcess] = []
        self.stopped_at: dict[int, float] = {}
        """When a rank that is stopped was first seen so."""
        self.pipes: list[Connection] = []
        for rank in range(num_ranks):
            reader, writer = context.Pipe(duplex=False)
            process = context.Process(target=_rank, args=(entry, args, writer), name=f"rank {rank}")
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": num_ranks, "MASTER_PORT": port}
            names |= {"LOCAL_WORLD_SIZE": num_ranks, "MASTER_ADDR": "127.0.0.1", "TORCHELASTIC_RESTART_COUNT": life}
            names |= {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # ours, in the launcher
            names |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", 1)}
            with _environment(names), _sigint_blocked():
                process.start()
            writer.close()
            self.processes.append(process)
            self.pipes.append(reader)

    def __enter__(self) -> _Group:
        return self

    def __exit__(self, *_: object) -> None:
        """Tell, wait a little, kill."""
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
        """(rank, exit code) of the first failure, or (0, 0) when all have ended well.

        A signal is passed on once. A second Ctrl-C is a KeyboardInterrupt: the user waits no longer.
        """
        told = False
        while any(p.is_alive() for p in self.processes):
            wait([p.sentinel for p in self.processes if p.is_alive()], POLL_S)
            failed = [(r, p.exitcode) for r, p in enumerate(self.processes) if p.exitcode]
            # Ranks that were told to stop do so together; only another failure ends the wait.
            if any(code != Preempted.exit_code for _, code in failed):
                break
            self._end_frozen()
            if asked and not told:
                self.tell(PASSED_ON[asked[0]])
                told = True
            if asked.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
        failed = [(r, p.exitcode) for r, p in enumerate(self.processes) if p.exitcode]
        # A killed rank first: the others only lost their connection to it.
        return min(failed, key=lambda rank_code: rank_code[1] or 0, default=(0, 0))  # pyright: ignore[reportReturnType]

    def _end_frozen(self) -> None:
        for rank, process in enumerate(self.processes):
            if not _is_stopped(process.pid or 0):
                self.stopped_at.pop(rank, None)
            elif time.monotonic() - self.stopped_at.setdefault(rank, time.monotonic()) > FROZEN_S:
                process.kill()
                process.join()

    def how(self, rank: int, code: int) -> str:
        """What became of a rank that ended with ``code``, not 0."""
        if rank in self.stopped_at:
            return f"was stopped (SIGSTOP) and did not go on for {FROZEN_S:g} s"
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else "failed"

    def first_report(self) -> tuple[int, Report] | None:
        """(rank, report) of the error that came first; what a rank says on purpose before any traceback."""
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
        return False  # it is gone, or this is no Linux
    return state == "T"


def _rank(entry: Callable[..., int], args: tuple[Any, ...], pipe: Connection) -> None:
    """A rank's process: what it fails with goes to the launcher, which says it once for all."""
    printable()
    launcher = multiprocessing.parent_process()
    assert launcher is not None
    die_with(launcher.pid or 0)()
    try:
        code = entry(*args)
    except ImnetError as error:
        report, code = Report(time.monotonic(), error, traceback.format_exc()), error.exit_code
    except Exception as error:
        known = output_failure(error) if isinstance(error, OSError) else None
        report, code = Report(time.monotonic(), known, traceback.format_exc()), known.exit_code if known else 1
    else:
        report = None
    if report is not None:
        with contextlib.suppress(BrokenPipeError):  # nobody is left to hear it
            pipe.send(report)
    pipe.close()
    leave(code)


@contextlib.contextmanager
def _asked_to_stop() -> Iterator[list[signal.Signals]]:
    """The signals that came, in their order; handlers are put back afterwards. None in a thread that may set none."""
    came: list[signal.Signals] = []
    old: dict[int, Any] = {}
    for number in heard(PASSED_ON):
        with contextlib.suppress(ValueError):
            old[number] = signal.signal(number, lambda n, _: came.append(signal.Signals(n)))
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _environment(names: Mapping[str, Any]) -> Iterator[None]:
    """Variables for the processes that are started in the block; torch reads some when it is imported there."""
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
    """Processes inherit it; one that came meanwhile arrives here afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
