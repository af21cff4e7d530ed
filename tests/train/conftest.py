"""A small recipe that trains in seconds, and fixtures that start a training in its own process, which can be killed."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from multiprocessing import forkserver
from pathlib import Path

import pytest

from imnet import recipes
from imnet.recipe import SGD, Augment, Cosine, Data, Recipe
from imnet.run_options import RunOptions

TINY = Recipe(
    name="tiny",
    model="wrn10_1",
    data=Data(name="shapes", image_px=16, num_classes=4, batch_images=32, train_images=256, test_images=101),
    augment=Augment(crop_pad_px=2, hflip="random", cutout_px=4, mean=(0.5,), std=(0.25,)),
    optim=SGD(lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4),
    schedule=Cosine(warmup_epochs=0.5),
    epochs=3,
    ema_decay=0.95,
    label_smoothing=0.1,
    seed=7,
)
assert "quickstart" in recipes


def options(out, **changes):
    values = {"out": str(out), "device": "cpu", "precision": "fp32", "threads": 1, "log_every_steps": 2}
    return RunOptions(**(values | changes))


def skip_if_ignored(number):
    """Skip a test that sends ``number`` if the test run ignores it, as under nohup, which its processes inherit."""
    if signal.getsignal(number) is signal.SIG_IGN:
        pytest.skip(f"{signal.Signals(number).name} is ignored here, as under nohup")


def run_in_process(recipe, run_options):
    """Trains and ends this process with the exit code that the command line would have."""
    from imnet.errors import ImnetError
    from imnet.start import train

    try:
        code = train(recipe, run_options)[0]
    except ImnetError as error:
        print(f"one line: {error}", flush=True)
        code = error.exit_code
    os._exit(code)


def server():
    """The context of processes that are forked from a server which has torch imported already, and what torch imports
    for DistributedDataParallel; torch's warnings are off there, as a command has them."""
    context = multiprocessing.get_context("forkserver")
    drawing = ["matplotlib.figure", "matplotlib.backends.backend_svg", "tests.drawings"]
    context.set_forkserver_preload(["imnet.trainer", "torch._dynamo", *drawing])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_CPP_LOG_LEVEL", "ERROR")
        forkserver.ensure_running()
    return context


@pytest.fixture(scope="session")
def spawn():
    """A function start(recipe, options) -> running process, forked from ``server``."""

    def start(recipe, run_options):
        process = server().Process(target=run_in_process, args=(recipe, run_options))
        process.start()
        return process

    return start


def _rank(main, arguments, environment):
    """Runs main(*arguments) in its own process group, so that signals do not reach the tests."""
    os.setsid()
    os.environ.update({name: str(value) for name, value in environment.items()})
    code = main(*arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_ranks(main, *rows, **environment):
    """Starts the processes of one launch as torchrun would, one for each row of arguments of ``main``.

    They are forked from ``server``, so that no rank spends seconds on importing torch.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": len(rows), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if len(rows) > 1 else {}
    ranks = []
    for rank, row in enumerate(rows):
        own = {"RANK": rank, "LOCAL_RANK": rank} if world else {}
        ranks.append(server().Process(target=_rank, args=(main, row, world | own | environment)))
        ranks[-1].start()
    return ranks


def start_launcher(words, errors=os.devnull, output=os.devnull, before=None):
    """Starts imnet-train on ``words``, which ask for several ranks, as one process that starts them itself; it calls
    ``before`` first. The ranks are forked from it, and it from ``server``, so that none of them imports torch: only
    test_ranks.py's Ctrl-C and curve of two ranks are of ranks that are started in the product's way."""
    process = server().Process(target=_launcher, args=(words, errors, output, before))
    process.start()
    return process


def _launcher(words, errors, output, before):
    os.setsid()
    fork_ranks()
    if before is not None:
        before()
    code = command("train_main", words, errors, output)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def fork_ranks():
    """Lets this process, which ``server`` has forked, fork the ranks that it starts."""
    fork = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda _: fork


def wait_for_save(folder, process):
    """Waits until the run in ``folder`` has saved its first checkpoint or its process has ended."""
    deadline = time.monotonic() + 100
    while not list(folder.glob("checkpoints/step-????????")) and process.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)


def command(main, words, errors=os.devnull, output=os.devnull):
    """Runs ``main`` of imnet.cli on ``words`` as the command does, with the standard streams in these files."""
    from imnet import cli

    for number, name, file in ((1, "stdout", output), (2, "stderr", errors)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOCTTY, 0o666), number)
        setattr(sys, name, open(number, "w", 1 if number == 2 else -1, closefd=False))  # noqa: SIM115
    sys.argv = [main, *words]
    return getattr(cli, main)()


def finished(processes):
    """Waits for the processes; returns their exit codes. One that hangs is killed, else pytest would wait for it."""
    for process in processes:
        process.join(120)
        process.kill()
    return [process.exitcode for process in processes]


@pytest.fixture
def tiny():
    return TINY


@pytest.fixture
def shared():
    """The folder of shared data; skips the test and names the folder if it is absent."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not on this machine")
    return folder
