"""What a checkpoint holds of a training run, and how a run takes it up again."""

from __future__ import annotations

from pathlib import Path

import torch

from imnet import checkpoint
from imnet.errors import UsageError
from imnet.run_state import RunState, Setup
from imnet.step import TrainStep


def save(checkpoints: Path, setup: Setup, state: RunState, step_fn: TrainStep, loss_sum: float) -> None:
    """Rank 0's checkpoint; ``loss_sum`` is that of all ranks."""
    values = {
        "step": state.step,
        "seconds": state.seconds,
        "loss_sum": loss_sum,
        "loss_images": state.loss_images,
        "best": state.best,
        "skipped_steps": state.skipped_steps,
        "metrics_bytes": state.metrics_bytes,
        "data_fingerprint": setup.dataset.fingerprint,
        "config_hash": setup.config_hash,
        "scaler": step_fn.scaler.state_dict(),
        "versions": {"torch": torch.__version__},
    }
    checkpoint.save(checkpoints, state.step, step_fn.tensors(), values)


def resume(checkpoints: Path | None, setup: Setup, state: RunState, step_fn: TrainStep) -> checkpoint.Checkpoint | None:
    """Take up the newest good checkpoint on every rank; rank 0, which has the folder, chooses it."""
    found = checkpoint.load(checkpoints) if checkpoints is not None else None
    path = setup.world.share(found.path if found else None)
    if path is None:
        return None
    found = found or checkpoint.load_one(path)
    saved = found.state
    if saved["data_fingerprint"] != setup.dataset.fingerprint and not setup.options.allow_change:
        raise UsageError("the data differ from the checkpoint's", file=path, hint="--allow-change, or another --out")
    step_fn.load_tensors(found.tensors)
    step_fn.scaler.load_state_dict(saved["scaler"])
    for name in ("step", "seconds", "best", "skipped_steps", "metrics_bytes", "loss_images"):
        setattr(state, name, saved[name])
    if setup.world.is_main:
        state.loss_sum.fill_(saved["loss_sum"])
    return found
