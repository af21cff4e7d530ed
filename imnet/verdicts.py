"""What a run is judged by while it trains, and once at its end."""

from __future__ import annotations

import torch
from torch import nn

from imnet.data.pipelines import Pipeline
from imnet.evaluate import Evaluation, evaluate, evaluation_batch
from imnet.from_recipe import build_pipeline
from imnet.run_state import RunState, Setup
from imnet.step import TrainStep


class Verdicts:
    """The evaluations of one rank; every rank calls them at the same steps."""

    def __init__(self, setup: Setup, step_fn: TrainStep):
        self.setup, self.step_fn = setup, step_fn
        self.newest: Evaluation | None = None
        self.final: Evaluation | None = None
        """Of the test set beside a validation set."""
        self.decoders = [d for d in (setup.train_data.decoder, setup.test_data.decoder) if d is not None]

    @property
    def net(self) -> nn.Module:
        """The weights that count: averaged ones, where the recipe averages."""
        return self.step_fn.ema.averaged if self.step_fn.ema else self.step_fn.net

    def now(self) -> Evaluation:
        """On what judges during training."""
        self.newest = self._of(self.net, self.setup.test_data)
        return self.newest

    def in_the_end(self, state: RunState) -> None:
        """The raw weights beside their average; then the test set beside a validation set, which nothing has looked
        at until now."""
        s = self.setup
        if self.step_fn.ema is not None:
            assert self.newest is not None
            raw = self._of(self.step_fn.net, s.test_data)
            state.last_epoch = {"averaged": self.newest.figures(), "raw": raw.figures()}
        if s.dataset.final is None:
            return
        data = build_pipeline(s.recipe, s.options, s.dataset, s.dataset.final, s.place)
        self.decoders += [] if data.decoder is None else [data.decoder]
        self.final = self._of(self.net, data)
        often = (state.final or {}).get("judged", 0) + 1
        state.final = self.final.figures() | {"epoch": s.recipe.epochs, "judged": often}

    def _of(self, net: nn.Module, data: Pipeline) -> Evaluation:
        s = self.setup
        # Rank 0's running statistics are the ones that are saved; every rank judges its shard with them.
        s.world.broadcast(list(net.buffers()))
        batch = evaluation_batch(s.recipe.data.batch_images)
        return evaluate(net, data, s.place, s.world, len(s.dataset.class_names), batch)

    def bad_images(self) -> tuple[int, str]:
        """Pictures that could not be decoded, over all ranks and splits, and the first of this rank in words."""
        if not self.decoders:
            return 0, ""
        count = torch.tensor(float(sum(len(d.bad) for d in self.decoders)), device=self.setup.place.device)
        first = next((f"; picture {i}: {why}" for d in self.decoders for i, why in d.bad.items()), "")
        return int(self.setup.world.all_reduce(count)), first
