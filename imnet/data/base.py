"""``DataSet``, the form of every loaded set, and its splits of uint8 pixels or encoded pictures. Imports numpy only."""

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
    """One split: images, uint8 (N, H, W, C), in memory or memory-mapped, and labels, int64 (N,), counted from 0."""

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
        """Bytes of all pixels."""
        return self.images.nbytes

    def pictures(self, rows: Sequence[int]) -> np.ndarray:
        """The images at ``rows`` as uint8 (n, H, W, C), for display."""
        return self.images[list(rows)]

    def digest(self) -> str:
        """sha256 (hex) over shape, pixels and labels; independent of how the split is stored."""
        state = split_hash(self.images.shape)
        for chunk in chunks(self.images):
            state.update(chunk.data)
        state.update(np.ascontiguousarray(self.labels, dtype="<i8").data)
        return state.hexdigest()


@dataclass(frozen=True)
class EncodedSplit:
    """One split of encoded pictures (JPEG, PNG, ...) of any size, which are decoded each time they are used.

    ``read(i)`` returns the bytes of picture i, and ``sizes``, integers (N,), their number. Unless the recipe crops from
    the whole picture, a picture is resized to ``image_px`` square with the BOX filter, which gives the same pixels as a
    store packed at that size.
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
        """Bytes of all encoded pictures."""
        return int(self.sizes.sum(dtype=np.int64))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image after decoding and resizing."""
        return self.image_px, self.image_px, 3

    def pictures(self, rows: Sequence[int]) -> np.ndarray:
        """The pictures at ``rows`` as uint8 (n, H, W, 3), for display; black if one cannot be decoded."""
        from imnet.data.readers.picture import BadPictureError, ResizeRule, decode

        out = np.zeros((len(rows), *self.image_shape), dtype=np.uint8)
        for at, i in enumerate(rows):
            with contextlib.suppress(BadPictureError):
                out[at] = decode(self.read(i), ResizeRule(self.image_px))
        return out


AnySplit = Split | EncodedSplit


def subset(split: AnySplit, rows: np.ndarray) -> AnySplit:
    """The images at ``rows``, int64 (n,), in that order. Pixels are copied into memory; encoded pictures are not."""
    if isinstance(split, EncodedSplit):
        read = split.read
        return replace(split, read=lambda i: read(int(rows[i])), labels=split.labels[rows], sizes=split.sizes[rows])
    return Split(np.ascontiguousarray(split.images[rows]), split.labels[rows])


def hold_out(train: AnySplit, share: float, seed: int) -> tuple[AnySplit, AnySplit]:
    """Hold out ``share`` of each class, and at least one image of every class that has two; returns (rest, held out).

    The choice depends on the labels, ``share`` and ``seed`` alone, so that a resumed run gets the same parts.
    """
    return _parted(train, _of_each_class(train.labels, held_of_each_class(train.labels, share), seed))


def held_of_each_class(labels: np.ndarray, share: float) -> np.ndarray:
    """The number of images that ``hold_out`` takes from each class, int64 (classes,)."""
    counts = np.bincount(labels)
    return np.where(counts > 1, np.clip(np.round(counts * share), 1, counts - 1), 0).astype(np.int64)


def check_hold_out(labels: np.ndarray, file: Path) -> None:
    """Raise DataError if no class of ``labels``, int64 (N,), has two images, so that none can be held out."""
    if len(labels) and np.bincount(labels).max() < 2:
        hint = "add pictures, or a test part: val/ beside train/"
        raise DataError("one picture a class: none can be held out to judge", file=file, hint=hint)


def check_no_test(share: float) -> None:
    """Raise UsageError if a ``share`` is to be held out of a set that has a test part already."""
    if share:
        raise UsageError(f"got hold_out = {share:g} for a set with a test part", hint="--data.hold_out 0")


def check_val_images(count: int, total: int) -> None:
    """Raise UsageError if holding out ``count`` of ``total`` training images leaves either part empty."""
    if not 0 < count < total:
        raise UsageError(f"got val_images = {count} of {total:,} training images", hint=f"allowed: 1..{total - 1}")


def hold_out_images(train: AnySplit, count: int, seed: int, stratified: bool) -> tuple[AnySplit, AnySplit]:
    """Hold out exactly ``count`` images; returns (rest, held out).

    If ``stratified``, every class gives the same share, rounded by the largest remainders. Otherwise the images are
    those that ``torch.utils.data.random_split(train, [rest, count])`` takes with a generator seeded with ``seed``.
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
    """Numbers, int64 (classes,), proportional to ``counts`` with sum ``total``, rounded by the largest remainders."""
    shares = counts * total / counts.sum()
    taken = np.floor(shares).astype(np.int64)
    first = np.argsort(taken - shares, kind="stable")
    taken[first[: total - taken.sum()]] += 1
    return taken


def _of_each_class(labels: np.ndarray, taken: np.ndarray, seed: int) -> np.ndarray:
    """A mask, bool (N,), of ``taken[c]`` images of each class c, chosen at random by ``seed``."""
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
    """A named data set. ``fingerprint`` is a sha256 (hex), which differs for other splits or class names."""

    name: str
    train: AnySplit
    test: AnySplit
    class_names: tuple[str, ...]
    fingerprint: str
    # Lines for the user: what the reader left out, and anything that may surprise.
    notes: tuple[str, ...] = ()
    # The test set of a source that also has a validation set, which is ``test`` here; evaluated once, after training.
    final: AnySplit | None = None
    # Images held out of train: evaluated like ``test``, and used to choose the best epoch.
    val: AnySplit | None = None
    # Part -> number of its images that are in train too; None if finding them would mean reading too much.
    copies: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of one image."""
        return self.train.image_shape

    def part(self, name: str) -> AnySplit:
        """The split called train, test, val or final; UsageError if the set does not have it."""
        there = {"test": self.test, "train": self.train, "val": self.val, "final": self.final}
        found = there.get(name)
        if found is None:
            has = ", ".join(word for word, part in there.items() if part is not None)
            raise UsageError(f"got split {name}; {self.name} has: {has}")
        return found


def split_hash(shape: tuple[int, ...]) -> hashlib._Hash:
    """The hash object of one split, seeded with its shape. Feed it the pixels in order, then the labels as
    little-endian int64."""
    return hashlib.sha256(f"imnet-split uint8 {tuple(int(n) for n in shape)}".encode())


def combine_digests(train: str, test: str, class_names: tuple[str, ...]) -> str:
    """The fingerprint of a data set from the digests of its splits and its class names, in order."""
    return hashlib.sha256("\0".join((train, test, *class_names)).encode()).hexdigest()


def make(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> DataSet:
    """Return a data set with its fingerprint; DataError if a part is empty or a label is outside the class names."""
    for where, split in (("train", train), ("test", test)):
        if not len(split):
            raise DataError(f"{name}: its {where} part has 0 images", hint="get it again")
        if not 0 <= int(split.labels.min()) <= int(split.labels.max()) < len(class_names):
            got = f"{int(split.labels.min())}..{int(split.labels.max())}"
            raise DataError(f"{name}: {where} labels are {got}; allowed 0..{len(class_names) - 1}")
    fingerprint = combine_digests(train.digest(), test.digest(), class_names)
    return DataSet(name, train, test, class_names, fingerprint)


def chunks(images: np.ndarray) -> Iterator[np.ndarray]:
    """Contiguous pieces of ``images`` along the first axis, of about 8 MiB, so that little of a map is in memory."""
    per_image = max(1, int(np.prod(images.shape[1:], dtype=np.int64)))
    step = max(1, _CHUNK_BYTES // per_image)
    for start in range(0, images.shape[0], step):
        yield np.ascontiguousarray(images[start : start + step])
