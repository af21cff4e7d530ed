"""How the number of ranks and their meeting point are decided, and what is refused before any rank starts."""

import functools
import json
import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from imnet import cli, device, launch, meeting
from imnet.errors import DeviceError, UsageError
from imnet.launch import current_world
from imnet.resources import num_cores
from imnet.run_options import RunOptions

from . import slow_script
from .conftest import finished, start_launcher, start_ranks

WORLDS = [
    ({}, (0, 1, 0)),
    ({"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, (1, 2, 1)),
    ({"RANK": "", "WORLD_SIZE": "", "LOCAL_RANK": ""}, (0, 1, 0)),
    ({"LOCAL_RANK": "0"}, (0, 1, 0)),
    ({"WORLD_SIZE": "1", "RANK": "0"}, (0, 1, 0)),
    ({"SLURM_NTASKS": "2"}, (0, 1, 0)),
    ({"SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, (0, 1, 0)),
    ({"SLURM_NTASKS": ""}, (0, 1, 0)),
    ({"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0"}, (0, 1, 0)),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, (0, 1, 0)),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "3", "SLURM_LOCALID": "1"}, (3, 4, 1)),
    *(
        (
            {
                "SLURM_STEP_ID": "0",
                "SLURM_STEP_NUM_TASKS": "4",
                "SLURM_PROCID": "3",
                "SLURM_LOCALID": "3",
                "SLURM_GPUS_ON_NODE": gpus,
                "CUDA_VISIBLE_DEVICES": visible,
            },
            (3, 4, local),
        )
        for gpus, visible, local in (("4", "0,1,2,3", 3), ("4", "3", 0), ("1", "0", 3), ("", "0", 3))
    ),
]
TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}
REFUSED = [
    ({"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, None, "WORLD_SIZE=2 without LOCAL_RANK"),
    ({"WORLD_SIZE": "2"}, None, "WORLD_SIZE=2 without RANK"),
    ({"LOCAL_RANK": "1"}, None, "LOCAL_RANK=1 without WORLD_SIZE"),
    ({"RANK": "3"}, None, "RANK=3 without WORLD_SIZE"),
    ({"RANK": "2", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None, "RANK=2"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}, None, "without MASTER_ADDR"),
    ({"WORLD_SIZE": "two"}, None, "WORLD_SIZE=two"),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, None, "without SLURM_PROCID"),
    ({"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "h", "MASTER_PORT": "1"}, 3, "3 processes"),
    ({"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}, 2, "TASKS=4"),
    (SRUN | {"SLURM_PROCID": "2"}, None, "SLURM_PROCID=2 with SLURM_STEP_NUM_TASKS=2"),
    (SRUN | {"SLURM_JOB_ID": "7_1"}, None, "SLURM_JOB_ID=7_1"),
    *((world | {"MASTER_PORT": port}, None, f"MASTER_PORT={port}") for world in (TORCHRUN, SRUN)
      for port in ("abc", "0", "65536", "-1", "29500.0")),
]  # fmt: skip
NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "SLURM_NTASKS", "SLURM_PROCID")
NAMES += ("SLURM_LOCALID", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "TORCHELASTIC_RESTART_COUNT")
NAMES += ("SLURM_CPUS_ON_NODE", "SLURM_GPUS_ON_NODE", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NODEID", "LOCAL_WORLD_SIZE")
NAMES += ("CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID", "SLURM_JOB_NODELIST", "SLURM_STEP_NODELIST")
MEETING = [
    ({}, ("127.0.0.1", 20000)),
    ({"SLURM_JOB_ID": "40007", "SLURM_STEP_NODELIST": "n[3-4,9]"}, ("n3", 20007)),
    ({"SLURM_STEP_NODELIST": "a-1,b[3,5-7]"}, ("a-1", 20000)),
    ({"SLURM_STEP_NODELIST": "node[01-02]"}, ("node01", 20000)),
    ({"SLURM_STEP_NODELIST": "rack[0-3]_blade[02-41,7],x"}, ("rack0_blade02", 20000)),
    ({"SLURM_STEP_NODELIST": "n[3-4]-ib.cluster"}, ("n3-ib.cluster", 20000)),
    ({"SLURM_JOB_ID": "40007", "MASTER_ADDR": "h"}, ("h", 20007)),
    ({"SLURM_JOB_NODELIST": "a,b", "MASTER_PORT": "29500"}, ("a", 29500)),
    ({"MASTER_ADDR": "", "MASTER_PORT": ""}, ("127.0.0.1", 20000)),
]


@pytest.fixture
def environment(monkeypatch):
    def put(values):
        for name in NAMES:
            monkeypatch.delenv(name, raising=False)
        for name, value in values.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize(("values", "expected"), WORLDS)
def test_who_decides_how_many_ranks_there_are(environment, values, expected):
    environment(values)
    world = current_world()
    assert (world.rank, world.size, world.local_rank) == expected
    assert current_world(asked=world.size) == world


@pytest.mark.parametrize(("values", "expected"), MEETING)
def test_where_tasks_of_slurm_meet(environment, values, expected):
    environment(SRUN | values)
    assert current_world().size == 2
    assert meeting.master() == expected


@pytest.mark.parametrize(("values", "asked", "words"), REFUSED)
def test_a_launch_that_would_lack_ranks_is_refused(environment, values, asked, words):
    environment(values)
    with pytest.raises(UsageError, match=words):
        current_world(asked)


@pytest.mark.parametrize(
    ("gpus", "values", "local_rank", "words"),
    [
        (0, {"device": "cuda"}, 0, "got --device cuda, found 0 usable GPUs; leave it out to train on the CPU"),
        (2, {"gpus": 3}, 1, "got --gpus 3, found 2 usable GPUs; use --gpus 2"),
        (1, {}, 5, "got LOCAL_RANK=5, found 1 usable GPU;"),
    ],
)
def test_gpus_that_are_not_there_are_said_as_they_were_asked_for(gpus, values, local_rank, words, monkeypatch):
    monkeypatch.setattr("imnet.device.num_gpus", lambda: gpus)
    with pytest.raises(DeviceError, match=words):
        device.resolve(RunOptions(**values), local_rank)


def test_what_nohup_ignores_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        assert launch.heard([signal.SIGTERM, signal.SIGHUP]) == [signal.SIGTERM, signal.SIGHUP]
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        assert launch.heard([signal.SIGTERM, signal.SIGHUP]) == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("environment", "words", "ranks"),
    [
        ({}, {}, 1),
        ({}, {"gpus": 2}, 2),
        ({}, {"procs": 2}, 2),
        ({"LOCAL_WORLD_SIZE": "2"}, {}, 2),
        ({"LOCAL_WORLD_SIZE": "1"}, {"gpus": 2}, 1),  # torchrun on two machines with one GPU each
    ],
)
def test_ranks_of_a_machine_share_its_cores(monkeypatch, environment, words, ranks):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("imnet.device.num_cores", lambda: 16)
    with device.threads(RunOptions(**words)) as threads:
        assert threads == 16 // ranks


@pytest.mark.parametrize(
    ("values", "ranks"),
    [
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "2"}, 2),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "1,8(x2),4", "SLURM_NODEID": "2"}, 8),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "1,8(x2),4", "SLURM_NODEID": "3"}, 4),
        ({"SLURM_CPUS_ON_NODE": "128", "SLURM_STEP_TASKS_PER_NODE": "8"}, 1),  # bound: a task has 16 cores
        ({"SLURM_STEP_TASKS_PER_NODE": "8"}, 1),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "8", "SLURM_STEP_ID": "4294967291"}, 1),
        ({"SLURM_CPUS_ON_NODE": "16", "SLURM_STEP_TASKS_PER_NODE": "1", "LOCAL_WORLD_SIZE": "4"}, 4),
    ],
)
def test_tasks_of_slurm_that_are_not_bound_share_the_cores_of_the_step(environment, monkeypatch, values, ranks):
    """Without binding, each of eight tasks on a machine with 128 cores would take all of them: 1,024 threads."""
    environment(SRUN | values)
    for module in ("device", "launch"):
        monkeypatch.setattr(f"imnet.{module}.num_cores", lambda: 16)
    with device.threads(RunOptions()) as threads:
        assert threads == 16 // ranks


@pytest.mark.parametrize("how", ["forked", pytest.param("by its command", marks=pytest.mark.slow)])
def test_ranks_that_torchrun_starts_share_the_cores(tmp_path, how):
    """If each of 8 ranks took all 128 cores of a machine, it would run 1,024 threads, and as many that decode."""
    words = ["--device", "cpu", "--epochs", "1", "--out", str(tmp_path), "--model-options", '{"width": 8}']
    words += ["--data.image_px", "12", "--data.train_images", "64", "--data.test_images", "16", "--batch-size", "16"]
    if how == "forked":
        assert finished(start_ranks(torchrun, (words,))) == [0]
    else:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1"]
        command += ["--nproc-per-node", "2", "-m", "imnet.cli", *words]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        subprocess.run(command, env=environment, check=True, capture_output=True)
    run = json.loads((tmp_path / "run.json").read_text())
    assert (run["threads"], run["num_ranks"]) == (max(1, num_cores() // 2), 2)


def torchrun(words):
    """Starts two ranks by torchrun's agent, which forks them."""
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(1, 1, 2, rdzv_backend="c10d", rdzv_endpoint="127.0.0.1:0", local_addr="127.0.0.1",
                          start_method="fork")  # fmt: skip
    codes = elastic_launch(config, cli.train_main)(words)
    return max(codes.values())


@pytest.mark.parametrize(("backend", "gpu"), [("nccl", [1]), ("gloo", None)])
def test_a_barrier_of_gpus_names_the_rank_s_own(backend, gpu, monkeypatch):
    """Rank 5 of two machines with eight GPUs each, of which four are used, has GPU 1; torch would take GPU 5."""
    given = []
    monkeypatch.setattr(launch.dist, "get_backend", lambda group: backend)
    monkeypatch.setattr(launch.dist, "barrier", lambda group, **named: given.append(named))
    monkeypatch.setattr(launch.torch.cuda, "current_device", lambda: 1)
    launch.World(rank=5, size=8, local_rank=1).barrier()
    assert given == [{"device_ids": gpu}]


def test_a_rank_that_fails_does_not_wait_for_the_others_to_end_the_group(monkeypatch):
    """They may wait for this rank; nobody would hear of its error until NCCL gives up after ten minutes."""
    heard, ended, done = threading.Event(), [], threading.Event()

    def destroy():  # as NCCL does it: it returns when the other ranks have come, here when they have heard of the error
        ended.append(heard.wait(30.0))
        done.set()

    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setattr(meeting, "join", lambda *_: None)
    monkeypatch.setattr(launch, "NCCL_ENDS_S", 0.1)
    monkeypatch.setattr(launch.dist, "destroy_process_group", destroy)
    with pytest.raises(DeviceError, match="of this rank"), launch.connected(torch.device("cuda")):
        raise DeviceError("an error of this rank")
    heard.set()
    assert done.wait(30.0)
    with launch.connected(torch.device("cuda")):
        heard.clear()
        threading.Timer(0.3, heard.set).start()
    assert ended == [True, True]  # without an error it waits, however long that takes


@pytest.mark.parametrize(
    ("what", "code", "says"),
    [
        ("prepared", 0, ""),
        pytest.param("refused", 65, "imnet-train: nothing can be packed here", marks=pytest.mark.slow),
        ("killed", 69, "imnet-train: rank 0 was killed by SIGKILL"),
    ],
)
def test_ranks_wait_for_the_first_ones_data_longer_than_a_collective_waits(tmp_path, what, code, says):
    """Packing ImageNet takes longer than the ten minutes of a collective; a failure meanwhile must end all ranks."""
    words = ["--device", "cpu", "--procs", "2", "--data.name", "slow", "--data.image_px", "12", "--epochs", "1"]
    words += ["--data.train_images", "64", "--data.test_images", "16", "--batch-size", "16", "--max-restarts", "0"]
    words += ["--threads", "1", "--out", str(tmp_path / "run")]
    before = functools.partial(slow_script.prepare, what)
    launched = start_launcher(words, tmp_path / "errors", before=before)
    codes, errors = finished([launched]), (tmp_path / "errors").read_text()
    assert codes == [code], errors
    assert errors.startswith(says)
    assert errors.count("\n") == (code != 0)
    if code == 0:
        assert json.loads((tmp_path / "run" / "run.json").read_text())["num_ranks"] == 2
