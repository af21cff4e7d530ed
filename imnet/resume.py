"""What a checkpoint holds of a training run, and how a run takes it up again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from imnet import checkpoint
from imnet.errors import UsageError
from imnet.recipe_json import config_hash

if TYPE_CHECKING:
    from imnet.trainer import Trainer


def save(t: Trainer) -> None:
    t.tick()
    total = t.world.all_reduce(t.loss_sum.clone())
    if t.folder is None or t.log is None:
        return
    state = {
        "step": t.step,
        "seconds": t.seconds,
        "loss_sum": float(total),
        "loss_images": t.loss_images,
        "best": t.best,
        "skipped_steps": t.skipped_steps,
        "metrics_bytes": t.log.sync(),
        "data_fingerprint": t.dataset.fingerprint,
        "config_hash": config_hash(t.recipe, t.place.precision),
        "scaler": t.step_fn.scaler.state_dict(),
        "versions": {"torch": torch.__version__},
    }
    checkpoint.save(t.folder.checkpoints, t.step, t.step_fn.tensors(), state)


def resume(t: Trainer) -> checkpoint.Checkpoint | None:
    """Take up the newest good checkpoint on every rank; rank 0 chooses it."""
    found = checkpoint.load(t.folder.checkpoints) if t.folder is not None else None
    path = t.world.share(found.path if found else None)
    if path is None:
        return None
    found = found or checkpoint.load_one(path)
    state = found.state
    if state["data_fingerprint"] != t.dataset.fingerprint and not t.options.allow_change:
        raise UsageError("the data differ from the checkpoint's", file=path, hint="--allow-change, or another --out")
    t.step_fn.load_tensors(found.tensors)
    t.step_fn.scaler.load_state_dict(state["scaler"])
    t.step, t.seconds, t.best = state["step"], state["seconds"], state["best"]
    t.skipped_steps, t.metrics_bytes = state["skipped_steps"], state["metrics_bytes"]
    t.loss_images = state["loss_images"]
    if t.world.is_main:
        t.loss_sum.fill_(state["loss_sum"])
    return found
