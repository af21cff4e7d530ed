"""One process per rank: started by us (--gpus N, --procs N), by torchrun or by srun; the rest sees a World."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from imnet.errors import DeviceError, Preempted

INIT_TIMEOUT_S = 30
COLLECTIVE_TIMEOUT_S = 600


@dataclass(frozen=True)
class World:
    """This process among its ranks; ``life`` counts elastic restarts."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    life: int = 0

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def all_reduce(self, tensor: torch.Tensor, op: Any = None) -> torch.Tensor:
        """In-place sum over the ranks (or ``op``); nothing to do for one rank."""
        if self.size > 1:
            dist.all_reduce(tensor, op=op or dist.ReduceOp.SUM)
        return tensor

    def broadcast(self, tensors: list[torch.Tensor]) -> None:
        """Rank 0's values into every rank's tensors."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def share(self, value: Any) -> Any:
        """Rank 0's picklable value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]


def inside_launcher() -> bool:
    """Whether torchrun or srun (with several tasks) started this process."""
    return "LOCAL_RANK" in os.environ or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def current_world() -> World:
    """What the environment says, without connecting to anyone."""
    env = os.environ
    if "LOCAL_RANK" in env:
        life = int(env.get("TORCHELASTIC_RESTART_COUNT", "0"))
        return World(int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"]), life)
    if int(env.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in env:
        return World(int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"]))
    return World()


@contextlib.contextmanager
def connected(device: torch.device):
    """The World, its process group open for the length of the block."""
    world = current_world()
    if world.size == 1:
        yield world
        return
    _connect(world, device)
    try:
        yield world
    finally:
        with contextlib.suppress(RuntimeError):
            dist.destroy_process_group()


def _connect(world: World, device: torch.device) -> None:
    """Every life gets its own prefix in the shared store: a restarted rank must not read a dead one's addresses."""
    host, port = _master()
    agent_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    timeout = datetime.timedelta(seconds=INIT_TIMEOUT_S)
    try:
        store = dist.TCPStore(host, port, world.size, is_master=world.is_main and not agent_store, timeout=timeout)
        store = dist.PrefixStore(f"imnet-life-{world.life}", store)
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend,
            store=store,
            rank=world.rank,
            world_size=world.size,
            timeout=datetime.timedelta(seconds=COLLECTIVE_TIMEOUT_S),
        )
    except (RuntimeError, dist.DistError) as error:
        what = f"rank {world.rank} of {world.size} could not join at {host}:{port} within {INIT_TIMEOUT_S} s"
        raise DeviceError(what, hint="are all ranks started, and the port open between them?") from error


def _master() -> tuple[str, int]:
    env = os.environ
    if "MASTER_ADDR" in env:
        return env["MASTER_ADDR"], int(env["MASTER_PORT"])
    # Under srun alone: the first node of the step, and a port that the job's id decides.
    nodes = env.get("SLURM_STEP_NODELIST") or env.get("SLURM_JOB_NODELIST") or "127.0.0.1"
    return _first_host(nodes), 20000 + int(env.get("SLURM_JOB_ID", "0")) % 20000


def _first_host(nodes: str) -> str:
    """``node[003-005,009],other`` -> ``node003``."""
    head, bracket, rest = nodes.partition("[")
    if not bracket or "," in head:
        return head.split(",")[0]
    return head + rest.split("]")[0].split(",")[0].split("-")[0]


def run_ranks(entry: Callable[..., int], args: tuple[Any, ...], num_ranks: int, max_restarts: int) -> int:
    """Run ``entry(*args)`` in ``num_ranks`` processes of this machine; the exit code of the first that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent's own log repeats, in dozens of lines, what a rank has already said in one.
    for name in list(logging.root.manager.loggerDict):
        if name.startswith("torch.distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=num_ranks,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=f"imnet-{os.getpid()}",
        max_restarts=max_restarts,
        monitor_interval=0.2,
        start_method="spawn",
    )
    try:
        codes = elastic_launch(config, entry)(*args)
    except ChildFailedError as error:
        return _first_failure(error)
    except SignalException:
        return Preempted.exit_code
    return max(codes.values(), default=0)


def _first_failure(error: Any) -> int:
    """The exit code of the rank that failed by itself; the agent ends the others with a signal."""
    codes = [failure.exitcode for failure in error.failures.values()]
    own = [code for code in codes if code > 0]
    return own[0] if own else 1
