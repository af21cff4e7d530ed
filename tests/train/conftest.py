"""A small recipe that trains in seconds, and fixtures that start a training in its own process, which can be killed."""

import multiprocessing
import os
import signal
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


@pytest.fixture(scope="session")
def spawn():
    """A function start(recipe, options) -> running process, forked from a server that has torch imported already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imnet.trainer", "matplotlib.figure", "matplotlib.backends.backend_svg"])

    def start(recipe, run_options):
        process = context.Process(target=run_in_process, args=(recipe, run_options))
        process.start()
        return process

    return start


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
