"""Opens one split of any data at a path, image by image, for evaluation. Packs and writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imnet.data.base import DataSet
from imnet.data.readers import Blocks, Items, recognise
from imnet.data.readers.rule import same_name, split_of
from imnet.data.store import SUFFIX, Store, open_store, split_path
from imnet.errors import DataError, UsageError
from imnet.files import is_dir, is_file

SPLITS = ("test", "final", "train")
"""If no split is asked for, the first of these that exists is taken; final is the test set beside a validation set."""


@dataclass(frozen=True)
class Images:
    """``read(i)`` returns an encoded picture or uint8 pixels (H, W, C), and ``name(i)`` its file or its number."""

    path: Path
    split: str
    class_names: tuple[str, ...]
    labels: np.ndarray
    """int64 (N,), indices into ``class_names``."""
    read: Callable[[int], bytes | np.ndarray]
    name: Callable[[int], str]

    def __len__(self) -> int:
        return len(self.labels)


def images_at(path: Path, split: str | None = None) -> Images:
    """Open a packed store, or any data that ``recognise`` supports; ``split`` is train, test (or val) or final.

    Raises UsageError if there is no such split, and the errors of the readers.
    """
    stores = {name: split_path(path, name) for name in SPLITS} if is_dir(path) else {}
    stores = {name: file for name, file in stores.items() if is_file(file)}
    if path.suffix == SUFFIX and is_file(path):
        stores = {path.stem: path}
    if stores:
        name = chosen(split, tuple(stores), path)
        return _of_store(open_store(stores[name]), name)
    found = recognise(path)
    name = chosen(split, tuple(found.splits), path)
    part = found.splits[name]
    if isinstance(part, Items):
        return _of_items(path, name, found.class_names, part)
    return _of_blocks(path, name, found.class_names, part)


def chosen(asked: str | None, there: tuple[str, ...], path: Path | None) -> str:
    """The split to take, of the names in ``there``; UsageError if the one asked for is not among them."""
    if asked is None:
        return next(name for name in (*SPLITS, *there) if name in there)
    name = asked
    if asked not in there:
        name = "train" if split_of(asked) == "train" else "test" if split_of(asked) else asked
    if name not in there:
        raise UsageError(f"got --split {asked}; allowed here: {', '.join(there)}", file=path, hint="or leave it out")
    return name


def part_of(asked: str, dataset: DataSet, judged_on: str) -> str:
    """The part of a run's data set that ``asked`` means; UsageError if the set has no such part. ``val`` means the
    images held out of train or, if there are none and ``judged_on`` is not "test set", the part ``test``."""
    there = [name for name in ("test", "final", "val", "train") if getattr(dataset, name) is not None]
    meant = asked if asked in there else split_of(asked)
    if meant == "val" and "val" not in there and judged_on != "test set":
        meant = "test"
    if meant not in there:
        raise UsageError(f"got --split {asked}; allowed here: {', '.join(there)}", hint="or leave it out")
    return meant


def _of_store(store: Store, split: str) -> Images:
    pixels = None if store.is_encoded else store.images()
    read = store.encoded if pixels is None else pixels.__getitem__
    return Images(store.path, split, store.class_names, store.labels, read, str)


def _of_items(path: Path, split: str, class_names: tuple[str, ...], items: Items) -> Images:
    def name(i: int) -> str:
        file, member = items.where(i)
        return file if member is None else f"{file}/{member}"

    return Images(path, split, class_names, items.labels(), items.read, name)


def _of_blocks(path: Path, split: str, class_names: tuple[str, ...], blocks: Blocks) -> Images:
    """Reads all images into memory, since such files can only be read in order."""
    parts = list(blocks.stream())
    pixels, labels = (np.concatenate([part[at] for part in parts]) for at in (0, 1))
    return Images(path, split, class_names, labels.astype(np.int64), pixels.__getitem__, str)


def matched(images: Images, known: tuple[str, ...]) -> np.ndarray:
    """The labels of ``images``, int64 (N,), as indices into ``known``, the classes of a network; matched by name.

    Raises DataError if the network lacks a class of the images, or if several classes share a name.
    """
    if images.class_names == known:
        return images.labels
    number = {name: i for i, name in enumerate(known)}
    used = [images.class_names[i] for i in np.unique(images.labels)]
    lacking = [name for name in used if name not in number]
    if lacking:
        met = set(map(same_name, lacking))
        alike = [name for name in known if same_name(name) in met]
        show = ascii if alike else str  # escapes show how names that look the same differ
        what = f"{len(lacking)} of {len(used)} classes are none of the network's {len(known)}: {_some(lacking, show)}"
        raise DataError(what, file=images.path, hint=f"its classes are matched by name: {_some(alike or known, show)}")
    counts = Counter(known), Counter(images.class_names)
    twice = [name for name in used if any(count[name] > 1 for count in counts)]
    if twice:
        what = f"several classes share a name, which cannot be matched: {_some(twice)}"
        raise DataError(what, file=images.path, hint="only the same list of classes, in the same order, would do")
    return np.array([number.get(name, -1) for name in images.class_names], dtype=np.int64)[images.labels]


def _some(names: Sequence[str], show: Callable[[str], str] = str) -> str:
    return ", ".join(map(show, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
