"""`imnet-profile data`: the data path of a recipe stage by stage."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
from torch import Tensor

from imnet import device
from imnet.data.base import AnySplit, EncodedSplit
from imnet.data.pipelines import Setting
from imnet.data.pipelines.batches import Batches, as_tensor
from imnet.data.pipelines.encoded import Decoder
from imnet.errors import UsageError
from imnet.files import write_json
from imnet.from_recipe import load_sources
from imnet.launch import World
from imnet.mixing import Mixing
from imnet.recipe import Augment, Recipe, replace
from imnet.run_options import RunOptions

from ..case import find_recipe, synthetic
from ..clock import interleaved
from ..form import aligned, duration, percent, plural, scaled
from .cli import captured, commands, usable_folder

ROUNDS = 9


@dataclass(frozen=True)
class Stage:
    """A part of the way from the file to the batch: one batch a call, ``num_bytes`` read and written by it."""

    name: str
    call: Callable[[], Any]
    num_bytes: int


def run(values: argparse.Namespace, arguments: Sequence[str]) -> None:
    """Time the stages and the pipelines, write ``data.json``, print the tables."""
    recipe = _recipe(values)
    options = RunOptions(**{name: getattr(values, name) for name in ("device", "precision", "threads", "data_dir")})
    place, folder = device.resolve(options), usable_folder(values.out)
    with device.threads(options) as threads:
        sources = load_sources(recipe, options, place, World())
        split, setting, batch = sources.dataset.train, sources.train.setting, sources.order.batch_images
        with captured(place.device):
            measured = timed(stages(recipe, split, setting), batch, place.device)
        found: dict[str, Any] = {"recipe": recipe.name, "data": recipe.data.name, "batch_images": batch}
        found |= {"images": len(split), "image_shape": list(split.image_shape), "threads": threads}
        found |= {"device": str(place.device), "dtype": place.precision, "stages": measured}
    write_json(folder / "data.json", found)
    print(text(found))
    print(f"written: {folder / 'data.json'}")
    print(commands(arguments, folder, "data"))


def _recipe(values: argparse.Namespace) -> Recipe:
    recipe = find_recipe(values.recipe, None, batch_images=values.batch_size, default="quickstart")
    if values.synthetic and values.data_dir is not None:
        raise UsageError("got --synthetic and --data-dir", hint="give one of them")
    if values.synthetic:
        recipe = synthetic(recipe)
    images = values.images or recipe.data.train_images
    return replace(recipe, data=replace(recipe.data, train_images=images))


def stages(recipe: Recipe, split: AnySplit, setting: Setting) -> list[Stage]:
    """The way of the host pipeline taken apart: what it does in one pass is one stage after the other here."""
    assert setting.order is not None
    order = setting.order
    ids = order.epoch(0)
    pieces = [order.batch(ids, i) for i in range(order.steps_per_epoch)]
    if isinstance(split, EncodedSplit):
        found, pixels, augment = _encoded_stages(split, setting, pieces)
    else:
        turn, augment = cycle([piece.numpy() for piece in pieces]), setting.augment
        pixels = as_tensor(split.images[pieces[0].numpy()])
        found = [Stage("read", lambda: split.images[next(turn)], 2 * pixels.nbytes)]
    mean = None if setting.mean is None else setting.mean.cpu()
    batches = Batches(pixels, augment, seed=setting.seed, dtype=torch.float32, mean=mean)
    rows = torch.arange(len(pixels))
    exact = batches.batch(rows, 0, True)[0]
    found.append(Stage("augment", lambda: batches.batch(rows, 0, True), pixels.nbytes + exact.nbytes))
    made = exact.to(setting.dtype)
    if setting.dtype != torch.float32:
        name = f"cast to {str(setting.dtype).removeprefix('torch.')}"
        found.append(Stage(name, lambda: exact.to(setting.dtype), exact.nbytes + made.nbytes))
    mixing, labels = Mixing(recipe, 0), torch.zeros(len(made), dtype=torch.int64)
    if mixing.ways:  # two images are read, one is written
        found.append(Stage("mix", lambda: mixing(made, labels, 0), 3 * made.nbytes))
    if setting.device.type == "cuda":
        pinned = made.pin_memory()
        found.append(Stage("copy to device", lambda: pinned.to(setting.device, non_blocking=True), made.nbytes))
    return found


def _encoded_stages(
    split: EncodedSplit, setting: Setting, pieces: Sequence[Tensor]
) -> tuple[list[Stage], Tensor, Augment]:
    """Reading and decoding, the pixels of the first batch, and what is left to augment of them."""
    turn, first = cycle(pieces), pieces[0]
    kept = {i: split.read(i) for i in first.tolist()}
    in_memory = EncodedSplit(kept.__getitem__, split.labels, split.image_px, split.file, split.num_bytes)
    decoder = Decoder(in_memory, setting.augment, setting.seed)
    pixels = torch.from_numpy(decoder.images(first, 0, True)[0])
    encoded = sum(map(len, kept.values()))
    augment = setting.augment
    if decoder.sized(True):
        augment = replace(augment, crop_scale=None, crop_px=None, resize_px=None, resize_eval_px=None)
    read = Stage("read", lambda: [split.read(i) for i in next(turn).tolist()], encoded)
    decode = Stage("decode, crop, resize", lambda: decoder.images(first, 0, True), encoded + pixels.nbytes)
    return [read, decode], pixels, augment


def timed(found: Sequence[Stage], batch: int, place: torch.device) -> list[dict[str, Any]]:
    """A row a stage, measured in turn: on a CPU processor seconds (one core's time), on a GPU wall seconds."""
    cores = 1 if place.type == "cuda" else torch.get_num_threads()
    times = interleaved({stage.name: stage.call for stage in found}, ROUNDS)
    seconds = {name: timing.median_s * cores for name, timing in times.items()}
    total = sum(seconds.values())
    rows = []
    for stage in found:
        took = seconds[stage.name]
        row = {"stage": stage.name, "seconds": took, "iqr_s": times[stage.name].iqr_s * cores}
        row |= {"images_per_s": batch / took, "bytes": stage.num_bytes, "bytes_per_s": stage.num_bytes / took}
        rows.append(row | {"share": took / total})
    return rows


def text(found: dict[str, Any]) -> str:
    """What the command prints of data.json."""
    shape = "x".join(map(str, found["image_shape"]))
    slowest = max(found["stages"], key=lambda row: row["share"])
    clock = "one core's time" if found["device"] == "cpu" else "wall time"
    cells = [
        [row["stage"], duration(row["seconds"]), duration(row["iqr_s"]), f"{row['images_per_s']:,.0f}",
         scaled(row["bytes"], "B"), scaled(row["bytes_per_s"], "B/s"), percent(row["share"])]
        for row in found["stages"]
    ]  # fmt: skip
    return "\n".join(
        [
            f"{found['recipe']} ({found['data']}), {found['images']:,} images {shape}, batch {found['batch_images']}, "
            f"{found['dtype']}, {found['device']}, {plural(found['threads'], 'thread')}\n",
            aligned(["stage", "a batch", "IQR", "images/s", "bytes", "bytes/s", "share"], cells),
            f"stage by stage, {clock}; most of it is {slowest['stage']} ({percent(slowest['share'])})",
            "in one pass, as training drains it: the loader's column of imnet-bench throughput",
        ]
    )
