"""Resumes a run from its newest good checkpoint."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from imnet import change, checkpoint
from imnet.errors import UsageError
from imnet.files import exists
from imnet.run_state import NO_BEST, RunState, Setup
from imnet.runfolder import RunFolder
from imnet.step import TrainStep


def resume(
    folder: RunFolder | None, setup: Setup, state: RunState, step_fn: TrainStep, run: dict[str, Any] | None
) -> tuple[checkpoint.Checkpoint | None, list[str]]:
    """Load the newest good checkpoint on every rank; rank 0 chooses it from ``folder``, whose run.json is ``run``.

    Returns the checkpoint (None for a new run) and lines for the header, e.g. about a changed configuration or changed
    data. Writes nothing.
    """
    _check_newest(setup)
    found, step, notes = None, 0, []
    if folder is not None:
        course = change.Course(setup.recipe, setup.place.precision, setup.order, setup.dataset.fingerprint)
        how = (folder.path, run or {}, course, step_fn.net.state_dict())
        found, step, notes = change.enter(*how, allowed=setup.options.allow_change)
        if found is not None:
            notes += [*_other_ranks(setup, run or {}), *_lost_lines(folder, found.state["metrics_bytes"])]
    # The whole checkpoint is sent, since other machines may not have the folder.
    found, step = setup.world.share((found, step))
    if found is None:
        return None, notes
    saved = found.state
    step_fn.load_tensors(found.tensors)
    if saved["scaler"] or not step_fn.scaler.is_enabled():
        step_fn.scaler.load_state_dict(saved["scaler"])
    for name in ("seconds", "best", "skipped_steps", "metrics_bytes", "loss_images"):
        setattr(state, name, saved[name])
    state.step = step
    if saved["config_hash"] == setup.config_hash:  # a changed run may have more patience
        state.stopped = saved.get("stopped")
    if saved["data_fingerprint"] != setup.dataset.fingerprint:
        # The old one was measured on other images. Whoever reads the metrics begins after this epoch as well.
        state.best = NO_BEST | {"since": step / setup.order.steps_per_epoch}
    if setup.world.is_main:
        # Checkpoints of older versions do not have the second.
        sums = (saved["loss_sum"], saved.get("right_sum", math.nan))
        state.sums.copy_(torch.tensor(sums, dtype=torch.float64))
    return found, notes


def _check_newest(setup: Setup) -> None:
    """Raise UsageError on every rank if some rank finds a later checkpoint at --out than rank 0 does.

    That happens if machines without a shared folder got their ranks in another order than before. Rank 0 would then
    start again, or train some epochs a second time.
    """
    assert setup.options.out is not None
    newest = checkpoint.newest(Path(setup.options.out) / "checkpoints")
    told = setup.world.gather("" if newest is None else newest.name)
    latest = max(told)
    if latest > told[0]:
        what = f"rank {told.index(latest)} has {latest} on its machine, rank 0 has {told[0] or 'no checkpoint'}"
        hint = "start rank 0, which alone writes the run folder, on the machine that has it, or choose another --out"
        raise UsageError(what, file=setup.options.out, hint=hint)


def _other_ranks(setup: Setup, run: dict[str, Any]) -> list[str]:
    was, now = run.get("num_ranks", setup.world.size), setup.world.size
    if was == now:
        return _other_threads(setup, run)
    norms = setup.has_batch_norm and not setup.recipe.comm.sync_bn
    told = "; BatchNorm takes its statistics over other numbers of images (see --sync-bn)" if norms else ""
    return [f"ranks      {now}, were {was}{told}"]


def _other_threads(setup: Setup, run: dict[str, Any]) -> list[str]:
    was, now = run.get("threads", setup.threads), setup.threads
    if was == now or setup.place.device.type != "cpu":
        return []
    return [f"threads    {now}, were {was}: sums come in another order, so the last bits differ from here"]


def _lost_lines(folder: RunFolder, known: int) -> list[str]:
    """A header line if metrics.jsonl is shorter than it was when the checkpoint was saved."""
    left = folder.metrics.stat().st_size if exists(folder.metrics) else 0
    lost = f"metrics    {known - left:,} bytes of metrics.jsonl are gone: curves and the best epoch are of what is left"
    return [lost] if left < known else []
