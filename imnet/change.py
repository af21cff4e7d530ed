"""--allow-change: which changes of configuration a run can continue with, decided before anything is written.

Weights, momenta and averages are taken over as they are; a configuration into which they do not fit is refused. The
step counter counts batches of the old size, so it is converted by the number of images seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from imnet import checkpoint
from imnet.checkpoint import Checkpoint
from imnet.data.order import Order
from imnet.errors import UsageError
from imnet.recipe import Recipe
from imnet.recipe_json import check_hash, config_hash, to_dict
from imnet.runfolder import data_of, difference, is_complete, recipe_of

ANEW = "choose another --out to start anew"
EDGE = "let the old command reach the end of an epoch first, or choose another --out"


@dataclass(frozen=True)
class Course:
    """Everything that determines the steps of a run."""

    recipe: Recipe
    precision: str
    order: Order
    fingerprint: str
    """Fingerprint of the data."""

    @property
    def num_steps(self) -> int:
        return self.recipe.epochs * self.order.steps_per_epoch


@dataclass(frozen=True)
class Origin(Course):
    """The course that a checkpoint was trained on, and its step."""

    step: int

    @property
    def position(self) -> tuple[int, int]:
        """(completed epochs, images seen in the next epoch)."""
        epoch, batches = divmod(self.step, self.order.steps_per_epoch)
        return epoch, batches * self.order.batch_images


def enter(
    path: Path, run: Mapping[str, Any], new: Course, net: Mapping[str, Tensor], *, allowed: bool
) -> tuple[Checkpoint | None, int, list[str]]:
    """Return the newest good checkpoint of the run folder ``path``, whose run.json is ``run``; the step of ``new`` at
    which it continues; and header lines about a change, if one is ``allowed``. ``net`` is the new network's state dict.

    Raises UsageError if the run cannot continue, and DataError if no checkpoint is good, or none belongs to the run.
    Nothing is written, so that a dry run can use this too.
    """
    found = checkpoint.load(path / "checkpoints", checkpoint.of_run(run or None))
    if found is None:
        return None, 0, _from_the_start(path, run)
    saved, wanted = found.state, config_hash(new.recipe, new.precision)
    other_data = saved["data_fingerprint"] != new.fingerprint
    if saved["config_hash"] == wanted and not other_data:
        return found, saved["step"], []
    old = origin(found, run, path)
    if config_hash(old.recipe, old.precision) == wanted and not other_data:  # see runfolder.check_same
        return replace(found, state={**saved, "config_hash": wanted}), saved["step"], []
    if other_data and not allowed:
        more = "" if old.position[0] < new.recipe.epochs else " and more --epochs"
        raise UsageError("the data differ from the checkpoint's", file=found.path, hint=f"add --allow-change{more}")
    step = plan(old, new, found.tensors, net)
    return found, step, notes(old, new, step)


def _from_the_start(path: Path, run: Mapping[str, Any]) -> list[str]:
    """Header lines of a run without a checkpoint. UsageError if it is complete and evaluated, because training again
    would replace its metrics, evaluation and report."""
    if is_complete(path):
        raise UsageError("the run is complete, and its checkpoints are gone", file=path, hint=ANEW)
    return ["resuming   from the first step, since the folder has no checkpoint"] if run else []


def origin(found: Checkpoint, run: Mapping[str, Any], folder: Path) -> Origin:
    """The origin of a checkpoint of the run, looked up in ``folder``'s run.json, which keeps every configuration of the
    run."""
    saved = found.state
    entry = next(e for e in (entry_of(run), *(run.get("before") or ())) if e["config_hash"] == saved["config_hash"])
    recipe = recipe_of(entry, folder)
    check_hash(entry, recipe, folder)
    d, images = recipe.data, saved.get("train_images", entry["train_images"])
    order = Order(images, d.batch_images, recipe.seed, drop_last=d.drop_last)
    return Origin(recipe, entry["precision"], order, saved["data_fingerprint"], saved["step"])


def entry_of(run: Mapping[str, Any]) -> dict[str, Any]:
    """The part of run.json that is kept as an earlier configuration when the run gets a new one."""
    kept = {key: run[key] for key in ("config_hash", "recipe", "precision")}
    return kept | {"train_images": data_of(run)["train_images"]}


def history(run: Mapping[str, Any] | None, recipe: Recipe, precision: str) -> tuple[dict[str, Any], ...]:
    """The earlier configurations of a folder whose run.json is ``run`` and which continues with ``recipe``; the oldest
    first."""
    if run is None:
        return ()
    before = list(run.get("before") or [])
    if run["config_hash"] != config_hash(recipe, precision):
        before.append(entry_of(run))
    return tuple(before)


def plan(old: Origin, new: Course, tensors: Mapping[str, Mapping[str, Tensor]], net: Mapping[str, Tensor]) -> int:
    """Return the step of ``new`` at which to continue from a checkpoint of ``old`` with ``tensors``.

    Raises UsageError if the network, the optimiser or the position within an epoch cannot be taken over, or if nothing
    is left to train.
    """
    _check_network(tensors["model"], net)
    _check_optimiser(old.recipe, new.recipe)
    step = _convert(old, new)
    if step >= new.num_steps:
        epochs = step / new.order.steps_per_epoch
        what = f"got epochs = {new.recipe.epochs}, and {epochs:g} are trained already"
        raise UsageError(what, hint="give more --epochs, or choose another --out")
    return step


def _check_network(saved: Mapping[str, Tensor], net: Mapping[str, Tensor]) -> None:
    for name in dict.fromkeys([*net, *saved]):
        shapes = ["x".join(map(str, t[name].shape)) or "one number" if name in t else "absent" for t in (saved, net)]
        if shapes[0] != shapes[1]:
            what = f"the weights are of another network: {name} was {shapes[0]}, is {shapes[1]}"
            raise UsageError(what, hint=ANEW)


def _check_optimiser(old: Recipe, new: Recipe) -> None:
    """Raise UsageError if the optimiser's state does not fit: it is saved by each parameter's number, which depends on
    the parameter groups."""
    facts = {
        "optim.kind": (old.optim.kind, new.optim.kind),
        "optim.decay_norms": (old.optim.decay_norms, new.optim.decay_norms),
        "optim.decay_biases": tuple(getattr(r.optim, "decay_biases", True) for r in (old, new)),
        "freeze": (old.freeze, new.freeze),
        "body_lr": tuple("1" if r.body_lr == 1 else "below 1" if r.body_lr < 1 else "above 1" for r in (old, new)),
        "momentum": tuple("some" if getattr(r.optim, "momentum", 1) else "none" for r in (old, new)),
    }
    for name, (was, now) in facts.items():
        if was != now:
            what = f"the optimiser's state cannot be taken over: {name} was {was}, is {now}"
            raise UsageError(what, hint=ANEW)


def _convert(old: Origin, new: Course) -> int:
    """Return the checkpoint's step as a step of ``new``. Raises UsageError within an epoch, unless the order of the
    images is the same and a new batch ends where the checkpoint's last batch did."""
    epoch, images = old.position
    order = new.order
    if images == 0:
        return epoch * order.steps_per_epoch
    where = f"the checkpoint lies {images:,} images into epoch {epoch + 1}"
    was = (old.order.num_images, old.order.seed, old.fingerprint, old.recipe.data.sampler)
    if was != (order.num_images, order.seed, new.fingerprint, new.recipe.data.sampler):
        raise UsageError(f"{where}, whose order the data and the seed decide, and the sampler", hint=EDGE)
    if images % order.batch_images:
        what = f"{where}, which no number of batches of {order.batch_images} ends at"
        raise UsageError(what, hint=f"take a --batch-size that divides {images}, or {EDGE}")
    return epoch * order.steps_per_epoch + images // order.batch_images


def notes(old: Origin, course: Course, step: int) -> list[str]:
    """Header lines that describe the change."""
    new = course.recipe
    was = to_dict(old.recipe) | {"precision": old.precision}
    told = difference(was, to_dict(new) | {"precision": course.precision}, most=12)
    lines = [f"changed    {told or 'the data'}"]
    epoch = step / course.order.steps_per_epoch
    if step != old.step:
        lines.append(f"counter    step {old.step} is step {step} now: epoch {epoch:g}, by the images seen")
    rates = [
        r.lr_at(s, o.steps_per_epoch) for r, s, o in ((old.recipe, old.step, old.order), (new, step, course.order))
    ]
    if rates[0] != rates[1] or old.recipe.epochs != new.epochs:
        last = old.recipe.lr_at(old.step - 1, old.order.steps_per_epoch)
        lines.append(
            f"schedule   {new.schedule.kind} over {new.epochs} epoch{'s' * (new.epochs != 1)}, "
            f"entered at epoch {epoch:g}: lr {rates[1]:.4g} from here (the last step had {last:.4g})"
        )
    if new.ema_decay is not None and old.recipe.ema_decay is None:
        lines.append("average    EMA begins at the weights of this moment")
    return lines
