"""Chooses a recipe, and gives the reasons, for a user's own pictures from the files at a path and the device.

``imnet-train PATH`` fine-tunes an ImageNet network if its weights are cached or can be downloaded, else it trains one
from random weights. If the set has no test part, a tenth of each class is held out for evaluation. The values are
starting points, not tuned to any data: each one can be overridden, and --print-config shows them all.
"""

from __future__ import annotations

import functools
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imnet import device, find, hubs, runfolder, weights
from imnet.data.base import EncodedSplit
from imnet.data.readers import Blocks, Items, recognise
from imnet.data.readers.picture import BadPictureError, opened
from imnet.data.store import is_store, load_store, split_path
from imnet.errors import DataError, ImnetError, UsageError
from imnet.files import is_file
from imnet.launch import current_world
from imnet.recipe import SGD, AdamW, Augment, Cosine, Data, OneCycle, Recipe, replace
from imnet.run_options import RunOptions

PREFIX = "own/"
HOLD_OUT = 0.1
LOOKED_AT = 64
"""Number of pictures, evenly spaced, whose sizes are read."""
SMALL_PX = 96
"""Pictures up to this side are packed as pixels; larger ones stay encoded, and are cropped when decoded."""
LEAST_PX = 32
"""The smallest side that is chosen: most networks halve it several times."""
TUNED = ("timm:resnet18.a1_in1k", "torchvision:ResNet18_Weights.IMAGENET1K_V1")
TUNED_GPU = ("timm:resnet50.a1_in1k", "torchvision:ResNet50_Weights.IMAGENET1K_V2")


@dataclass(frozen=True)
class Seen:
    """What was found at a path; ``side_px`` is the median of the pictures' shorter sides."""

    path: Path
    class_names: tuple[str, ...]
    train_images: int
    test_images: int | None
    side_px: int
    channels: int
    pictures: bool
    """True for encoded pictures, False for pixel arrays of one size."""
    decode_s: float = 0.0
    """Seconds for one thread to decode one picture, measured on this machine."""

    @property
    def hold_out(self) -> float:
        """Share of each class to hold out for evaluation."""
        return HOLD_OUT if self.test_images is None else 0.0


@functools.lru_cache(maxsize=1)
def look(path: Path) -> Seen:
    """Inspect the data set at ``path``; cached for ``expected``, since listing a million files takes seconds. Raises
    the errors of reading the set, and DataError if it cannot be trained on."""
    if is_store(path):
        has_test = is_file(split_path(path, "test"))
        found = load_store(path, SMALL_PX, 0.0 if has_test else HOLD_OUT)
        train, test = found.train, len(found.test) if has_test else None
    else:
        found = recognise(path)
        train, test = found.splits.get("train"), len(found.splits["test"]) if "test" in found.splits else None
        if train is None:
            raise DataError("no training part here", file=path, hint="imnet-data inspect says what there is")
    if len(found.class_names) < 2:
        raise DataError(f"one class only ({', '.join(found.class_names)})", file=path, hint="one folder a class")
    if isinstance(train, Items | EncodedSplit):
        side, decode_s = _sizes(train, path)
        return Seen(path, found.class_names, len(train), test, side, 3, True, decode_s)
    height, width, channels = train.shape if isinstance(train, Blocks) else train.image_shape
    return Seen(path, found.class_names, len(train), test, min(height, width), channels, False)


def _sizes(train: Items | EncodedSplit, path: Path) -> tuple[int, float]:
    """(median of the shorter sides in px, seconds to decode one picture). Skips pictures that cannot be opened, which
    packing reports; DataError if none can."""
    sides, refused, start = [], [], time.perf_counter()
    for i in np.linspace(0, len(train) - 1, min(LOOKED_AT, len(train))).astype(int).tolist():
        try:
            with opened(train.read(i)) as picture:
                picture.load()
                sides.append(min(picture.size))
        except (BadPictureError, DataError, OSError, SyntaxError, ValueError) as error:
            refused.append(error.what if isinstance(error, DataError) else str(error))
    if not sides:
        what = f"none of {len(refused)} pictures can be opened; the first: {refused[0]}"
        raise DataError(what, file=path, hint="are they pictures, of 8 bits a channel?")
    return int(np.median(sides)), (time.perf_counter() - start) / len(sides)


def recipe(
    path: Path, *, gpu: bool, model: str | None = None, start: str | None = None, side: int | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe for the data at ``path``, and lines that give the reasons for it.

    ``model``, ``start`` (weights) and ``side`` (of the network's input) are used if given; a ``model`` without
    ``start`` gets random weights.
    """
    look.cache_clear()
    seen = look(path)
    if start is not None:
        why = f"weights    {start}, as asked"
    elif model is not None:
        why = f"weights    random: {model} was asked for without --weights"
    else:
        start, why = first_weights(gpu)
    prepared = weights.preprocessing(start) if start else weights.Preprocessing()
    if side is None or not seen.pictures:
        side, why_side = _side(seen, gpu, start is not None)
    else:
        why_side = f"images     {side} px, as asked"
    small = seen.side_px <= SMALL_PX or not seen.pictures
    network, network_options = (model, {}) if model else _network(start, small, gpu)
    epochs, batch = _length(seen.train_images, gpu, start is not None)
    if start:
        optim, schedule = AdamW(lr=1e-3, weight_decay=0.05), Cosine(warmup_epochs=min(1.0, epochs / 4))
    else:
        optim = SGD(lr=0.1 * batch / 64, nesterov=True, weight_decay=5e-4)
        schedule = OneCycle(peak_fraction=0.2, start_factor=0.05)
    made = Recipe(
        name=name_of(path),
        model=network,
        model_options=network_options,
        data=Data(
            name="folder",
            image_px=side,
            batch_images=batch,
            num_classes=len(seen.class_names),
            channels=seen.channels,
            hold_out=seen.hold_out,
        ),
        augment=_augment(seen, side, small, prepared, start is not None),
        optim=optim,
        schedule=schedule,
        epochs=epochs,
        label_smoothing=0.1,
        weights=start,
        body_lr=0.1 if start else 1.0,
        source=f"made by imnet for {path}",
    )
    about = f"{seen.train_images:,} images of {len(seen.class_names)} classes, about {seen.side_px} px"
    judge = f"{HOLD_OUT:.0%} of each class judges" if seen.test_images is None else f"{seen.test_images:,} images judge"
    head = f"your data  {about}; {judge}"
    return made, (head, why, why_side)


def _augment(seen: Seen, side: int, small: bool, prepared: weights.Preprocessing, tuned: bool) -> Augment:
    """Random flips, with padded crops of small images or resized crops of large ones, whose smallest share of the
    picture is lower for a network that starts from random weights."""
    mean, std = ((0.5,), (0.25,)) if seen.channels == 1 else (prepared.mean, prepared.std)
    if small:
        return Augment(hflip="random", mean=mean, std=std, crop_pad_px=min(max(1, side // 16), side - 1))
    scale = (0.35 if tuned else 0.2, 1.0)
    whole_px = round(side * 8 / 7)
    return Augment(hflip="random", mean=mean, std=std, crop_scale=scale, crop_px=side, resize_eval_px=whole_px)


def name_of(path: Path, recipe: str = "") -> str:
    """``own/<folder>-<hash of its path>``, so that two folders of the same name do not share a run folder, followed by
    the name of the ``recipe`` if one was chosen."""
    where = path.resolve()
    slug = re.sub(r"[^a-z0-9]+", "-", where.stem.lower()).strip("-") or "data"
    mark = hashlib.sha256(str(where).encode(errors="surrogateescape")).hexdigest()[:6]
    return f"{PREFIX}{slug}-{mark}" + (f"-{recipe.replace('/', '-')}" if recipe else "")


def first_weights(gpu: bool) -> tuple[str | None, str]:
    """(weights to start from or None, the line that gives the reason)."""
    choices = TUNED_GPU if gpu else TUNED
    for source in choices:
        if hubs.is_here(source):
            return source, f"weights    {source}: here already"
    for source in choices:
        try:
            hubs.check_fetchable(source)
        except ImnetError:
            continue
        return source, f"weights    {source}: will be fetched once"
    return None, (
        "weights    none cached and no hub reachable: random weights, which need several times as many images and "
        f"epochs; --weights FILE starts from pretrained ones (e.g. {choices[0]})"
    )


def _network(start: str | None, small: bool, gpu: bool) -> tuple[str, dict[str, Any]]:
    """(network, its options) of the weights ``start``; without weights, a network for these images and this device."""
    if start is None:
        if not small:
            return "resnet18", {}
        # resnet18_64 takes 4.4 GFLOP per image, ten times as much as speednet, which therefore serves CPUs.
        return ("resnet18_64", {}) if gpu else ("speednet", {"width": 64})
    library, _, name = start.partition(":")
    if library == "timm":
        return f"timm:{name.partition('.')[0]}", {}
    if library == "torchvision":
        return f"torchvision:{name.partition('_Weights')[0].lower()}", {}
    found = weights.network_of(start)
    if found is None:
        raise UsageError(f"got --weights {start}, which does not say of what network", hint="give it: --model NAME")
    return found


def _side(seen: Seen, gpu: bool, tuned: bool) -> tuple[int, str]:
    """(side of the network's input in px, the line that gives the reason): at most the side of the pictures, and at
    most what the device trains on in minutes."""
    most = (224 if tuned else 160) if gpu else (128 if tuned else 96)
    if not seen.pictures:
        return seen.side_px, f"images     {seen.side_px} px, as they are"
    side = min(most, max(LEAST_PX, seen.side_px // 8 * 8))
    if seen.side_px < LEAST_PX:
        why = f"your pictures, about {seen.side_px} px, scaled up to the smallest side that is chosen"
    elif side == most:
        why = f"what {'a GPU' if gpu else 'a CPU'} does in minutes"
    else:
        why = "as your pictures are" + ", in steps of 8" * (side != seen.side_px)
    return side, f"images     {side} px: {why}"


def _length(train_images: int, gpu: bool, tuned: bool) -> tuple[int, int]:
    """(epochs, images per batch), chosen so that a laptop trains on a few thousand pictures in minutes."""
    wanted = (400_000 if tuned else 3_000_000) if gpu else (20_000 if tuned else 80_000)
    low, high = (3, 20) if tuned else (10, 100)
    epochs = int(np.clip(round(wanted / max(1, train_images)), low, high))
    batch = 128 if gpu else 32
    return epochs, int(max(2, min(batch, train_images // 4)))


def with_data(named: Recipe, path: Path) -> Recipe:
    """``named``, a recipe that was asked for by name, adapted to the data at ``path``: number of classes, channels and
    images, and whatever depends on them."""
    seen = look(path)
    data = replace(
        named.data,
        name="folder",
        image_px=named.data.image_px if seen.pictures else seen.side_px,
        num_classes=len(seen.class_names),
        channels=seen.channels,
        split=None,
        hold_out=seen.hold_out,
        train_images=None,
        test_images=None,
    )
    augment = named.augment
    if isinstance(augment.mean, tuple) and len(augment.mean) not in (1, seen.channels):
        mean, std = (sum(values) / len(values) for values in (augment.mean, augment.std))
        augment = replace(augment, mean=(mean,), std=(std,))
    name = name_of(path, named.name)
    return replace(named, name=name, data=data, augment=augment, head_outputs=None, published=None, ran=None)


def enlarged(recipe: Recipe, path: Path) -> tuple[str, ...]:
    """A line if the pictures have less than half the side of the network's input, since enlarging them adds no
    information, at several times the cost; else nothing."""
    seen, reads_px = look(path), recipe.input_px * (recipe.augment.spectral_r or 1)
    if not seen.pictures or 2 * seen.side_px >= reads_px:
        return ()
    return (f"your pictures, about {seen.side_px} px, are enlarged to {reads_px} px, which {recipe.model} reads",)


def expected(recipe: Recipe, options: RunOptions) -> str:
    """A line that estimates the training time, from a few steps timed here and a few pictures decoded; empty if the run
    is complete already."""
    bands, precision = options.bands_of(recipe), device.resolve_precision(options.precision, device.kind_of(options))[0]
    out = Path(options.out) if options.out else runfolder.default_path(recipe, precision, bands)
    if all(map(runfolder.is_complete, runfolder.runs_of(out, bands))):
        return ""
    seconds = find.seconds_an_image(recipe, options)
    assert options.data_dir is not None
    seen = look(Path(options.data_dir))
    with device.threads(options) as threads:
        decoding = seen.decode_s / threads if recipe.augment.crop_scale else 0.0
    rate = max(options.num_ranks, current_world().size) / max(seconds, decoding)
    networks = max(1, len(bands))
    total = 1.1 * networks * recipe.epochs * seen.train_images / rate  # a tenth more for evaluations
    what = "decoding pictures" if decoding > seconds else "the step"
    return f"time       about {_words(total)}: {rate:,.0f} images/s, bound by {what}, measured here"


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
