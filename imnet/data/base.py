"""What every data set hands to training: two splits of uint8 pixels and labels, names and a fingerprint. numpy only."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from imnet.errors import DataError, UsageError

_CHUNK_BYTES = 8 << 20


@dataclass(frozen=True)
class Split:
    """Images of one split, uint8 (N, H, W, C), in memory or memory-mapped, and their labels, int64 (N,) from 0."""

    images: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise DataError(f"images are {self.images.dtype} {self.images.shape}; allowed uint8 (N, H, W, C)")
        if self.labels.dtype != np.int64 or self.labels.shape != self.images.shape[:1]:
            what = f"labels are {self.labels.dtype} {self.labels.shape}; allowed int64 ({len(self.images)},)"
            raise DataError(what)

    def __len__(self) -> int:
        return self.images.shape[0]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        height, width, channels = self.images.shape[1:]
        return height, width, channels

    @property
    def num_bytes(self) -> int:
        """What the images take in memory."""
        return self.images.nbytes

    def pictures(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 (n, H, W, C): these images, to look at."""
        return self.images[list(rows)]

    def digest(self) -> str:
        """sha256 (hex) over shape, pixels and labels: the same however the split is stored."""
        state = split_hash(self.images.shape)
        for chunk in chunks(self.images):
            state.update(chunk.data)
        state.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return state.hexdigest()


@dataclass(frozen=True)
class EncodedSplit:
    """Pictures of any size, as they were encoded (JPEG, PNG, ...), decoded anew whenever they are needed.

    ``read(i)`` gives the bytes of picture i, ``sizes`` (N,), whole numbers, how many those are. Unless a recipe crops
    them from the whole picture, they are made ``image_px`` square with the BOX filter: the pixels that a store packed
    at that size would hold.
    """

    read: Callable[[int], bytes]
    labels: np.ndarray
    image_px: int
    file: Path
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def num_bytes(self) -> int:
        """What the pictures take in memory, encoded."""
        return int(self.sizes.sum(dtype=np.int64))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image once it is decoded."""
        return self.image_px, self.image_px, 3

    def pictures(self, rows: Sequence[int]) -> np.ndarray:
        """uint8 (n, H, W, 3): these pictures, to look at; black where one cannot be decoded."""
        from imnet.data.readers.picture import BadPictureError, ResizeRule, decode

        out = np.zeros((len(rows), *self.image_shape), dtype=np.uint8)
        for at, i in enumerate(rows):
            with contextlib.suppress(BadPictureError):
                out[at] = decode(self.read(i), ResizeRule(self.image_px))
        return out


AnySplit = Split | EncodedSplit


def subset(split: AnySplit, rows: np.ndarray) -> AnySplit:
    """The images at ``rows`` (n,) int64, in that order; pixels are copied into memory."""
    if isinstance(split, EncodedSplit):
        read = split.read
        return replace(split, read=lambda i: read(int(rows[i])), labels=split.labels[rows], sizes=split.sizes[rows])
    return Split(np.ascontiguousarray(split.images[rows]), split.labels[rows])


def hold_out(train: AnySplit, share: float, seed: int) -> tuple[AnySplit, AnySplit]:
    """(the rest, the part held out): ``share`` of each class, at least one image of every class that has two.

    Which ones is decided by ``seed`` and the number of images alone, so that a run finds the same parts again.
    """
    return _parted(train, _of_each_class(train.labels, held_of_each_class(train.labels, share), seed))


def held_of_each_class(labels: np.ndarray, share: float) -> np.ndarray:
    """int64 (classes,): how many of each ``hold_out`` takes."""
    counts = np.bincount(labels)
    return np.where(counts > 1, np.clip(np.round(counts * share), 1, counts - 1), 0).astype(np.int64)


def check_hold_out(labels: np.ndarray, file: Path) -> None:
    """DataError where no class of ``labels``, int64 (N,), has two images, of which one could be held out."""
    if len(labels) and np.bincount(labels).max() < 2:
        hint = "add pictures, or a test part: val/ beside train/"
        raise DataError("one picture a class: none can be held out to judge", file=file, hint=hint)


def check_no_test(share: float) -> None:
    """UsageError for a ``share`` to hold out of a set that has a test part."""
    if share:
        raise UsageError(f"got hold_out = {share:g} for a set with a test part", hint="--data.hold_out 0")


def check_val_images(count: int, total: int) -> None:
    """UsageError unless both parts of ``total`` training images are left with some."""
    if not 0 < count < total:
        raise UsageError(f"got val_images = {count} of {total:,} training images", hint=f"allowed: 1..{total - 1}")


def hold_out_images(train: AnySplit, count: int, seed: int, stratified: bool) -> tuple[AnySplit, AnySplit]:
    """(the rest, exactly ``count`` images held out).

    ``stratified``: of each class its share, what rounding leaves to the largest remainders. Otherwise those that
    ``torch.utils.data.random_split(train, [rest, count])`` takes with a generator of that ``seed``.
    """
    total = len(train)
    check_val_images(count, total)
    if stratified:
        return _parted(train, _of_each_class(train.labels, _quotas(np.bincount(train.labels), count), seed))
    import torch

    order = torch.randperm(total, generator=torch.Generator().manual_seed(seed)).numpy()
    held = np.zeros(total, dtype=bool)
    held[order[total - count :]] = True
    return _parted(train, held)


def _quotas(counts: np.ndarray, total: int) -> np.ndarray:
    """How many of each class make ``total`` together: their shares, rounded by the largest remainders."""
    shares = counts * total / counts.sum()
    taken = np.floor(shares).astype(np.int64)
    first = np.argsort(taken - shares, kind="stable")
    taken[first[: total - taken.sum()]] += 1
    return taken


def _of_each_class(labels: np.ndarray, taken: np.ndarray, seed: int) -> np.ndarray:
    """bool (N,): ``taken[c]`` images of each class c, chosen by ``seed``."""
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(np.asarray(labels)[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    held = np.zeros(len(labels), dtype=bool)
    held[order[place < np.repeat(taken, counts)]] = True
    return held


def _parted(split: AnySplit, held: np.ndarray) -> tuple[AnySplit, AnySplit]:
    return subset(split, np.flatnonzero(~held)), subset(split, np.flatnonzero(held))


@dataclass(frozen=True)
class DataSet:
    """A named data set. ``fingerprint``: sha256 (hex) over both splits and the class names; other data, another one."""

    name: str
    train: AnySplit
    test: AnySplit
    class_names: tuple[str, ...]
    fingerprint: str
    # What the reader left out and what may surprise, for people.
    notes: tuple[str, ...] = ()
    # A test set beside a validation set, which is ``test`` here: judged once, in the end of training.
    final: AnySplit | None = None
    # Held out of train: judged like the test part, and the best epoch is chosen on it.
    val: AnySplit | None = None
    # Part -> how many of its images are in train too; None where that would be too much to look through.
    copies: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train.image_shape

    def part(self, name: str) -> AnySplit:
        """train, test, val or final; UsageError for one that is not there."""
        there = {"test": self.test, "train": self.train, "val": self.val, "final": self.final}
        found = there.get(name)
        if found is None:
            has = ", ".join(word for word, part in there.items() if part is not None)
            raise UsageError(f"got split {name}; {self.name} has: {has}")
        return found


def split_hash(shape: tuple[int, ...]) -> hashlib._Hash:
    """The hash object of one split, seeded with its shape; feed pixels in order, then labels as little-endian int64."""
    return hashlib.sha256(f"imnet-split uint8 {tuple(int(n) for n in shape)}".encode())


def combine_digests(train: str, test: str, class_names: tuple[str, ...]) -> str:
    """The fingerprint of a data set from the digests of its splits and its class names, in order."""
    return hashlib.sha256("\0".join((train, test, *class_names)).encode()).hexdigest()


def make(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> DataSet:
    """Check labels against the class names, compute the fingerprint, and return the data set."""
    for where, split in (("train", train), ("test", test)):
        if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(class_names):
            got = f"{int(split.labels.min())}..{int(split.labels.max())}"
            raise DataError(f"{name}: {where} labels are {got}; allowed 0..{len(class_names) - 1}")
    fingerprint = combine_digests(train.digest(), test.digest(), class_names)
    return DataSet(name, train, test, class_names, fingerprint)


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Contiguous pieces of ``images`` along the first axis, about 8 MiB each: maps stay small in memory."""
    per_image = max(1, int(np.prod(images.shape[1:], dtype=np.int64)))
    step = max(1, _CHUNK_BYTES // per_image)
    for start in range(0, images.shape[0], step):
        yield np.ascontiguousarray(images[start : start + step])
