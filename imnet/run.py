"""A finished (or interrupted) run, from Python: ``run.metrics``, ``run.model()``, ``run.evaluate()``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from imnet import checkpoint, device
from imnet.announce import write_evaluation
from imnet.classifier import Card, Classifier, Picture
from imnet.command import suggest
from imnet.data.pipelines.batches import mean_image
from imnet.errors import DataError, ImnetError, UsageError
from imnet.evaluate import Evaluation, evaluate
from imnet.from_recipe import build_network, build_pipelines, load_data
from imnet.launch import World
from imnet.metrics import read_metrics
from imnet.recipe import Recipe
from imnet.recipe_json import from_dict
from imnet.recipes import by_name
from imnet.run_options import RunOptions
from imnet.runfolder import read_run
from imnet.start import train


class Run:
    """A run folder. Raises DataError where ``path`` is none."""

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        info = read_run(self.path)
        if info is None:
            raise DataError(
                "no run.json: not a run folder", file=self.path, hint="give the folder of imnet-train --out"
            )
        self.info: dict[str, Any] = info
        self.recipe: Recipe = from_dict(info["recipe"])

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, recipe={self.recipe.name!r}, status={self.info['status']!r})"

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl."""
        return read_metrics(self.path / "metrics.jsonl")

    @property
    def report(self) -> Path:
        return self.path / "report.html"

    def model(self) -> nn.Module:
        """The network with the newest weights (averaged where the recipe averages), in eval mode, on the CPU.

        Raises DataError where they are damaged, or gone from a complete run: older ones would pass for them.
        """
        found = checkpoint.load(self.path / "checkpoints", self.info["config_hash"])
        if found is None:
            raise DataError("no checkpoint yet", file=self.path, hint="let the run reach its first checkpoint")
        again = "imnet-train goes on from the one before: run the training's command again"
        if found.skipped:
            raise DataError(f"the newest checkpoint is damaged ({found.skipped[0]})", file=self.path, hint=again)
        last = next((line["step"] for line in reversed(self.metrics)), 0)
        if self.info["status"] == "complete" and found.state["step"] < last:
            what = f"the checkpoint of the last step, {last}, is gone; the newest is {found.path.name}"
            raise DataError(what, file=self.path, hint=again)
        net = build_network(self.recipe)
        averaged = self.recipe.ema_decay is not None and "ema" in found.tensors
        net.load_state_dict(found.tensors["ema" if averaged else "model"])
        return net.eval()

    def classifier(self, *, data_dir: str | None = None) -> Classifier:
        """The same with all that it needs to judge pictures; ``data_dir`` is only looked at for a mean image."""
        r = self.recipe
        last = next((line for line in reversed(self.metrics) if line["kind"] == "eval"), {})
        card = Card(
            model=r.model,
            model_options=dict(r.model_options),
            num_outputs=r.num_outputs,
            channels=r.data.channels,
            image_px=r.data.image_px,
            whole=self.info["data"].get("encoded", False),
            augment=r.augment,
            class_names=tuple(self.info["data"]["class_names"]),
            top1=last.get("top1"),
            data=self.info["data"]["name"],
            recipe=r.name,
            licence=(self.info.get("weights") or {}).get("licence"),
        )
        mean = None
        if r.augment.mean == "image":
            mean = mean_image(load_data(r, self._options(data_dir, "cpu")).train)
        return Classifier(self.model(), card, mean)

    def predict(self, pictures: Iterable[Picture], top: int = 5) -> list[dict[str, Any]]:
        """What the network says of pictures (paths, bytes, PIL pictures, uint8 arrays); see ``Classifier.stream``."""
        return self.classifier().predict(pictures, top)

    def evaluate(self, *, data_dir: str | None = None, device_name: str = "auto", flip: bool = False) -> Evaluation:
        """Evaluate on the test split; ``flip`` averages with the mirror image. Nothing is written."""
        return self._evaluate(data_dir, device_name, flip)[0]

    def _evaluate(
        self, data_dir: str | None, device_name: str, flip: bool, final: bool = False
    ) -> tuple[Evaluation, Any]:  # fmt: skip
        """On the split that the run looked at, or on the ``final`` one, which no run sees."""
        options = self._options(data_dir, device_name)
        place = device.resolve(options)
        dataset = load_data(self.recipe, options)
        if dataset.fingerprint != self.info["data"]["fingerprint"]:
            raise DataError("the data differ from those of the run", file=data_dir, hint="check --data-dir")
        if final:
            dataset = dataclasses.replace(dataset, test=dataset.final)
        _, data, _ = build_pipelines(self.recipe, options, dataset, place, World(), None)
        net = self.model().to(place.device).to(memory_format=torch.channels_last)
        with device.threads(options):
            return evaluate(net, data, place, World(), len(dataset.class_names), 1000, flip=flip), dataset

    def _options(self, data_dir: str | None, device_name: str) -> RunOptions:
        raw = yaml.safe_load((self.path / "config.yaml").read_text(encoding="utf-8"))
        precision = self.info["precision"] if device_name in ("auto", self.info["device"]) else "auto"
        kept = ("threads", "pipeline", "workers", "on_bad_image")
        values: dict[str, Any] = {name: raw[name] for name in kept if name in raw}
        values |= {"device": device_name, "precision": precision}
        return RunOptions(**values, data_dir=data_dir or raw.get("data_dir"))


def train_run(recipe: Recipe | str | None, options: dict[str, Any]) -> Run:
    """What ``imnet.train`` does."""
    value = recipe if isinstance(recipe, Recipe) else by_name(recipe or "quickstart")
    names = {f.name for f in dataclasses.fields(RunOptions)}
    unknown = sorted(set(options) - names)
    if unknown:
        hint = suggest(unknown[0], sorted(names)) or f"allowed: {', '.join(sorted(names))}"
        raise UsageError(f"got unknown option {unknown[0]}", hint=hint)
    plain = {k: os.fspath(v) if isinstance(v, os.PathLike) else v for k, v in options.items()}
    try:
        code, path = train(value, RunOptions(**plain))
    except ValueError as error:
        raise UsageError(str(error)) from error
    if code:
        error = ImnetError(f"training ended with exit code {code}", file=path, hint="its line above says why")
        error.exit_code = code
        raise error
    return Run(path)


def evaluate_run(path: Path, *, data_dir: str | None, device_name: str, flip: bool) -> str:
    """imnet-eval: evaluates, writes evaluation.json and the report anew, returns the lines to print."""
    from imnet import report

    run = Run(path)
    plain, dataset = run._evaluate(data_dir, device_name, flip=False)
    mirrored = run.evaluate(data_dir=data_dir, device_name=device_name, flip=True) if flip else None
    write_evaluation(run.path, plain, dataset, mirrored.top1 if mirrored else None)
    report.render(run.path)
    lines = [
        f"images     {plain.num_images:,}",
        f"top-1      {plain.top1:.4%}",
        f"top-5      {plain.top5:.4%}",
        f"loss       {plain.loss:.6f}",
    ]
    if mirrored:
        lines.append(f"with mirror images averaged (flip TTA): top-1 {mirrored.top1:.4%}, top-5 {mirrored.top5:.4%}")
    if dataset.final is not None:
        judged, _ = run._evaluate(data_dir, device_name, flip=False, final=True)
        lines.append(f"final      top-1 {judged.top1:.4%}, top-5 {judged.top5:.4%} on {judged.num_images:,} images "
                     "that the run did not look at")  # fmt: skip
    return "\n".join([*lines, f"report     {run.report}"])
