"""A finished (or interrupted) run, from Python: ``run.metrics``, ``run.model()``, ``run.evaluate()``."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from imnet import checkpoint, device
from imnet.classifier import Card, Classifier, Picture
from imnet.command import suggest
from imnet.data import AbsentError, DataSet
from imnet.data.order import Order
from imnet.data.pipelines.batches import mean_image
from imnet.errors import DataError, ImnetError, UsageError
from imnet.evaluate import Evaluation, evaluate, evaluation_batch
from imnet.fields import at_least_one
from imnet.from_recipe import build_network, build_pipeline, load_data
from imnet.launch import World
from imnet.metrics import read_metrics
from imnet.recipe import Recipe
from imnet.recipe_json import RESTORE, check_hash
from imnet.recipes import by_name
from imnet.report.read import read_yaml
from imnet.run_options import RunOptions
from imnet.runfolder import bands_in, data_of, read_run, recipe_of
from imnet.start import memory_freed, train


class Run:
    """A run folder. Raises DataError if ``path`` is not one."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(os.path.expanduser(path))  # leaves a home that there is not as it is
        info = read_run(self.path)
        if info is None and (bands := bands_in(self.path)):
            hint = f"give the folder of one band, e.g. {next(iter(bands.values()))}"
            raise DataError("an ensemble, not one run", file=self.path, hint=hint)
        if info is None:
            what = "no run.json: not a run folder"
            raise DataError(what, file=self.path, hint="give the folder of imnet-train --out")
        self.info: dict[str, Any] = info
        self.recipe: Recipe = recipe_of(info, self.path)

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, recipe={self.recipe.name!r}, status={self.info['status']!r})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, as a dict."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def data(self) -> dict[str, Any]:
        """The ``data`` object of run.json: name, fingerprint, number of training images and more."""
        return data_of(self.info, self.path)

    @property
    def unfinished(self) -> list[str]:
        """The note that every command prints if the run has not finished training; else nothing."""
        return [] if self.info["status"] == "complete" else ["note       not at the end of its training"]

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    @device.undisturbed()
    def model(self, which: str | int = "last") -> nn.Module:
        """The network with the newest weights (their EMA if the recipe has one), in eval mode, on the CPU.

        ``which`` may also be ``best`` or the number of an epoch whose checkpoint is kept. Raises DataError if the
        checkpoint is damaged, or is missing from a complete run, rather than silently returning an older one.
        """
        found = self._newest() if which == "last" else checkpoint.verified(self._of_epoch(which), self._own)
        check_hash(self.info, self.recipe, self.path)
        net = build_network(self.recipe)
        averaged = self.recipe.ema_decay is not None and "ema" in found.tensors
        net.load_state_dict(found.tensors["ema" if averaged else "model"])
        return net.eval()

    @property
    def _own(self) -> tuple[str, ...]:
        return checkpoint.of_run(self.info)

    def weights_id(self, which: str | int = "last") -> str:
        """Identifies the weights that ``model`` returns by step and configuration. DataError if there are none."""
        found = checkpoint.newest(self._checkpoints, self._own) if which == "last" else self._of_epoch(which)
        if found is None:
            raise checkpoint.absent(self.info, self.path)
        return f"{found.name} of {self.info['config_hash'][:8]}"

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _newest(self) -> checkpoint.Checkpoint:
        found = checkpoint.load(self._checkpoints, self._own)
        if found is None:
            raise checkpoint.absent(self.info, self.path)
        again = "imnet-train goes on from the one before: run the training's command again"
        last = next((line["step"] for line in reversed(self.metrics) if "step" in line), 0)
        complete = self.info["status"] == "complete"
        # A complete run has no checkpoints of its own after its last step, so damaged ones there do not matter.
        if found.skipped and not (complete and found.state["step"] >= last):
            raise DataError(f"the newest checkpoint is damaged ({found.skipped[0]})", file=self.path, hint=again)
        if complete and found.state["step"] < last:
            what = f"the checkpoint of the last step, {last}, is gone; the newest is {found.path.name}"
            raise DataError(what, file=self.path, hint=again)
        return found

    def _of_epoch(self, which: str | int) -> Path:
        if (which := str(which)) == "best":
            judged = (row for row in self.metrics if row.get("kind") in ("val", "eval") and row["top1"] is not None)
            # Not on the images before a change of the data. Images held out of train choose, if there are any.
            lines = [row for row in judged if row["epoch"] > (self.info.get("best") or {}).get("since", 0)]
            logged = [line for line in lines if line.get("kind") == "val"] or lines
            epoch = max(logged, key=lambda line: line["top1"], default={"epoch": 0})["epoch"]
        elif which.isdecimal():
            epoch = int(which)
        else:
            raise UsageError(f"got --checkpoint {which}; allowed: best, last, or the number of an epoch")
        there, own = (checkpoint.states(self._checkpoints, hashes) for hashes in ((), self._own))
        # The run's own checkpoint takes precedence over a foreign one, which ``model`` refuses.
        kept = {self._epoch(state): path for path, state in [*there.items(), *own.items()]}
        if not kept:
            raise checkpoint.absent(self.info, self.path)
        if epoch not in kept:
            what = f"no checkpoint of {'the best, ' * (which == 'best')}epoch {epoch} is kept"
            told = ", ".join(f"{n:g}" for n in sorted(kept))
            raise DataError(what, file=self.path, hint=f"give the epoch of one that is: {told}")
        return kept[epoch]

    def _epoch(self, state: dict[str, Any]) -> float:
        """The epoch at which a checkpoint was saved; computed from the step if an older version wrote it."""
        d = self.recipe.data
        order = Order(self.data["train_images"], d.batch_images, 0, drop_last=d.drop_last)
        return state.get("epoch", state["step"] / order.steps_per_epoch)

    def classifier(self, *, data_dir: str | None = None, which: str | int = "last") -> Classifier:
        """The network of ``model`` with its preprocessing and class names, to classify pictures. ``data_dir`` is only
        read if the recipe subtracts a mean image."""
        r, card = self.recipe, self._card()
        mean = None
        if r.augment.mean == "image":
            mean = mean_image(load_data(r, self.options(data_dir, "cpu")).train)
        return Classifier(self.model(which), card, mean)

    def _card(self) -> Card:
        """DataError if run.json, which people edit, lacks something that classifying needs."""
        r = self.recipe
        last = next((line for line in reversed(self.metrics) if line.get("kind") == "eval"), {})
        try:
            data: dict[str, Any] = self.info.get("data") or {}
            return Card(
                model=r.model,
                model_options=dict(r.model_options),
                num_outputs=r.num_outputs,
                channels=r.data.channels,
                image_px=r.data.image_px,
                whole=data.get("encoded", False),
                augment=r.augment,
                class_names=tuple(data["class_names"]),
                top1=last.get("top1"),
                data=data["name"],
                recipe=r.name,
                licence=(self.info.get("weights") or {}).get("licence"),
            )
        except (KeyError, ValueError) as error:
            what = f"run.json does not say of its network what classifying needs: {error}"
            raise DataError(what, file=self.path, hint=RESTORE) from error

    def predict(self, pictures: Iterable[Picture], top: int = 5) -> list[dict[str, Any]]:
        """Classify pictures (paths, bytes, PIL pictures or uint8 arrays); see ``Classifier.stream``."""
        return self.classifier().predict(pictures, top)

    def evaluate(
        self,
        *,
        data_dir: str | None = None,
        device_name: str = "auto",
        flip: bool = False,
        split: str = "test",
        which: str | int = "last",
        precision: str | None = None,
        batch_images: int | None = None,
    ) -> Evaluation:
        """Evaluate on a split of the run's own data set (test, train, or final, which no run sees) as training does.

        ``flip`` averages the predictions with those of the mirrored image; ``which`` is a checkpoint, see ``model``;
        ``precision`` defaults to the run's on the run's device. Writes nothing.
        """
        dataset, options = self.dataset(data_dir, device_name, precision)
        return self.judge(dataset, options, split, which, batch_images, flip=flip)

    def dataset(
        self, data_dir: str | None, device_name: str, precision: str | None = None
    ) -> tuple[DataSet, RunOptions]:  # fmt: skip
        """The run's own data set and the options to evaluate on it. DataError if the data differ from the run's."""
        options = self.options(data_dir, device_name, precision)
        hint = "give the set as it was by --data-dir; imnet-eval RUN --data PATH judges on another one"
        try:
            dataset = load_data(self.recipe, options)
        except AbsentError as error:
            hint = "give the folder that it was trained on by --data-dir"
            raise AbsentError(f"the run's own data: {error.what}", file=error.file, hint=hint) from error
        except (UsageError, DataError) as error:  # its hint may be an option of imnet-train, which is of no use here
            if data_dir is None and isinstance(error, DataError):
                raise
            raise DataError(f"the run's own data: {error.what}", file=error.file or data_dir, hint=hint) from error
        if dataset.fingerprint != self.data["fingerprint"]:
            raise DataError("the data differ from those of the run", file=options.data_dir, hint=hint)
        return dataset, options

    def judge(
        self,
        dataset: DataSet,
        options: RunOptions,
        split: str,
        which: str | int,
        batch_images: int | None,
        *,
        flip: bool,
        world: World | None = None,
    ) -> Evaluation:
        """Like ``evaluate``, on a loaded set and with every prediction; every rank of ``world`` must call it."""
        world = world or World()
        place = device.resolve(options, world.local_rank)
        batch = evaluation_batch(self.recipe.data.batch_images) if batch_images is None else batch_images
        at_least_one(batch_images=batch)
        with device.undisturbed(place), device.threads(options):
            data = build_pipeline(self.recipe, options, dataset, dataset.part(split), place)
            net = self.model(which).to(place.device)
            world.broadcast(list(net.state_dict().values()))  # a live run may save between two ranks' loads
            net = net.to(memory_format=torch.channels_last)
            return evaluate(net, data, place, world, len(dataset.class_names), batch, flip=flip, each=True)

    def options(self, data_dir: str | None, device_name: str, precision: str | None = None) -> RunOptions:
        """The options to run the trained network with, from config.yaml; DataError if that holds invalid values."""
        config = self.path / "config.yaml"
        raw = read_yaml(config)
        kept = ("threads", "pipeline", "workers", "on_bad_image", "data_dir")
        try:
            own = RunOptions(**{name: raw[name] for name in kept if name in raw})
        except ValueError as error:
            raise DataError(str(error), file=config) from error
        same = device_name in ("auto", self.info["device"])
        chosen = precision or (self.info["precision"] if same else "auto")
        try:
            return dataclasses.replace(own, device=device_name, precision=chosen, data_dir=data_dir or own.data_dir)
        except ValueError as error:
            raise UsageError(str(error)) from error


def train_run(recipe: Recipe | str | None, options: dict[str, Any]) -> Run:
    """The implementation of ``imnet.train``."""
    if options.get("bands") is not None:
        raise UsageError(f"got bands = {options['bands']} for one run", hint="imnet.train_ensemble trains several")
    return Run(trained(recipe, options))


def trained(recipe: Recipe | str | None, options: dict[str, Any]) -> Path:
    """Train a recipe with ``options`` (run options by name); returns the folder of the run, or of the ensemble."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):  # a spawned rank imports the user's script
        hint = 'put the call under if __name__ == "__main__":'
        raise UsageError("got a training from a script that its own ranks import", hint=hint)
    if not isinstance(recipe, Recipe | str | None):
        hint = "give a name, or a value of imnet.recipes; imnet-train PATH trains on a folder of pictures"
        raise UsageError(f"got a {type(recipe).__name__} for a recipe", hint=hint)
    value = recipe if isinstance(recipe, Recipe) else by_name(recipe or "quickstart")
    unknown = sorted(set(options) - {f.name for f in dataclasses.fields(RunOptions)})
    if unknown:
        raise UsageError(f"got unknown option {unknown[0]}", hint=_hint(unknown[0], value))
    plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in options.items()}
    try:
        with memory_freed():
            code, path = train(value, RunOptions(**plain))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if code:
        raise ImnetError(f"training ended with exit code {code}", file=path, hint="its line above says why")
    return path


def _hint(name: str, recipe: Recipe) -> str:
    """What to do about ``name``, which is not a run option: it may be a value of the recipe, or misspelt."""
    owners = {f.name: "" for f in dataclasses.fields(RunOptions)}
    for part in ("data", "optim", "schedule", "augment"):
        owners |= {f.name: part for f in dataclasses.fields(getattr(recipe, part)) if f.name not in owners}
    owners |= {f.name: "recipe" for f in dataclasses.fields(recipe)}
    if name not in owners:
        return suggest(name, owners) or f"allowed: {', '.join(sorted(k for k in owners if not owners[k]))}"
    part, new = owners[name], f"{name}=..."
    changed = new if part == "recipe" else f"{part}=imnet.replace(recipe.{part}, {new})"
    return f"it is a value of the recipe: imnet.replace(recipe, {changed})"
