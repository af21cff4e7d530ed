"""The descriptions of a run: the header on the console, run.json and evaluation.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import imnet_kernels.tier
import torch

from imnet import checkpoint, data, device, fits, report
from imnet.data.base import EncodedSplit
from imnet.data.order import micro_batches
from imnet.data.pipelines.batches import as_tensor
from imnet.environment import environment
from imnet.evaluate import Evaluation
from imnet.files import write_atomic, write_json
from imnet.launch import local_size
from imnet.recipe_json import to_dict
from imnet.resources import free_memory_bytes
from imnet.run_state import RunState, Setup


def sizes(train: int, val: int | None, test: int, final: int | None, unit: str = "") -> str:
    """The numbers of images of a set's parts, in words. With a ``final`` part, ``test`` is the set's validation set."""
    held_out = "" if val is None else f"{val:,} validation, "
    more = "" if final is None else f" (its validation set), {final:,} final (its test set)"
    return f"{train:,} train, {held_out}{test:,} test{unit}{more}"


def header(
    setup: Setup, state: RunState, folder: Path, found: checkpoint.Checkpoint | None, notes: list[str]
) -> list[str]:
    """The lines that are printed when a run begins; ``notes`` are the lines from resuming, e.g. about a change."""
    r, place, world = setup.recipe, setup.place, setup.world
    per_rank = math.ceil(r.data.batch_images / world.size)
    passes = len(micro_batches(torch.arange(per_rank), setup.options.micro_batch_images))
    val, final = (None if part is None else len(part) for part in (setup.val, setup.dataset.final))
    counts = sizes(len(setup.train), val, len(setup.test), final, " images")
    where = f"{world.size} x {place.device.type}" if world.size > 1 else str(place.device)
    shares = f"{world.size} rank(s) x {passes} pass(es) x {per_rank // passes}"
    faster = [f"{name} {tier}" for name, (tier, _) in _tiers(setup).items() if tier != "reference"]
    tiers = f"{', '.join(faster)}; all else is torch's own" if faster else "torch's own"
    lines = [
        f"recipe     {r.name}: {r.model}, {setup.parameters:,} parameters, {r.epochs} epoch{'s' * (r.epochs != 1)}",
        f"data       {r.data.name}: {counts}",
        *(f"note       {note}" for note in setup.dataset.notes),
        f"pipeline   {setup.train.kind} ({setup.pipeline_reason}): {setup.train.where}",
        f"device     {where}, {place.precision} ({place.reason}), {setup.threads} threads a process",
        *_contended(setup),
        f"batch      {r.data.batch_images} images a step: {shares}",
        *_scaled_lr(setup),
        f"step       {setup.execution.reason}",
        f"kernels    {tiers}",
        *_memory(setup, math.ceil(per_rank / passes)),
        f"run folder {folder}",
    ]
    if setup.weights is not None:
        lines.insert(1, f"weights    {setup.weights['source']}: {setup.weights['text']}")
    lines += _balance(setup)
    lines += _norms(setup, math.ceil(per_rank / passes))
    if found is None:
        return [*lines, *notes]
    lines += [f"skipped    checkpoint {line}" for line in found.skipped]
    return [*lines, *notes, f"resuming   at step {state.step} of {setup.num_steps} from {found.path.name}"]


def _contended(setup: Setup) -> list[str]:
    """A line about other programs on the cores of a run on a CPU; the run's other ranks are none."""
    if setup.place.device.type != "cpu" or (local_size() or setup.world.size) > 1:
        return []
    return [f"note       {told}" for told in device.contended(setup.threads)]


def _scaled_lr(setup: Setup) -> list[str]:
    r = setup.recipe
    if r.lr_base_images is None:
        return []
    return [f"lr         {r.optim.lr:g} for {r.lr_base_images} images a step, scaled linearly: {r.scaled_lr:g}"]


def _balance(setup: Setup) -> list[str]:
    """A line about class balancing, if the recipe has it."""
    counts = torch.bincount(as_tensor(setup.dataset.train.labels))
    counts = counts[counts > 0]
    told = f"classes    of {int(counts.min()):,} to {int(counts.max()):,} images"
    if setup.recipe.data.sampler == "balanced":
        return [f"{told}, each drawn {len(setup.train) / len(counts):,.4g} times an epoch (--sampler balanced)"]
    if setup.recipe.class_weights == "balanced":
        low, high = (float(len(setup.train) / (len(counts) * n)) for n in (counts.max(), counts.min()))
        return [f"{told}, whose losses weigh {high:.3g} to {low:.3g} (--class-weights balanced)"]
    return []


def _norms(setup: Setup, images: int) -> list[str]:
    """A line about the images that BatchNorm takes statistics of, if that is not simply the batch."""
    batch, ranks = setup.recipe.data.batch_images, setup.world.size
    synced = ranks > 1 and setup.recipe.comm.sync_bn
    images = min(batch, images * ranks) if synced else images
    if not setup.has_batch_norm or (images == batch and not synced):
        return []
    told = f"batchnorm  statistics of {images} images"
    if images < batch:
        told += f" a pass, not of the batch's {batch}: not quite the experiment of one rank in one pass"
    return [told + (" over all ranks (--sync-bn)" if synced else "; --sync-bn takes all ranks'" if ranks > 1 else "")]


def _memory(setup: Setup, images: int) -> list[str]:
    """A line if the memory of a CPU's host will not suffice for ``images`` at once on each of its ranks."""
    r, o, ranks = setup.recipe, setup.options, local_size() or setup.options.num_ranks
    networks, shape = max(1, len(setup.train.setting.bands)), (r.data.channels, r.input_px, r.input_px)
    # No network of imnet keeps more than 8,500 times the bytes of its input, and a weight takes at most 24 bytes (five
    # fp32 values and two halves), so most runs need no estimate.
    most = ranks * (24 * networks * setup.parameters + 10_000 * 4 * images * math.prod(shape))
    if setup.place.device.type != "cpu" or most < free_memory_bytes():
        return []
    try:
        needed = fits.memory(r, o, images, setup.place.precision, setup.world.size, networks)
    except RuntimeError:
        return []  # a network that reads values cannot run on the meta device, which has none
    return [f"memory     {told}" for told in fits.beyond(needed, ranks, 4 * networks * setup.parameters)]


def _tiers(setup: Setup) -> dict[str, tuple[str, str]]:
    return imnet_kernels.tier.report(setup.place.device.type)


def run_values(setup: Setup, state: RunState, status: str) -> dict[str, Any]:
    """The content of run.json."""
    return {
        "status": status,
        "config_hash": setup.config_hash,
        "recipe": to_dict(setup.recipe),
        "before": list(setup.before),
        "precision": setup.place.precision,
        "device": setup.place.device.type,
        "num_ranks": setup.world.size,
        "execution": vars(setup.execution),
        "kernels": {k: {"tier": tier, "reason": why} for k, (tier, why) in _tiers(setup).items()},
        "data": {
            "name": setup.dataset.name,
            "fingerprint": setup.dataset.fingerprint,
            "train_images": len(setup.train),
            **({} if setup.val is None else {"val_images": len(setup.val)}),
            "test_images": len(setup.test),
            "encoded": isinstance(setup.dataset.test, EncodedSplit),
            "class_names": list(setup.dataset.class_names),
            "judged_on": setup.judged_on,
            "copies": dict(setup.dataset.copies),
        },
        "best": state.best | {"chosen_on": setup.chosen_on},
        "stopped": state.stopped,
        "last_epoch": state.last_epoch,
        "final": state.final,
        "pipeline": {"kind": setup.train.kind, "reason": setup.pipeline_reason},
        "parameters": setup.parameters,
        "weights": setup.weights,
        "seconds": round(state.seconds, 3),
        "warm_up_s": round(state.warm_up_s, 3),
        "skipped_steps": state.skipped_steps,
        "bad_images": state.bad_images,
    } | environment()


def write_evaluation(
    path: Path,
    result: Evaluation,
    dataset: data.DataSet,
    top1_flip: float | None = None,
    final: Evaluation | None = None,
) -> None:
    """Write evaluation.json and worst.png of a run folder; ``final`` is the test set's, if a validation set chooses."""
    names = list(dataset.class_names)
    values = result.as_dict(names) | {"top1_flip": top1_flip, "final": final.figures() if final else None}
    rows = [row["index"] for row in result.worst]
    captions = [_caption(names, row["label"], row["predicted"]) for row in result.worst]
    write_atomic(path / "worst.png", report.contact_sheet(dataset.test.pictures(rows), captions))
    write_json(path / "evaluation.json", values)


def _caption(names: list[str], label: int, predicted: int) -> str:
    """The caption of one of the worst images; an image can have a large loss although its prediction is correct."""
    if predicted == label:
        return f"{names[label]}, rightly"
    return f"{names[label]}, not {names[predicted] if predicted < len(names) else f'output {predicted}'}"
