"""Runs killed at random moments, by each signal and in each way of training, end in the uninterrupted run's weights."""

import dataclasses
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest

from imnet import load_run
from imnet.recipe import SGD, Augment, Cosine, Data, Recipe

from .conftest import finished, options, run_in_process, start_ranks
from .test_resume import digests

PLAIN = Recipe(
    name="kills",
    model="speednet",
    model_options={"width": 8},
    data=Data(name="shapes", image_px=12, num_classes=4, batch_images=16, train_images=256, test_images=33),
    augment=Augment(crop_pad_px=1, hflip="random", mean=(0.5,), std=(0.25,)),
    optim=SGD(lr=0.05, momentum=0.9, weight_decay=5e-4),
    schedule=Cosine(warmup_epochs=0.5),
    epochs=4,
    seed=11,
)
MIXED = dataclasses.replace(PLAIN, mixup_alpha=0.2, cutmix_alpha=1.0)
# Way of training -> (recipe, options, ranks).
WAYS = {
    "plain": (PLAIN, {}, 1),
    "EMA": (dataclasses.replace(PLAIN, ema_decay=0.9), {}, 1),
    "mixup": (MIXED, {"pipeline": "host", "workers": 1}, 1),
    "micro-batches": (PLAIN, {"micro_batch_images": 5}, 1),
    "2 ranks": (PLAIN, {}, 2),
}
SLOW = ("EMA", "mixup", "micro-batches")
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def start(way, folder):
    recipe, more, size = WAYS[way]
    return start_ranks(run_in_process, *[(recipe, options(folder, checkpoint_every_steps=7, **more))] * size)


def listening(process):
    """Whether the process handles SIGTERM yet; before that there is nothing to save."""
    try:
        caught = next(s for s in Path(f"/proc/{process.pid}/status").read_text().splitlines() if s.startswith("SigCgt"))
    except (OSError, StopIteration):
        return False
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


def kill(processes, number, delay_s):
    """Sends ``number`` to all processes once they handle signals; returns whether it hit a run before its end."""
    # One kill -9 in four does not wait, so it may come while a process is still starting.
    patient = number != signal.SIGKILL or random.random() > 0.25
    while patient and not all(listening(p) or not p.is_alive() for p in processes):
        time.sleep(0.002)
    time.sleep(delay_s)
    hit = all(p.is_alive() for p in processes)
    for process in processes:
        if process.is_alive():
            os.kill(process.pid, number)
    for process in processes:
        process.join(60)
    codes = {process.exitcode for process in processes}
    assert codes <= {0, 75, -signal.SIGKILL if number == signal.SIGKILL else 0}, codes
    return hit and codes != {0}


@pytest.mark.parametrize("kills", [3, pytest.param(40, marks=pytest.mark.nightly)])
# EMA and micro-batches are marked slow, since test_keep.py and test_resume.py kill such runs too.
@pytest.mark.parametrize("way", [pytest.param(w, marks=pytest.mark.slow) if w in SLOW else w for w in WAYS])
def test_no_kill_changes_the_weights(way, kills, tmp_path):
    assert set(finished(start(way, tmp_path / "whole"))) == {0}
    took = load_run(tmp_path / "whole").info["seconds"]
    folder, hits, rng = tmp_path / "killed", 0, random.Random()
    numbers = itertools.cycle(SIGNALS)
    for _ in range(10 * kills):
        if hits == kills:
            break
        number = next(numbers)
        # Most delays are long enough for a new checkpoint; otherwise each launch would only repeat the one before.
        delay = rng.uniform(0.2, 0.8) if number == signal.SIGKILL else rng.uniform(0, 0.5)
        if kill(start(way, folder), number, delay * took):
            hits += 1
        else:
            assert digests(folder) == digests(tmp_path / "whole")
            shutil.rmtree(folder)
    assert hits == kills
    assert set(finished(start(way, folder))) == {0}
    assert digests(folder) == digests(tmp_path / "whole")


def test_ranks_that_go_on_between_two_log_lines_write_the_lines_of_the_whole_run(tmp_path):
    """The checkpoint has the sum of all ranks' losses, to which a resumed run adds each rank's next ones."""

    def train(folder):
        more = options(folder, checkpoint_every_steps=7, log_every_steps=32, keep="10")
        assert set(finished(start_ranks(run_in_process, *[(dataclasses.replace(PLAIN, epochs=2), more)] * 2))) == {0}

    train(tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    for path in (tmp_path / "cut" / "checkpoints").glob("step-*"):
        if path.name > "step-00000021":
            shutil.rmtree(path)
    train(tmp_path / "cut")
    assert digests(tmp_path / "cut") == digests(tmp_path / "whole")
