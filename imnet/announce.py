"""What a run says of itself: the header on the console, run.json, evaluation.json."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import imnet_kernels.tier
import torch

from imnet import checkpoint, data, report, runfolder
from imnet.data.order import micro_batches
from imnet.evaluate import Evaluation
from imnet.files import write_atomic, write_json
from imnet.recipe_json import config_hash, to_dict

if TYPE_CHECKING:
    from imnet.trainer import Trainer


def print_header(t: Trainer, found: checkpoint.Checkpoint | None) -> None:
    assert t.folder is not None
    r, place, say = t.recipe, t.place, t.console.say
    per_rank = math.ceil(r.data.batch_images / t.world.size)
    passes = len(micro_batches(torch.arange(per_rank), t.options.micro_batch_images))
    parameters = sum(p.numel() for p in t.step_fn.params)
    say(f"recipe     {r.name}: {r.model}, {parameters:,} parameters, {r.epochs} epochs")
    train, test = len(t.train_data), len(t.test_data)
    say(f"data       {r.data.name}: {train:,} train, {test:,} test images")
    say(f"pipeline   {t.train_data.kind} ({t.pipeline_reason}): {t.train_data.where}")
    where = f"{t.world.size} x {place.device.type}" if t.world.size > 1 else str(place.device)
    say(f"device     {where}, {place.precision} ({place.reason}), {t.threads} threads a process")
    shares = f"{t.world.size} rank(s) x {passes} pass(es) x {per_rank // passes}"
    say(f"batch      {r.data.batch_images} images a step: {shares}")
    say(f"step       {t.execution.reason}")
    tiers = ", ".join(f"{name} {tier}" for name, (tier, _) in _tiers(t).items())
    say(f"kernels    {tiers}")
    say(f"run folder {t.folder.path}")
    for line in found.skipped if found else ():
        say(f"skipped    checkpoint {line}")
    if found is not None:
        say(f"resuming   at step {t.step} of {t.num_steps} from {found.path.name}")


def _tiers(t: Trainer) -> dict[str, tuple[str, str]]:
    return imnet_kernels.tier.report(t.place.device.type)


def run_values(t: Trainer, status: str) -> dict[str, Any]:
    return {
        "status": status,
        "config_hash": config_hash(t.recipe, t.place.precision),
        "recipe": to_dict(t.recipe),
        "precision": t.place.precision,
        "device": str(t.place.device.type),
        "num_ranks": t.world.size,
        "execution": vars(t.execution),
        "kernels": {k: {"tier": v, "reason": why} for k, (v, why) in _tiers(t).items()},
        "data": {
            "name": t.dataset.name,
            "fingerprint": t.dataset.fingerprint,
            "train_images": len(t.train_data),
            "test_images": len(t.test_data),
            "class_names": list(t.dataset.class_names),
        },
        "pipeline": {"kind": t.train_data.kind, "reason": t.pipeline_reason},
        "parameters": sum(p.numel() for p in t.step_fn.params),
        "seconds": round(t.seconds, 3),
        "warm_up_s": round(t.warm_up_s, 3),
        "skipped_steps": t.skipped_steps,
        "bad_images": t.bad_images,
    } | runfolder.environment()


def write_evaluation(path: Path, result: Evaluation, dataset: data.DataSet, top1_flip: float | None = None) -> None:
    """evaluation.json and worst.png of a run folder."""
    names = list(dataset.class_names)
    # Not asdict: it copies the confusion matrix entry by entry, a second for 1000 classes.
    values = vars(result) | {"top1_flip": top1_flip, "class_names": names}
    rows = [row["index"] for row in result.worst]
    captions = [f"{names[w['label']]}, not {_name(names, w['predicted'])}" for w in result.worst]
    write_atomic(path / "worst.png", report.contact_sheet(dataset.test.pictures(rows), captions))
    write_json(path / "evaluation.json", values)


def _name(names: list[str], index: int) -> str:
    return names[index] if index < len(names) else f"output {index}"
