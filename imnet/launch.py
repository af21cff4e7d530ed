"""One process per rank, started by imnet.ranks, by torchrun or by srun; other modules only see a ``World``."""

from __future__ import annotations

import contextlib
import datetime
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from imnet import meeting
from imnet.errors import DeviceError, UsageError
from imnet.meeting import number
from imnet.resources import num_cores

LONGEST_WAIT = datetime.timedelta(days=7)
"""How long ranks wait for work that rank 0 does alone."""
GLOO_ENDS_S = 0.1
"""How long the threads of gloo get to free the tensors of the last collective, for which they need Python's lock (the
GIL). In torch 2.11 a group that is freed before waits for them for ever, since it holds the lock: of twelve runs of two
ranks that a signal stopped, three hung so, and none of twelve with this pause."""
NCCL_ENDS_S = 5.0
"""How long a rank that fails waits for its NCCL group to be destroyed. Its process is about to end anyway."""
connections = 0
"""Number of process groups that this process has joined."""
SLURM_SPECIAL_STEPS = 0xFFFFFFF0
"""Step ids from here on are Slurm's own: batch script, interactive shell, external processes."""


@dataclass(frozen=True)
class World:
    """This process's place among the ranks; ``life`` counts elastic restarts.

    ``group`` is torch's process group of the ranks that train with this one, or None for all ranks. ``store`` is the
    key-value store that these ranks share while they are connected.
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
        """Whether gradients are averaged over a process group: with several ranks, or with one rank that was given a
        group, so that NCCL's share can be seen on a single GPU."""
        return self.size > 1 or self.group is not None

    def barrier(self) -> None:
        if self.size > 1:
            # Else torch chooses the GPU of a first barrier and warns of it. Documented is number rank % GPUs, which is
            # not this rank's if a second machine has more GPUs than ranks.
            mine = [torch.cuda.current_device()] if dist.get_backend(self.group) == "nccl" else None
            dist.barrier(self.group, device_ids=mine)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Run the block on rank 0 first, then on the others; every rank must call this. The others wait by the store,
        not by a collective, which would time out after COLLECTIVE_TIMEOUT_S: packing a set may take hours."""
        if self.size == 1:
            yield
            return
        done = f"done-{self.store.add(f'turns-of-{self.rank}', 1)}"
        if not self.is_main:
            self.store.wait([done], LONGEST_WAIT)
            self.barrier()  # fails if rank 0 has failed
        try:
            yield
        finally:
            if self.is_main:
                self.store.set(done, "")
        if self.is_main:
            self.barrier()

    def all_reduce(self, tensor: torch.Tensor, op: Any = None) -> torch.Tensor:
        """Sum ``tensor`` over the ranks in place (or reduce it by ``op``), and return it."""
        if self.size > 1:
            dist.all_reduce(tensor, op=op or dist.ReduceOp.SUM, group=self.group)
        return tensor

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Copy rank 0's values into every rank's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, group=self.group, group_src=0)

    def share(self, value: Any) -> Any:
        """Return rank 0's picklable ``value`` on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def gather(self, value: Any) -> list[Any]:
        """Return the picklable values of all ranks, in rank order."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value, group=self.group)
        return values

    def alike(self, value: Any) -> tuple[int, int]:
        """Return (index, count) of this rank among the ranks that pass the same ``value``."""
        values = self.gather(value)
        return values[: self.rank].count(value), values.count(value)

    def part(self, size: int) -> World:
        """Split the ranks into groups of ``size`` neighbours; return this rank's own. Every rank must call it."""
        if size == 1:
            return World(local_rank=self.local_rank, life=self.life)
        timeout = datetime.timedelta(seconds=meeting.COLLECTIVE_TIMEOUT_S)
        parts = [list(range(first, first + size)) for first in range(0, self.size, size)]
        groups = [dist.new_group(ranks, timeout=timeout) for ranks in parts]
        rank = self.rank % size
        store = dist.PrefixStore(f"part-{self.rank // size}", self.store)
        return World(rank, size, self.local_rank, self.life, groups[self.rank // size], store)


def current_world(asked: int | None = None) -> World:
    """Read the World from the environment, without connecting; ``asked`` is the number given to --procs or --gpus.

    The first that is there decides: torchrun's RANK, LOCAL_RANK and WORLD_SIZE, then a Slurm step of several tasks
    (srun). Otherwise this process is alone, and may start ranks itself. Shells inside an allocation (salloc, the script
    of sbatch) are alone whatever SLURM_NTASKS says. Empty variables count as unset. Raises UsageError if ranks would be
    missing, or would have nowhere to meet.
    """
    world = _torchrun_world() or _slurm_world() or World()
    if world.size > 1:
        meeting.master()
    if asked is not None and asked > 1 and world.size > 1 and asked != world.size:
        who = "WORLD_SIZE" if number("WORLD_SIZE") is not None else "SLURM_STEP_NUM_TASKS"
        what = f"got {asked} processes to start inside a launch of {world.size} ({who}={world.size})"
        raise UsageError(what, hint=f"leave --procs and --gpus out there, or unset {who}")
    return world


def local_size() -> int | None:
    """Number of ranks that share the cores of this process; None if it shares them with nobody.

    These are the ranks of this machine if torchrun or imnet.ranks has set LOCAL_WORLD_SIZE, and its tasks under srun if
    each of them sees all cores of the step.
    """
    told, cores = number("LOCAL_WORLD_SIZE"), number("SLURM_CPUS_ON_NODE")
    if told is not None or _slurm_world() is None or cores is None or num_cores() < cores:
        return told
    # "2(x3),1" means two tasks on each of three nodes, and one on a fourth.
    parts = re.findall(r"(\d+)(?:\(x(\d+)\))?", os.environ.get("SLURM_STEP_TASKS_PER_NODE", ""))
    tasks = [int(many) for many, times in parts for _ in range(int(times or 1))]
    node = number("SLURM_NODEID") or 0
    return tasks[node] if node < len(tasks) else None


def _torchrun_world() -> World | None:
    rank, size, local = (number(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
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
        return World(rank, size, local, number("TORCHELASTIC_RESTART_COUNT") or 0)
    if size is not None and size > 1:
        missing = next(n for n, v in {"RANK": rank, "LOCAL_RANK": local}.items() if v is None)
        what = f"got WORLD_SIZE={size} without {missing}: another {size - 1} rank(s) would be missing"
        hint = f"set {missing} (LOCAL_RANK is 0 with one process a machine), or unset WORLD_SIZE to train alone"
        raise UsageError(what, hint=hint)
    if rank or local:
        name, value = ("RANK", rank) if rank else ("LOCAL_RANK", local)
        raise UsageError(f"got {name}={value} without WORLD_SIZE", hint=f"unset {name} to train alone, or use torchrun")
    return None


def _slurm_world() -> World | None:
    """The World of a Slurm step of several tasks, else None. Batch scripts and interactive shells have special steps of
    their own, numbered from SLURM_SPECIAL_STEPS."""
    step, tasks = number("SLURM_STEP_ID"), number("SLURM_STEP_NUM_TASKS")
    if step is None or step >= SLURM_SPECIAL_STEPS or tasks is None or tasks <= 1:
        return None
    rank, local = number("SLURM_PROCID"), number("SLURM_LOCALID")
    if rank is None or local is None:
        what = f"got SLURM_STEP_NUM_TASKS={tasks} without SLURM_PROCID and SLURM_LOCALID"
        raise UsageError(what, hint="start with srun, or unset SLURM_STEP_NUM_TASKS to train alone")
    if rank >= tasks:
        what = f"got SLURM_PROCID={rank} with SLURM_STEP_NUM_TASKS={tasks}"
        raise UsageError(what, hint="tasks count from 0; start with srun, or unset both to train alone")
    # A task that is bound to one GPU of several, as by --gpus-per-task, sees it as device 0.
    bound = (number("SLURM_GPUS_ON_NODE") or 0) > 1 and "," not in os.environ.get("CUDA_VISIBLE_DEVICES", ",")
    return World(rank, tasks, 0 if bound else local)


def heard(signals: Iterable[int]) -> list[int]:
    """The signals to handle: all of ``signals`` except a SIGHUP that nohup has set to be ignored."""
    return [n for n in signals if n != signal.SIGHUP or signal.getsignal(n) is not signal.SIG_IGN]


@contextlib.contextmanager
def handled(signals: Iterable[int], handler: Callable[[int, Any], object]) -> Iterator[None]:
    """Let ``handler`` handle ``signals`` in the block, as far as they are ``heard``; handlers are restored afterwards.
    Outside the main thread, which alone may set them, the program that runs us has to handle signals."""
    old: dict[int, Any] = {}
    for n in heard(signals):
        with contextlib.suppress(ValueError):
            old[n] = signal.signal(n, handler)
    try:
        yield
    finally:
        for n, before in old.items():
            signal.signal(n, before)


@contextlib.contextmanager
def connected(device: torch.device, settings: Mapping[str, Any] | None = None) -> Iterator[World]:
    """Yield the World, with its process group open during the block. If ``settings`` differ between ranks, each of them
    raises UsageError."""
    world = current_world()
    if world.size == 1:
        yield world
        return
    global connections
    connections += 1
    store = meeting.join(world.rank, world.size, world.life, device, settings or {})
    failed = True
    try:
        yield replace(world, store=store)
        failed = False
    finally:
        if device.type == "cpu":
            time.sleep(GLOO_ENDS_S)
        _disconnect(NCCL_ENDS_S if failed and device.type == "cuda" else None)


def _disconnect(patience_s: float | None) -> None:
    """Destroy the process group, but wait for that at most ``patience_s``, or without a limit if that is None.

    NCCL wants all ranks of a machine to destroy a group together. If only this rank has failed, the others may wait for
    it in an all-reduce meanwhile; then it must end first, and say why.
    """

    def destroy() -> None:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()

    if patience_s is None:
        destroy()
        return
    thread = threading.Thread(target=destroy, daemon=True)
    thread.start()
    thread.join(patience_s)


@contextlib.contextmanager
def named_loss(world: World):
    """Turn the errors that a rank gets because another rank has ended into a DeviceError of one line, so that the other
    rank's message, which has the cause, is easy to find. imnet.ranks does not use this: it knows which rank was lost,
    and gets the traceback instead."""
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not meeting.is_lost(error):
            raise
        what, hint = "lost its connection to another rank", "what that one said is the cause"
        if meeting.SILENT.search(str(error)):
            what = "had no answer from another rank in time"
            hint = "one stands still, or a machine or the network is down"
        what = f"rank {world.rank} of {world.size} has {what}"
        raise DeviceError(what, hint=f"{hint}; the same command goes on") from error


def leave(code: int) -> NoReturn:
    """End a rank's process at once, after flushing its output; the caller has closed its files.

    In an ordinary exit torch's threads are torn down in no fixed order, and about one rank in 200 aborts there (torch
    2.14, gloo, on two busy cores). Its launcher would then report a failure although the run is complete.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
