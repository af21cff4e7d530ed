"""Reads a run folder for the report; the error for a damaged file is one line with the file and the place."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from imnet.errors import DataError, IOFailure, UsageError
from imnet.files import exists, is_dir, listed
from imnet.metrics import parse
from imnet.report.data import NAN, EvalLine, Evaluation, RunLog, TrainLine, Worst
from imnet.scores import Confusion

NOT_A_RUN = "give the folder that imnet-train wrote (its --out)"


def load(run_dir: Path) -> RunLog:
    """Read ``run_dir``; DataError if a file is missing or damaged, IOFailure if it cannot be read."""
    run_dir = Path(run_dir)
    if not is_dir(run_dir):
        raise DataError("no such run folder", file=run_dir, hint=NOT_A_RUN)
    info = read_json(run_dir / "run.json")
    if not isinstance(info.get("recipe"), dict):
        raise DataError("key 'recipe' is missing or not an object", file=run_dir / "run.json", hint=NOT_A_RUN)
    _check_published(info["recipe"].get("published") or {}, run_dir / "run.json")
    as_number(info.get("stopped"), "stopped", run_dir / "run.json")
    best = info.get("best") or {}
    if not isinstance(best, dict):
        raise DataError(f"best is {best!r:.40}, must be an object", file=run_dir / "run.json", hint=NOT_A_RUN)
    as_number(best.get("since"), "best.since", run_dir / "run.json")
    train, lines, notes = _read_metrics(run_dir / "metrics.jsonl")
    evals = lines["eval"]
    skipped = info.get("skipped_steps")
    if isinstance(skipped, int) and skipped > 0:
        told = "an optimiser step was" if skipped == 1 else f"{skipped:,} optimiser steps were"
        notes.append(f"{told[0].upper()}{told[1:]} left out: loss or gradient was not finite (--on-nonfinite skip).")
    evaluation = None
    if exists(run_dir / "evaluation.json"):
        try:
            evaluation = _evaluation(run_dir / "evaluation.json")
        except DataError as error:
            error.hint = "remove it: the training's command or imnet-eval writes it again"
            raise
        notes += _disagreements(evaluation, evals)
    notes += _copied(info.get("data"), run_dir / "run.json")
    config = read_yaml(run_dir / "config.yaml")
    return RunLog(
        path=run_dir,
        config=config,
        info=info,
        train=tuple(train),
        evals=tuple(evals),
        vals=tuple(lines["val"]),
        evaluation=evaluation,
        notes=tuple(notes),
        others=tuple(map(_evaluation, listed(run_dir, "evaluation-*.json"))),
    )


def _check_published(published: Any, path: Path) -> None:
    if not isinstance(published, dict):
        raise DataError("recipe.published must be an object or null", file=path)
    for key in ("top1", "top5"):
        as_fraction(published.get(key), f"recipe.published.{key}", path)
    for key in ("hours", "ensemble_hours", "mib"):
        as_number(published.get(key), f"recipe.published.{key}", path)
    as_fraction(published.get("ensemble_top1"), "recipe.published.ensemble_top1", path)
    for band, top1 in enumerate(published.get("band_top1") or ()):
        as_fraction(top1, f"recipe.published.band_top1[{band}]", path)


def _copied(data: Any, path: Path) -> list[str]:
    """Notes about evaluated images that were also trained on."""
    copies = (data.get("copies") if isinstance(data, dict) else None) or {}
    if not isinstance(copies, dict) or not all(count is None or isinstance(count, int) for count in copies.values()):
        raise DataError("data.copies must be an object of whole numbers and null", file=path)
    told = ", ".join(f"{count:,} of the {part} images" for part, count in copies.items() if count is not None)
    unknown = ", ".join(f"the {part} images" for part, count in copies.items() if count is None)
    notes = {
        f"Trained on as well, to the byte: {told}. Their figures are better than those of new images.": told,
        f"Whether any are trained on as well was not looked for, the set being too large: {unknown}.": unknown,
    }
    return [note for note, said in notes.items() if said]


def read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError("is missing", file=path, hint=NOT_A_RUN) from None
    except OSError as error:
        raise IOFailure(f"cannot be read: {error.strerror}", file=path) from error


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; DataError if the file is absent or holds anything else."""
    data = read_bytes(path)
    try:
        value = json.loads(data, parse_int=_whole)
    except (ValueError, RecursionError) as error:
        raise DataError(f"is not JSON ({error})", file=path, hint="restore it or run again") from None
    if not isinstance(value, dict):
        raise DataError(f"holds a {type(value).__name__}, must be an object", file=path)
    return value


def _whole(digits: str) -> int:
    """Parse an integer; ValueError from 2^64 on, since sums and ratios of huge integers do not fit a float."""
    number = int(digits)
    if abs(number) >= 1 << 64:
        raise ValueError(f"a whole number of {len(digits)} digits")
    return number


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file; DataError if the file is absent or holds anything else."""
    from imnet import yaml_file

    try:
        value = yaml_file.parse(read_bytes(path).decode(errors="surrogateescape"))
    except UsageError as error:
        raise DataError(f"is {error.what}", file=path, hint="restore it or run again") from None
    if not isinstance(value, dict):
        raise DataError(f"holds a {type(value).__name__}, must be a mapping", file=path)
    return value


def _read_metrics(path: Path) -> tuple[list[TrainLine], dict[str, list[EvalLine]], list[str]]:
    """(training lines, {"eval": lines, "val": lines}, notes) from metrics.jsonl."""
    evals: dict[str, list[EvalLine]] = {"eval": [], "val": []}
    if not exists(path):
        return [], evals, ["metrics.jsonl is absent: nothing was logged yet, or the file is gone."]
    train: list[TrainLine] = []
    data = read_bytes(path)
    rows, torn = parse(data, path)
    for number, row in rows:
        _append(row, train, evals, f"line {number}", path)
    where = f"byte {len(data) - len(torn)}, {len(torn)} bytes"
    return train, evals, [f"The last line of metrics.jsonl ({where}) is torn and was ignored."] if torn else []


def _append(
    record: dict[str, Any], train: list[TrainLine], evals: dict[str, list[EvalLine]], where: str, path: Path
) -> None:
    kind = record.get("kind")
    if kind != "train" and kind not in evals:
        return
    names = TrainLine._fields if kind == "train" else EvalLine._fields
    values = {name: as_number(record.get(name), f"{where}: {name}", path) for name in names}
    if not (math.isfinite(values["step"]) and math.isfinite(values["epoch"])):
        raise DataError(f"{where} has no finite step and epoch", file=path)
    for field in ("top1", "top5"):
        as_fraction(values.get(field), f"{where}: {field}", path)
    if kind == "train":
        train.append(TrainLine(**values))
    else:
        evals[kind].append(EvalLine(**values))


def as_number(value: Any, what: str, path: Path) -> float:
    """The number ``value`` as a float; None (not measured) becomes NaN. DataError for anything else."""
    if value is None:
        return NAN
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"{what} is {value!r:.40}, must be a number or null", file=path)
    try:
        return float(value)
    except OverflowError:
        raise DataError(f"{what} is too large for a float", file=path) from None


def as_fraction(value: Any, what: str, path: Path) -> float:
    """An accuracy in 0..1, or NaN. DataError for other values, so that a percentage is not shown as 9,300 %."""
    number = as_number(value, what, path)
    if number < 0 or number > 1:
        raise DataError(f"{what} is {number:g}, must be a fraction in 0..1", file=path)
    return number


def _evaluation(path: Path) -> Evaluation:
    data = read_json(path)
    num_images = data.get("num_images")
    if not isinstance(num_images, int) or num_images < 1:
        raise DataError(f"num_images is {num_images!r:.40}, must be a positive integer", file=path)
    names = data.get("class_names")
    if not isinstance(names, list) or not names:
        raise DataError("class_names must be a list with one name per class", file=path)
    confusion = _confusion(data.get("confusion"), len(names), path)
    about = data.get("about")
    return Evaluation(
        num_images=num_images,
        **{key: as_fraction(data.get(key), key, path) for key in ("top1", "top5", "top1_flip")},
        loss=as_number(data.get("loss"), "loss", path),
        confusion=confusion,
        class_names=tuple(str(name) for name in names),
        worst=_worst(data.get("worst") or [], len(names), path),
        support=_support(data.get("support"), confusion, len(names), path),
        bins=_bins(data.get("bins") or [], path),
        about=about if isinstance(about, dict) else None,
    )


def _support(counts: Any, confusion: Confusion, size: int, path: Path) -> tuple[int, ...]:
    """Number of images of each class; for an older evaluation.json counted from the confusion matrix."""
    if counts is None:
        counts = [0] * size
        for true, _, images in confusion.cells():
            counts[true] += images
    if not isinstance(counts, list) or [type(n) for n in counts] != [int] * size or min(counts) < 0:
        raise DataError(f"support must be {size} counts (one per class name)", file=path)
    return tuple(counts)


def _bins(rows: Any, path: Path) -> tuple[tuple[float, float, float], ...]:
    if not isinstance(rows, list) or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise DataError("bins must be a list of three numbers each", file=path)
    first, second, third = ([as_number(row[i], "bins", path) for row in rows] for i in range(3))
    return tuple(zip(first, second, third, strict=True))


def _confusion(found: Any, size: int, path: Path) -> Confusion:
    if isinstance(found, list):
        return _of_rows(found, size, path)
    columns = [found.get(name) if isinstance(found, dict) else None for name in Confusion._fields]
    lists = [column for column in columns if isinstance(column, list) and all(type(n) is int for n in column)]
    if len(lists) != 3 or len({len(column) for column in lists}) != 1:
        names = ", ".join(Confusion._fields)
        raise DataError(f"confusion must be the lists {names} of integers, equally long", file=path)
    true, predicted, images = lists
    if not all(0 <= number < size for number in (*true, *predicted)) or min(images, default=1) < 1:
        raise DataError(f"confusion must be of classes 0 to {size - 1} and of images, 1 or more", file=path)
    return Confusion(true, predicted, images)


def _of_rows(rows: list[Any], size: int, path: Path) -> Confusion:
    """The confusion from the whole matrix, which an older evaluation.json has."""
    square = [len(row) for row in rows if isinstance(row, list)] == [size] * size
    if not square or not all(type(count) is int and count >= 0 for row in rows for count in row):
        raise DataError(f"confusion must be {size} rows of {size} counts (one per class name)", file=path)
    cells = [(true, at, count) for true, row in enumerate(rows) for at, count in enumerate(row) if count]
    return Confusion(*(list(column) for column in zip(*cells, strict=True))) if cells else Confusion([], [], [])


def _worst(rows: Any, num_classes: int, path: Path) -> tuple[Worst, ...]:
    keys = [field.name for field in fields(Worst)]
    if not isinstance(rows, list) or not all(isinstance(row, dict) and set(keys) <= set(row) for row in rows):
        raise DataError(f"worst must be a list of objects with {', '.join(keys)}", file=path)
    for row in rows:
        if not all(type(row[key]) is int for key in ("index", "label", "predicted")):
            raise DataError("worst: index, label and predicted must be integers", file=path)
        if not 0 <= row["label"] < num_classes or row["predicted"] < 0:
            raise DataError(f"worst names a class outside 0..{num_classes - 1}", file=path)
    return tuple(
        Worst(
            **{key: row[key] for key in ("index", "label", "predicted")},
            loss=as_number(row["loss"], "worst.loss", path),
            probability=as_fraction(row["probability"], "worst.probability", path),
        )
        for row in rows
    )


def _disagreements(evaluation: Evaluation, evals: Sequence[EvalLine]) -> list[str]:
    notes = []
    counted = sum(evaluation.confusion.images)
    if counted != evaluation.num_images:
        notes.append(f"The confusion matrix counts {counted:,} images, evaluation.json {evaluation.num_images:,}.")
    last = evals[-1].top1 if evals else NAN
    if abs(last - evaluation.top1) * evaluation.num_images > 0.5:
        notes.append(
            f"evaluation.json (top-1 {evaluation.top1:.2%}) is not the last evaluation of metrics.jsonl "
            f"({last:.2%}): other weights or another epoch."
        )
    return notes
