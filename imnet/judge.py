"""Judging a run on the way: the test part and, before it, the images held out of train; what is logged of both."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from imnet.evaluate import Evaluation, evaluate
from imnet.run_state import RunState, Setup
from imnet.step import TrainStep

NAMES = {"val": "validation", "eval": "test"}
"""Kinds of lines in metrics.jsonl, and what people call the images."""


@dataclass(frozen=True)
class Judged:
    """One part of the data at one moment; ``seconds`` is what judging it took."""

    kind: str
    result: Evaluation
    seconds: float

    @property
    def values(self) -> dict[str, Any]:
        """For metrics.jsonl."""
        return {"kind": self.kind, "loss": self.result.loss, "top1": self.result.top1, "top5": self.result.top5}

    @property
    def text(self) -> str:
        """For the console."""
        r = self.result
        scores = f"{NAMES[self.kind]} top-1 {r.top1:.2%}  top-5 {r.top5:.2%}  loss {r.loss:.4f}"
        return f"{scores}  ({r.num_images:,} images in {self.seconds:.1f} s"


def judge(setup: Setup, step: TrainStep) -> list[Judged]:
    """The weights as they are, averaged where the recipe averages: on validation images, if any, then on the test's."""
    net = step.ema.averaged if step.ema else step.net
    # Rank 0's running statistics are the ones that are saved; every rank judges its shard with them.
    setup.world.broadcast(list(net.buffers()))
    batch = min(1000, max(setup.recipe.data.batch_images, 256))
    found = []
    for kind, data in (("val", setup.val_data), ("eval", setup.test_data)):
        if data is not None:
            start = time.perf_counter()
            result = evaluate(net, data, setup.place, setup.world, len(setup.dataset.class_names), batch)
            found.append(Judged(kind, result, time.perf_counter() - start))
    return found


def note_best(state: RunState, judged: list[Judged], epoch: int) -> None:
    """The best epoch is chosen on the first part: the test images have no say where others were held out."""
    top1 = judged[0].result.top1
    if top1 > state.best["top1"]:
        state.best = {"top1": top1, "epoch": epoch}


def every_epochs(setup: Setup) -> int:
    """As asked, else about ten times a run, and at most a tenth of its time: an image costs a third of a training
    image."""
    images = sum(len(data) for data in (setup.val_data, setup.test_data) if data is not None)
    by_time = math.ceil(images / (0.3 * len(setup.train_data)))
    return setup.options.eval_every_epochs or max(1, round(setup.recipe.epochs / 10), by_time)
