"""The result of a reader: splits of encoded pictures (Items) or of pixel blocks (Blocks), and class names.

``select`` chooses classes and held-out pictures by rule, as for ImageNet-21K (500 pictures per class, 50 held out).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from imnet.data.base import Split
from imnet.data.files import FileState, refuse_changed
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut
from imnet.errors import DataError, UsageError, first_few, shown

# images uint8 (n, H, W, C) and labels int64 (n,)
Block = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Blocks:
    """A split whose source has pixels: ``count`` images of ``shape`` (H, W, C), read block by block in order."""

    count: int
    shape: tuple[int, int, int]
    stream: Callable[[], Iterator[Block]]
    files: Mapping[Path, FileState]
    """The files that the split is read from, with their states from before they were read."""

    @classmethod
    def of(cls, split: Split, files: Mapping[Path, FileState]) -> Blocks:
        """A split in memory that was read from ``files``."""
        return cls(len(split), split.image_shape, lambda: iter([(split.images, split.labels)]), files)

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        """A key of names, sizes and times, which changes if one of the files does."""
        return "|".join(f"{path} {size} {modified} {changed}" for path, (size, modified, changed) in self.files.items())

    def refuse_changed(self) -> None:
        """Raise DataError if one of the files has changed or was replaced."""
        for path, state in self.files.items():
            refuse_changed(path, state)


@dataclass(frozen=True)
class Choice:
    """The user's choices for sources that are ambiguous: the picture of a sample (``jpg``, or a column) to take, and
    whether to accept a set of which shards are missing."""

    image_key: str | None = None
    allow_missing: bool = False


@dataclass
class Found:
    """A recognised source: its kind in words, class names in label order, and its splits (train, test)."""

    name: str
    kind: str
    path: Path
    class_names: tuple[str, ...]
    splits: dict[str, Items | Blocks]
    notes: list[str] = field(default_factory=list)
    left: LeftOut = field(default_factory=LeftOut)

    def remarks(self) -> list[str]:
        """The notes and a line about files left out, which inspect, pack, training and --dry-run print alike."""
        return self.notes + ([self.left.line()] if self.left.line() else [])

    def describe(self) -> list[str]:
        """Lines for ``imnet-data inspect``."""
        classes = f"classes: {len(self.class_names)} ({first_few(self.class_names)})"
        lines = [f"{shown(str(self.path))}: {self.kind}", classes]
        for split, content in self.splits.items():
            what = "pictures" if isinstance(content, Items) else "images of {}x{}x{}".format(*content.shape)
            lines.append(f"{split}: {len(content)} {what}")
        return lines + [f"note: {note}" for note in self.remarks()]


Part = TypeVar("Part", bound=Items)


def with_labels(splits: dict[str, Part]) -> dict[str, Part]:
    """The splits that are not empty. If no validation picture has a label, the test set takes the place of ``test``."""
    kept = {split: items for split, items in splits.items() if len(items)}
    if "final" in kept and "test" not in kept:
        kept["test"] = kept.pop("final")
    return kept


def select(found: Found, min_images: int = 0, hold_out: int = 0) -> Found:
    """Keep, in every split, the classes with at least ``min_images`` training pictures, and make ``hold_out`` pictures
    of each the test split.

    Those whose names have the smallest sha256 are held out, so that the choice does not depend on the order or on other
    pictures. UsageError if the set holds pixels, or has a test split already and is to get one.
    """
    if not min_images and not hold_out:
        return found
    train = found.splits.get("train")
    if not isinstance(train, Items) or (hold_out and "test" in found.splits):
        what = "has a test split already" if isinstance(train, Items) else "holds pixels, not pictures"
        raise UsageError(f"--min-images and --hold-out are for pictures without a test split; {found.path} {what}")
    labels = train.labels()
    counts = np.bincount(labels, minlength=len(found.class_names))
    if not min_images:
        _refuse_emptied(found, counts, hold_out)
    kept = np.flatnonzero(counts >= max(min_images, hold_out + 1))
    if not len(kept):
        raise DataError(f"no class has {max(min_images, hold_out + 1)} pictures; the largest has {counts.max()}",
                        file=found.path)  # fmt: skip
    renumbered = np.full(len(counts), -1, dtype=np.int64)
    renumbered[kept] = np.arange(len(kept))
    held = _held_out(train, labels, renumbered, hold_out)
    splits, dropped = {}, 0
    for split, items in found.splits.items():
        assert isinstance(items, Items)  # since those of train are pictures
        fits = renumbered[items.labels()] >= 0
        splits[split] = _renumbered(items, fits & ~held if split == "train" else fits, renumbered)
        dropped += int((~fits).sum())
    if hold_out:
        splits["test"] = _renumbered(train, held, renumbered)
    names = tuple(found.class_names[i] for i in kept)
    told = f", {hold_out} pictures of each held out" if hold_out else ""
    notes = [*found.notes, f"{len(kept)} of {len(counts)} classes kept{told}"]
    left = LeftOut(LeftOut(found.left) + LeftOut({"in a class that is too small": dropped}))
    return replace(found, class_names=names, splits=dict(with_labels(splits)), notes=notes, left=left)


def _renumbered(items: Items, taken: np.ndarray, renumbered: np.ndarray) -> Items:
    rows = np.flatnonzero(taken)
    return items.take(rows, renumbered[items.labels()[rows]])


def _refuse_emptied(found: Found, counts: np.ndarray, hold_out: int) -> None:
    """Raise DataError if holding out would leave a class without pictures; called unless classes may be dropped."""
    small = np.flatnonzero(counts <= hold_out)
    if len(small) and len(small) < len(counts):
        names = first_few(tuple(found.class_names[i] for i in small))
        what = f"--hold-out {hold_out} leaves nothing of {len(small)} of {len(counts)} classes ({names})"
        raise DataError(what, file=found.path, hint=f"hold out fewer, or drop them by --min-images {hold_out + 1}")


def _held_out(train: Items, labels: np.ndarray, renumbered: np.ndarray, hold_out: int) -> np.ndarray:
    held = np.zeros(len(labels), dtype=bool)
    if not hold_out:
        return held
    ranks = np.array(
        [int.from_bytes(hashlib.sha256(train.name(i).encode(errors="surrogateescape")).digest()[:8], "big")
         for i in range(len(labels))], dtype=np.uint64,
    )  # fmt: skip
    order = np.lexsort((ranks, labels))
    starts = np.concatenate([[0], np.flatnonzero(np.diff(labels[order])) + 1])
    for start in starts.tolist():
        rows = order[start : start + hold_out]
        held[rows] = renumbered[labels[rows[0]]] >= 0
    return held
