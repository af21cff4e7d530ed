"""Loads data sets by name: ``load("fashion-mnist", data_dir)``. Importing this package imports numpy, never torch."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from imnet.command import nearest
from imnet.data import copies
from imnet.data.base import AnySplit, DataSet, EncodedSplit, Split, hold_out_images, make, subset
from imnet.data.files import without_locks
from imnet.data.sets import AbsentError, Request, Unpacked, all_sets, dataset
from imnet.errors import UNSET, UsageError

__all__ = ["AbsentError", "DataSet", "Request", "Split", "Unpacked", "dataset", "load", "names", "without_locks"]

GENERATED = ("shapes", "synthetic")


def unread(name: str, data_dir: str | Path | None) -> str:
    """The words for a folder of data that is given, and in which the set ``name`` looks for nothing; else empty."""
    return f"{name} reads nothing of --data-dir {data_dir}" if data_dir is not None and name in GENERATED else ""


def names() -> tuple[str, ...]:
    """The names of all data sets, sorted."""
    return tuple(sorted(all_sets()))


def load(
    name: str,
    data_dir: str | Path | None = None,
    *,
    image_px: int | None = None,
    split: str | None = None,
    num_classes: int | None = None,
    seed: int = 0,
    train_images: int | None = None,
    test_images: int | None = None,
    channels: int | None = None,
    hold_out: float = 0.0,
    val_images: int | None = None,
    val_seed: int = 0,
    val_stratified: bool = False,
    whole: bool = False,
    download: bool = True,
    look: bool = False,
    on_bad: str = "stop",
) -> DataSet:
    """Load a data set by name; ``packed:FOLDER`` loads a packed store of any data set.

    ``image_px``, ``num_classes`` and ``channels`` choose the form of generated sets; for other sets they are checked.
    ``split`` chooses between a set's own splits (``fashion-mnist``: custom | official). ``train_images`` and
    ``test_images`` set the size of generated sets, and take that many evenly spaced images of others. ``hold_out`` is
    the share of each class that becomes the test part of a set without one. ``seed`` determines generated sets and the
    choice of ``hold_out``. If ``val_images`` is given, that many training images become ``val``: chosen by ``val_seed``
    as torch's random_split does, or with ``val_stratified`` the same share of every class. ``whole`` keeps pictures
    encoded if the set is packed here. ``download=False`` never uses the network. ``look`` writes and downloads nothing:
    a set that would be packed first raises Unpacked, which describes the source. ``on_bad`` is what packing does with a
    picture that cannot be decoded: stop or skip (at most one in 1000 of a split, but at least one).

    Raises UsageError (names, options), DataError (damaged; AbsentError if it is missing) and IOFailure (disk).
    """
    if name.startswith("packed:"):
        name, data_dir = "packed", name.removeprefix("packed:")
        if not data_dir:  # as a path it would be the current folder
            raise UsageError("got packed: without a folder", hint=UNSET)
    request = Request(
        data_dir=Path(data_dir) if data_dir is not None else None, image_px=image_px, split=split or None,
        num_classes=num_classes, seed=seed, train_images=train_images, test_images=test_images, channels=channels,
        hold_out=hold_out, val_images=val_images, whole=whole, download=download, look=look, on_bad=on_bad,
    )  # fmt: skip
    if name not in all_sets():
        near = nearest(name, names())
        hint = f"did you mean {near!r}?" if near else "imnet-train --list data shows them"
        raise UsageError(f"data set is {name!r}; allowed {', '.join(names())}", hint=hint)
    loaded = all_sets()[name](request)
    thinned = loaded if name in GENERATED else _thin(loaded, train_images, test_images)
    parted = thinned if val_images is None else _with_val(thinned, val_images, val_seed, val_stratified)
    return parted if name in GENERATED else copies.counted(parted)


def _thin(whole: DataSet, train_images: int | None, test_images: int | None) -> DataSet:
    """The data set cut to the given numbers of images, with a new fingerprint. The images are evenly spaced, so that
    sets sorted by class keep all classes."""
    train = _spaced(whole.train, train_images, "train_images")
    test = _spaced(whole.test, test_images, "test_images")
    if train is whole.train and test is whole.test:
        return whole
    if isinstance(train, EncodedSplit) or isinstance(test, EncodedSplit):
        mark = f"{whole.fingerprint} {len(train)} {len(test)}".encode()
        return replace(whole, train=train, test=test, fingerprint=hashlib.sha256(mark).hexdigest())
    return replace(make(whole.name, train, test, whole.class_names), notes=whole.notes, final=whole.final)


def _with_val(whole: DataSet, count: int, seed: int, stratified: bool) -> DataSet:
    """The data set with ``count`` training images held out as ``val``, and a fingerprint that depends on the choice."""
    train, val = hold_out_images(whole.train, count, seed, stratified)
    how = "the same share of every class" if stratified else "as torch's random_split draws them"
    note = f"validation: {count:,} of {len(whole.train):,} training images held out, {how}, seed {seed}"
    for part, words in ((train, "left to train"), (val, "held out")):
        bare = len(np.setdiff1d(whole.train.labels, part.labels))
        note += f"; of {bare} classes no image is {words}" if bare else ""
    mark = f"{whole.fingerprint} val {count} {seed} {stratified}".encode()
    fingerprint = hashlib.sha256(mark).hexdigest()
    return replace(whole, train=train, val=val, fingerprint=fingerprint, notes=(*whole.notes, note))


def _spaced(split: AnySplit, count: int | None, option: str) -> AnySplit:
    if count is None or count == len(split):
        return split
    if count > len(split):
        raise UsageError(f"{option} is {count}; allowed 1..{len(split)}")
    return subset(split, np.arange(count, dtype=np.int64) * len(split) // count)
