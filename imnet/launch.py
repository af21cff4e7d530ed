"""One process per rank, started by us (imnet.ranks), by torchrun or by srun; the rest sees a World."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from imnet.errors import DeviceError, UsageError

INIT_TIMEOUT_S = 30
COLLECTIVE_TIMEOUT_S = 600
LONGEST_WAIT = datetime.timedelta(days=7)
"""For what one rank does and the others need."""
connections = 0
"""How many process groups this process has joined."""
SLURM_SPECIAL_STEPS = 0xFFFFFFF0
"""Numbers of steps from here on are Slurm's own: batch script, interactive shell, external processes."""


@dataclass(frozen=True)
class World:
    """This process among its ranks; ``life`` counts elastic restarts.

    ``group`` are the ranks that train with this one, a process group of torch; None: all. ``store`` is what they have
    in common beside it, while they are connected.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    life: int = 0
    group: Any = None
    store: Any = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def reduces(self) -> bool:
        """Whether gradients are averaged over a process group: of several ranks, or of this one alone where it was
        given one, which is how a single card shows what NCCL does."""
        return self.size > 1 or self.group is not None

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(self.group)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """The block at rank 0, then at the others, which wait however long it takes: packing may take hours, and a
        collective gives up after COLLECTIVE_TIMEOUT_S. Every rank calls it."""
        if self.size == 1:
            yield
            return
        done = f"done-{self.store.add(f'turns-of-{self.rank}', 1)}"
        if not self.is_main:
            self.store.wait([done], LONGEST_WAIT)
            self.barrier()  # fails where rank 0 has
        try:
            yield
        finally:
            if self.is_main:
                self.store.set(done, "")
        if self.is_main:
            self.barrier()

    def all_reduce(self, tensor: torch.Tensor, op: Any = None) -> torch.Tensor:
        """In-place sum over the ranks (or ``op``); nothing to do for one rank."""
        if self.size > 1:
            dist.all_reduce(tensor, op=op or dist.ReduceOp.SUM, group=self.group)
        return tensor

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Rank 0's values into every rank's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=self.group, group_src=0)

    def share(self, value: Any) -> Any:
        """Rank 0's picklable value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def alike(self, value: Any) -> tuple[int, int]:
        """(this rank's number, how many) among the ranks that call it with the same value."""
        if self.size == 1:
            return 0, 1
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values[: self.rank].count(value), values.count(value)

    def part(self, size: int) -> World:
        """This rank among the ``size`` neighbours that it trains with; every rank calls it."""
        if size == 1:
            return World(local_rank=self.local_rank, life=self.life)
        timeout = datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S)
        parts = [list(range(first, first + size)) for first in range(0, self.size, size)]
        groups = [dist.new_group(ranks, timeout=timeout) for ranks in parts]
        rank = self.rank % size
        store = dist.PrefixStore(f"part-{self.rank // size}", self.store)
        return World(rank, size, self.local_rank, self.life, groups[self.rank // size], store)


def current_world(asked: int | None = None) -> World:
    """What the environment says, without connecting to anyone; ``asked`` is the number of --procs or --gpus.

    Who decides, in this order: torchrun's RANK, LOCAL_RANK and WORLD_SIZE; a Slurm step of several tasks (srun); else
    this process is alone, and may start ranks itself. Shells inside an allocation (salloc, the script of sbatch) are
    alone whatever SLURM_NTASKS says. An empty variable is an unset one. Raises UsageError where ranks would be missing,
    or have nowhere to meet.
    """
    world = _torchrun_world() or _slurm_world() or World()
    if world.size > 1:
        _master()
    if asked is not None and asked > 1 and world.size > 1 and asked != world.size:
        who = "WORLD_SIZE" if _number("WORLD_SIZE") is not None else "SLURM_STEP_NUM_TASKS"
        what = f"got {asked} processes to start inside a launch of {world.size} ({who}={world.size})"
        raise UsageError(what, hint=f"leave --procs and --gpus out there, or unset {who}")
    return world


def local_size() -> int | None:
    """Ranks that share this machine's cores, as torchrun and imnet.ranks tell each of them; None in a process alone,
    and under srun, which gives every task cores of its own."""
    return _number("LOCAL_WORLD_SIZE")


def _number(name: str) -> int | None:
    """An environment variable's number; None where it is unset or empty. Raises UsageError for another word."""
    text = os.environ.get(name, "").strip()
    if not text:
        return None
    if not text.isdecimal():
        raise UsageError(f"got {name}={text} in the environment; allowed: a number", hint=f"unset {name}")
    return int(text)


def _torchrun_world() -> World | None:
    rank, size, local = (_number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    if rank is not None and size is not None and local is not None:
        if rank >= size:
            raise UsageError(
                f"got RANK={rank} with WORLD_SIZE={size}", hint="ranks count from 0; correct or unset both"
            )
        if size > 1:
            for name in ("MASTER_ADDR", "MASTER_PORT"):
                if not os.environ.get(name):
                    raise UsageError(
                        f"got WORLD_SIZE={size} without {name}", hint="start ranks with torchrun or --procs"
                    )
        return World(rank, size, local, _number("TORCHELASTIC_RESTART_COUNT") or 0)
    if (size or 1) > 1:
        missing = next(n for n, v in {"RANK": rank, "LOCAL_RANK": local}.items() if v is None)
        what = f"got WORLD_SIZE={size} without {missing}: another {size - 1 if size else 0} rank(s) would be missing"
        hint = f"set {missing} (LOCAL_RANK is 0 with one process a machine), or unset WORLD_SIZE to train alone"
        raise UsageError(what, hint=hint)
    if rank or local:
        name, value = ("RANK", rank) if rank else ("LOCAL_RANK", local)
        raise UsageError(f"got {name}={value} without WORLD_SIZE", hint=f"unset {name} to train alone, or use torchrun")
    return None


def _slurm_world() -> World | None:
    """A step of several tasks. Batch scripts and interactive shells have steps of their own, numbered from the top."""
    step, tasks = _number("SLURM_STEP_ID"), _number("SLURM_STEP_NUM_TASKS")
    if step is None or step >= SLURM_SPECIAL_STEPS or (tasks or 1) <= 1:
        return None
    rank, local = _number("SLURM_PROCID"), _number("SLURM_LOCALID")
    if rank is None or local is None:
        what = f"got SLURM_STEP_NUM_TASKS={tasks} without SLURM_PROCID and SLURM_LOCALID"
        raise UsageError(what, hint="start with srun, or unset SLURM_STEP_NUM_TASKS to train alone")
    if rank >= (tasks or 1):
        what = f"got SLURM_PROCID={rank} with SLURM_STEP_NUM_TASKS={tasks}"
        raise UsageError(what, hint="tasks count from 0; start with srun, or unset both to train alone")
    return World(rank, tasks or 1, local)


def heard(signals: Iterable[int]) -> list[int]:
    """Those that are to be noted: all but a SIGHUP that nohup has had ignored."""
    return [n for n in signals if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


@contextlib.contextmanager
def connected(device: torch.device):
    """The World, its process group open for the length of the block."""
    world = current_world()
    if world.size == 1:
        yield world
        return
    global connections
    connections += 1
    store = _connect(world, device)
    try:
        yield replace(world, store=store)
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


LOST = re.compile(r"closed by peer|reset by peer|Broken pipe|Connection refused|remote process|Timed out waiting")
"""What gloo and NCCL say in the midst of an operation where another rank has ended, or stands still."""


@contextlib.contextmanager
def named_loss(world: World):
    """What a rank meets when another has ended is no fault of its own: DeviceError, a line, so that the other's words
    are found. Whoever starts ranks here (imnet.ranks) knows which was lost, and asks for the tracebacks instead."""
    try:
        yield
    except RuntimeError as error:
        lost = isinstance(error, dist.DistNetworkError) or LOST.search(str(error))  # the store's own, or gloo's, NCCL's
        if world.size == 1 or not lost:
            raise
        what = f"rank {world.rank} of {world.size} has lost its connection to another rank"
        raise DeviceError(what, hint="what that one said is the cause; the same command goes on") from error


def leave(code: int) -> NoReturn:
    """End a rank's process here, its files closed and its lines written.

    At the very end of a process torch's own threads are taken apart in no certain order, and about one rank in 200
    aborts there (torch 2.14, gloo, on two busy cores): after a run that is complete, its launcher would say it failed.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _connect(world: World, device: torch.device) -> dist.Store:
    """The ranks' store in this life: its prefix keeps a restarted rank from reading the addresses of a dead one."""
    host, port = _master()
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = datetime.timedelta(seconds=INIT_TIMEOUT_S)
    try:
        store = dist.TCPStore(host, port, world.size, is_master=world.is_main and not agent_store, timeout=timeout)
        store = dist.PrefixStore(f"imnet-life-{world.life}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        if host in ("127.0.0.1", "localhost"):
            _stay_inside()
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
        return store
    except (RuntimeError, dist.DistError) as error:
        if any(word in str(error) for word in ("EADDRINUSE", "ddress already in use")):
            what = f"port {port} of {host} is in use, at which the ranks would meet"
            raise DeviceError(what, hint="choose another MASTER_PORT, or end the run that has it") from error
        what = f"rank {world.rank} of {world.size} could not join at {host}:{port} within {INIT_TIMEOUT_S} s"
        raise DeviceError(what, hint="are all ranks started, and the port open between them?") from error


def _stay_inside() -> None:
    """Let gloo's ranks of this machine alone meet by its loopback interface, where $GLOO_SOCKET_IFNAME names no other:
    else gloo takes the address of the host's name, which a laptop may lack or change with its network."""
    names = {name for _, name in socket.if_nameindex()}
    if loopback := names & {"lo", "lo0"}:  # as Linux and macOS call it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback.pop())


def _master() -> tuple[str, int]:
    """Where the ranks meet: MASTER_ADDR and MASTER_PORT. Under srun alone the first node of the step stands for the
    one, a port that the job's id decides for the other. Raises UsageError for a port that is none.
    """
    env = os.environ
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    port = _number("MASTER_PORT")
    if port is None:
        port = 20000 + (_number("SLURM_JOB_ID") or 0) % 20000
    if not 0 < port < 1 << 16:
        raise UsageError(f"got MASTER_PORT={port} in the environment; allowed: 1 to 65535", hint="choose a free one")
    return env.get("MASTER_ADDR") or _first_host(nodes), port


def _first_host(nodes: str) -> str:
    """``node[003-005,009],other`` -> ``node003``."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]
