"""The evaluations of a run during training and once at its end, the best epoch, and early stopping."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from imnet.data.pipelines import Pipeline
from imnet.evaluate import Evaluation, evaluate, evaluation_batch
from imnet.from_recipe import build_pipeline
from imnet.run_state import RunState, Setup
from imnet.step import TrainStep


@dataclass(frozen=True)
class Judged:
    """One evaluation. ``kind`` is that of its line in metrics.jsonl (val: images held out of train; eval: the others),
    ``part`` the name that is printed, ``seconds`` the time that it took."""

    kind: str
    part: str
    result: Evaluation
    seconds: float

    @property
    def values(self) -> dict[str, Any]:
        """The values for the line in metrics.jsonl."""
        return {"kind": self.kind, "loss": self.result.loss, "top1": self.result.top1, "top5": self.result.top5}

    @property
    def text(self) -> str:
        """The text for the console; the caller adds to it and closes the bracket."""
        r = self.result
        scores = f"{self.part} top-1 {r.top1:.2%}  top-5 {r.top5:.2%}  loss {r.loss:.4f}"
        return f"{scores}  ({r.num_images:,} images in {self.seconds:.1f} s"


class Verdicts:
    """Evaluates on one rank; all ranks must call its methods at the same steps."""

    def __init__(self, setup: Setup, step_fn: TrainStep):
        self.setup, self.step_fn = setup, step_fn
        self.newest: Evaluation | None = None
        self.final: Evaluation | None = None
        """The evaluation at the end on a test set that is kept apart from the validation set."""
        parts = (setup.train, setup.val, setup.test)
        self.decoders = [part.decoder for part in parts if part is not None and part.decoder is not None]

    @property
    def net(self) -> nn.Module:
        """The network to evaluate: with EMA weights if the recipe has them."""
        return self.step_fn.ema.averaged if self.step_fn.ema else self.step_fn.net

    def now(self) -> list[Judged]:
        """Evaluate on the images held out of train, if there are any, then on the part that every run is judged on."""
        s = self.setup
        parts = [("eval", s.judged_on.split()[0], s.test)]
        if s.val is not None:
            parts.insert(0, ("val", "validation", s.val))
        found = []
        for kind, part, data in parts:
            start = time.perf_counter()
            result = self._of(self.net, data)
            found.append(Judged(kind, part, result, time.perf_counter() - start))
        self.newest = found[-1].result
        return found

    def in_the_end(self, state: RunState) -> None:
        """Evaluate the raw weights if there is an EMA, and the final test set if there is one, which was not used until
        now; the figures are noted in ``state``."""
        s = self.setup
        if self.step_fn.ema is not None:
            assert self.newest is not None
            raw = self._of(self.step_fn.net, s.test)
            state.last_epoch = {"averaged": self.newest.figures(), "raw": raw.figures()}
        if s.dataset.final is None:
            return
        data = build_pipeline(s.recipe, s.options, s.dataset, s.dataset.final, s.place)
        self.decoders += [] if data.decoder is None else [data.decoder]
        self.final = self._of(self.net, data)
        often = (state.final or {}).get("judged", 0) + 1
        state.final = self.final.figures() | {"epoch": state.stopped or s.recipe.epochs, "judged": often}

    def _of(self, net: nn.Module, data: Pipeline) -> Evaluation:
        s = self.setup
        # Rank 0's running statistics are the ones that are saved, so every rank evaluates its shard with them.
        s.world.broadcast(list(net.buffers()))
        batch = evaluation_batch(s.recipe.data.batch_images)
        return evaluate(net, data, s.place, s.world, len(s.dataset.class_names), batch)

    def note_bad_images(self, state: RunState) -> str:
        """Note in ``state`` how many pictures of all ranks and splits could not be decoded and were replaced by others.
        Returns a line with this rank's first one if there are new ones, else ""."""
        if not self.decoders:
            return ""
        count = torch.tensor(float(sum(len(d.bad) for d in self.decoders)), device=self.setup.place.device)
        before, state.bad_images = state.bad_images, int(self.setup.world.all_reduce(count))
        first = next((f"; picture {i}: {why}" for d in self.decoders for i, why in d.bad.items()), "")
        told = f"left out   {state.bad_images} picture(s) that cannot be decoded{first}"
        return told if state.bad_images > before else ""


def note_best(state: RunState, judged: list[Judged], epoch: int) -> None:
    """Update the best epoch from the first evaluation, so that test images do not choose it if others were held out."""
    top1 = judged[0].result.top1
    if top1 > state.best["top1"]:
        state.best = state.best | {"top1": top1, "epoch": epoch}


def stop_early(state: RunState, setup: Setup, epoch: int) -> str:
    """Stop the run if its top-1 has not improved for the recipe's ``patience``: note it in ``state`` and return a line
    for the console, else "".

    It depends only on values that a checkpoint holds, so that a resumed run stops at the same epoch.
    """
    patience, best, epochs = setup.recipe.patience, state.best, setup.recipe.epochs
    if patience is None or epoch == epochs or epoch - best["epoch"] < patience:
        return ""
    state.stopped = epoch
    why = f"no better top-1 than epoch {best['epoch']}'s {best['top1']:.2%}"
    return f"stopped    at epoch {epoch} of {epochs} by --patience; {setup.chosen_on}: {why}"


def every_epochs(setup: Setup) -> int:
    """Epochs between two evaluations: the option's value, else 1 with --patience, else a number that gives about ten
    evaluations per run, which take at most a tenth of its time if an image costs a third of a training image."""
    if setup.recipe.patience is not None:
        return setup.options.eval_every_epochs or 1
    images = sum(len(data) for data in (setup.val, setup.test) if data is not None)
    by_time = math.ceil(images / (0.3 * len(setup.train)))
    return setup.options.eval_every_epochs or max(1, round(setup.recipe.epochs / 10), by_time)
