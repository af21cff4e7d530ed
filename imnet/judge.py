"""imnet-eval: evaluates a network on its run's own images, or on any other set whose classes it knows by name."""

from __future__ import annotations

import csv
import hashlib
import io
import re
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imnet import classifier, device, judge_ensemble, report, tencrop
from imnet.announce import write_evaluation
from imnet.classifier import Classifier
from imnet.console import say_all
from imnet.data import unread
from imnet.data.judged import Images, images_at, matched, part_of
from imnet.data.pipelines import Setting
from imnet.data.pipelines.host import Prepared
from imnet.data.readers.picture import BadPictureError
from imnet.errors import DataError, UsageError
from imnet.evaluate import Evaluation, evaluate
from imnet.fields import COUNT, flag
from imnet.files import check_kind, check_output, is_dir, write_atomic, write_json
from imnet.launch import World, connected, current_world, named_loss
from imnet.ranks import run_ranks
from imnet.run import Run
from imnet.run_options import PROCESSES, RunOptions
from imnet.runfolder import bands_in

BATCH_IMAGES = 256
TABLE_HEAD = "image,label,predicted,probability,loss"
FEW_CLASSES = 20
"""Up to this many classes are printed with a line each."""


def run(values: Namespace) -> int:
    """Evaluate, print and write. Only an evaluation like the run's own replaces its evaluation.json; any other is
    written to a file beside it."""
    for name, numbers in {"batch_size": COUNT, "gpus": PROCESSES, "procs": PROCESSES}.items():
        count = vars(values)[name]
        if count is not None and not numbers.holds(count):
            raise UsageError(f"got --{flag(name)} {count}; allowed: {numbers}", hint=f"leave --{flag(name)} out")
    if values.gpus and values.device == "cpu":
        raise UsageError("got --gpus with --device cpu", hint="--procs N splits the images over CPU processes")
    if values.procs:
        values.device = "cpu"
    if bands_in(values.run):
        if values.gpus or values.procs:
            raise UsageError("got --gpus or --procs for an ensemble", hint="one process fuses it: leave them out")
        return judge_ensemble.run(values)
    if values.p is not None or values.baseline is not None:
        raise UsageError("got --p or --baseline for one network", hint="they are for the folder of an ensemble")
    if values.out is not None:
        check_kind(values.out, ".csv", "the table is CSV")
        check_output(values.out, TABLE_HEAD.encode())
    if values.ten_crop:
        _check_ten_crop(values)
    ranks = values.gpus or values.procs or 1
    if values.gpus:
        device.check_gpus(device.gpus_here(RunOptions(gpus=values.gpus)))
    if ranks > 1 and current_world(ranks).size == 1:
        print(*(f"note       {told}\n" for told in device.crowded(values.procs)), end="", flush=True)
        return run_ranks(_rank, (values,), ranks, 0)
    with named_loss(current_world()):
        return _rank(values)


def _rank(values: Namespace) -> int:
    """Evaluate this process's share of the images; rank 0 prints and writes."""
    alike = {name: vars(values)[name] for name in ("split", "checkpoint", "batch_size", "precision", "no_flip")}
    place = device.resolve(RunOptions(device=values.device), current_world().local_rank)
    with connected(place.device, alike | {"another set": values.data is not None}) as world:
        say_all(_own(values, world) if values.data is None else _other(values, world))
    return 0


def _as_asked(options: RunOptions, values: Namespace) -> RunOptions:
    """``options`` with as many processes as were asked for, which share the machine's threads."""
    return replace(options, procs=values.procs, gpus=values.gpus)


def _check_ten_crop(values: Namespace) -> None:
    """Raise UsageError, before anything is evaluated, if ten crops cannot be cut."""
    if values.gpus or values.procs:
        raise UsageError("got --ten-crop with --gpus or --procs", hint="one process cuts them: leave those out")
    if values.data is not None or values.checkpoint != "last" or values.split not in (None, "test"):
        what = (
            "got --ten-crop with --data, --checkpoint or --split; allowed: the newest weights on the run's test images"
        )
        raise UsageError(what, hint="leave one of them out")
    tencrop.check(Run(values.run).recipe)


def _own(values: Namespace, world: World) -> Iterator[str]:
    """Evaluate on a split of the run's own set and yield the lines to print. Figures are printed before they are
    written, in case writing fails."""
    if not is_dir(values.run) and values.run.suffix:
        what = "got a file, which has no images of its own"
        raise UsageError(what, file=values.run, hint="add --data PATH, or give a run folder")
    run = Run(values.run)
    dataset, options = run.dataset(values.data_dir, values.device, values.precision)
    options = _as_asked(options, values)
    split = part_of(values.split or "test", dataset, run.data.get("judged_on", "test set"))
    images, seen = (split, values.checkpoint, values.batch_size), run.weights_id(values.checkpoint)
    plain = run.judge(dataset, options, *images, flip=False, world=world)
    mirrored = None if values.no_flip else run.judge(dataset, options, *images, flip=True, world=world)
    marks = [split] * (split != "test") + _marks(run, values)
    beside_test = dataset.final is not None and split == "test"
    final = run.judge(dataset, options, "final", *images[1:], flip=False, world=world) if beside_test else None
    if not world.is_main:
        return
    if told := unread(run.recipe.data.name, values.data_dir):
        yield f"note       {told}"
    names = dataset.class_names
    if run.weights_id(values.checkpoint) != seen:  # then evaluation.json must not be replaced: it is newer, or will be
        step, mirrored, final = seen.partition(" ")[0], None, None
        marks.append(step)
        yield f"note       the run has saved newer weights meanwhile: these figures, and no others, are of {step}"
    yield from _lines(plain, mirrored, names, run)
    if values.ten_crop:
        found = tencrop.evaluate(run, data_dir=values.data_dir, device_name=values.device, precision=values.precision)
        yield tencrop.told(found)
    if final is not None:
        yield (f"final      top-1 {final.top1:.4%}, top-5 {final.top5:.4%} on {final.num_images:,} images "
               "that the run did not look at")  # fmt: skip
    yield from _table(values.out, plain, names, str)
    if not marks:
        write_evaluation(run.path, plain, dataset, mirrored.top1 if mirrored else None, final)
    else:
        about = {"data": dataset.name, "split": split} | _how(values, options, seen)
        yield _beside(run, plain, names, mirrored, about, marks)
    report.render(run.path)
    yield f"report     {run.report}"


def _other(values: Namespace, world: World) -> Iterator[str]:
    """Evaluate a run, or a file that imnet-export wrote, on another set, and yield the lines to print."""
    run, seen = Run(values.run) if is_dir(values.run) else None, ""
    if run is None and values.checkpoint != "last":
        raise UsageError(f"got --checkpoint {values.checkpoint} for a file, which holds one", hint="leave it out")
    if run is None:
        model = classifier.load(values.run)
        options = RunOptions(device=values.device, precision=values.precision or "fp32")
    else:
        seen = run.weights_id(values.checkpoint)
        model = run.classifier(data_dir=values.data_dir, which=values.checkpoint)
        options = run.options(values.data_dir, values.device, values.precision)
    images, options = images_at(values.data, values.split), _as_asked(options, values)
    plain, mirrored = judge_images(model, images, options, values.batch_size, flip=not values.no_flip, world=world)
    if not world.is_main:
        return
    names = model.card.class_names
    yield f"data       {images.path}: its {images.split} part"
    yield from _told_classes(plain, names)
    yield from _lines(plain, mirrored, names, run)
    yield from _table(values.out, plain, names, images.name)
    if run is not None:
        about = {"data": str(images.path), "split": images.split} | _how(values, options, seen)
        marks = [_slug(values.data), images.split, *_marks(run, values)]
        yield _beside(run, plain, names, mirrored, about, marks)
        report.render(run.path)
        yield f"report     {run.report}"


def _how(values: Namespace, options: RunOptions, seen: str) -> dict[str, Any]:
    return {"checkpoint": values.checkpoint, "weights": seen, "precision": device.resolve(options).precision}


def _marks(run: Run, values: Namespace) -> list[str]:
    """Words for the file's name that distinguish an evaluation from the run's own."""
    which = values.checkpoint
    other = values.precision not in (None, run.info["precision"])
    return [f"epoch{which}" if which.isdecimal() else which] * (which != "last") + [values.precision] * other


def judge_images(
    model: Classifier,
    images: Images,
    options: RunOptions,
    batch_images: int | None = None,
    *,
    flip: bool,
    world: World | None = None,
) -> tuple[Evaluation, Evaluation | None]:
    """Evaluate on another set, whose classes are matched by name; every rank of ``world`` must call this.

    Returns the plain evaluation and, with ``flip``, one that averages in the mirrored images. Raises DataError for
    classes that the network does not have, and for a picture that cannot be decoded.
    """
    labels, world = matched(images, model.card.class_names), world or World()
    place = device.resolve(options, world.local_rank)
    net = model.network.to(place.device)
    world.broadcast(list(net.state_dict().values()))  # a run in training may have saved between two ranks' reads
    net = net.to(memory_format=torch.channels_last)
    with device.threads(options) as threads:
        setting = Setting(
            augment=model.card.then, seed=0, device=place.device, dtype=place.dtype, mean=model.mean,
            workers=options.workers or threads,
        )  # fmt: skip
        data = Pictures(replace(images, labels=labels), model, setting)
        how = (net, data, place, world, len(model.card.class_names), batch_images or BATCH_IMAGES)
        return evaluate(*how, each=True), evaluate(*how, flip=True) if flip else None


class Pictures(Prepared):
    """The images of another set, preprocessed in the same way as pictures for ``Classifier.predict``."""

    kind = "host"

    def __init__(self, images: Images, model: Classifier, setting: Setting):
        super().__init__(images, setting)  # pyright: ignore[reportArgumentType]  (it has labels and a length)
        self.images, self.model = images, model

    def made(self, ids: Tensor, epoch: int, train: bool) -> tuple[Tensor, Tensor]:
        pixels = np.stack([self._pixels(i) for i in ids.tolist()])
        return self.model.images(pixels, self.setting.dtype), ids

    def _pixels(self, i: int) -> np.ndarray:
        try:
            return self.model.pixels(self.images.read(i))
        except BadPictureError as error:
            hint = "mend it or take it out: an evaluation counts every image"
            raise DataError(str(error), file=self.images.name(i), hint=hint) from error


def _told_classes(result: Evaluation, names: tuple[str, ...]) -> list[str]:
    """A line to print if the set has only some of the classes."""
    held = sum(count > 0 for count in result.support)
    if held == len(names):
        return []
    return [f"classes    {held} of the network's {len(names)}, matched by name; it may still answer with any of them"]


def _lines(plain: Evaluation, mirrored: Evaluation | None, names: tuple[str, ...], run: Run | None) -> list[str]:
    lines = [
        *(run.unfinished if run else []),
        f"images     {plain.num_images:,}",
        f"top-1      {plain.top1:.4%}",
        f"top-5      {plain.top5:.4%}",
        f"loss       {plain.loss:.6f}",
        f"balanced   {plain.balanced_accuracy:.4%} (mean recall of the classes), macro F1 {plain.macro_f1:.4%}",
        f"calibration error {plain.ece:.4%} (expected, {len(plain.bins)} bins)",
    ]
    if mirrored:
        lines.append(f"with mirror images averaged (flip TTA): top-1 {mirrored.top1:.4%}, top-5 {mirrored.top5:.4%}")
    if len(names) <= FEW_CLASSES:
        wide = max(len(name) for name in ("class", *names))
        lines.append(f"{'class':{wide}}  precision   recall       F1   images")
        for name, score in zip(names, plain.per_class, strict=True):
            shares = "".join(f"{'-' if v is None else f'{v:.2%}':>9}" for v in score[:3])
            lines.append(f"{name:{wide}}  {shares}{score.support:>9,}")
    return lines


def _beside(
    run: Run,
    plain: Evaluation,
    names: tuple[str, ...],
    mirrored: Evaluation | None,
    about: dict[str, Any],
    marks: list[str],
) -> str:
    """Write evaluation-<marks>.json; return the line that says so."""
    path = run.path / f"evaluation-{'-'.join(marks)}.json"
    write_json(path, plain.as_dict(names) | {"top1_flip": mirrored.top1 if mirrored else None, "about": about})
    return f"written    {path}"


def _slug(path: Path) -> str:
    """``<name>-<hash of its path>``, so that two sets of the same name do not share a file."""
    where = path.resolve()
    word = re.sub(r"[^A-Za-z0-9]+", "-", where.stem).strip("-") or "data"
    return f"{word}-{hashlib.sha256(str(where).encode(errors='surrogateescape')).hexdigest()[:6]}"


def _table(out: Path | None, result: Evaluation, names: tuple[str, ...], name: Callable[[int], str]) -> list[str]:
    """Write every prediction to ``out``, one row per image; return the line that says so."""
    if out is None:
        return []
    found = result.predictions
    assert found is not None, "judge and judge_images keep them"
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(TABLE_HEAD.split(","))
    columns = (found.labels, found.predicted, found.probability, found.loss)
    for i, (label, top, probability, loss) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        if label < 0:
            continue  # the picture could not be decoded
        said = names[top] if top < len(names) else f"output {top}"
        table.writerow([name(i), names[label], said, f"{probability:.7g}", f"{loss + 0.0:.7g}"])  # 0, not -0
    write_atomic(out, text.getvalue().encode("utf-8", "surrogateescape"))
    return [f"predictions {out}"]
