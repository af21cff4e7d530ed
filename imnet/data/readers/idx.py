"""Reads IDX files (MNIST's format), gz or raw: two zero bytes, type, number of dimensions, big-endian sizes, data.

A set has four IDX files: images and labels, for training and for testing.

Source of the format: the MNIST page (LeCun, Cortes, Burges). Only unsigned bytes are read, which all these sets have.
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imnet.data.base import Split
from imnet.data.files import file_state, reading
from imnet.data.readers.archive import gzip_errors
from imnet.data.readers.base import Blocks, Found
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut
from imnet.data.readers.shards import note_absent
from imnet.data.readers.tree import Tree
from imnet.errors import DataError
from imnet.files import is_dir

_UINT8 = 0x08
_BLOCK_BYTES = 1 << 20
# Deflate cannot expand data further than this; a header that claims more is refused before anything is read.
_MAX_DEFLATE_RATIO = 1032
_MAX_BYTES = 4 << 30
# Examples of names: train-images-idx3-ubyte.gz (MNIST's own), train-images.idx3-ubyte (as some tools unpack it),
# emnist-balanced-test-labels-idx1-ubyte (one of several sets in a folder).
_NAME = re.compile(
    r"(?:(?P<set>.+)-)?(?P<part>train|t10k|test)[-_.](?P<kind>images|labels)[-_.]idx[13][-_.]ubyte(?:\.gz)?"
)
_DIMS = {"images": 3, "labels": 1}
_FASHION_TRAIN = "5f8188def9e493f68587d32ab506f1dd5fe3bba90234ffca72f5bcc7c418c254"
_FASHION_TEST = "961a505f937258b5c37fea980e4a03c0f5fe4e90b9fa85e0a3885793aaf94168"
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def read_idx(path: Path, num_dims: int) -> np.ndarray:
    """The uint8 array of an IDX file, in the shape of its header, which must have ``num_dims`` sizes.

    Needs memory for the array plus 1 MiB, and never more than the file can hold. DataError (file, offset in the
    uncompressed stream) if it is not exactly such a file; IOFailure if it cannot be read.
    """
    with reading(path), open(path, "rb") as raw:
        gzipped = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        size = os.fstat(raw.fileno()).st_size
        limit = min(_MAX_BYTES, size * _MAX_DEFLATE_RATIO if gzipped else size)
        with gzip_errors(path):
            return _read(gzip.GzipFile(fileobj=raw) if gzipped else raw, path, num_dims, limit)


def _read(stream: BinaryIO | gzip.GzipFile, path: Path, num_dims: int, limit: int) -> np.ndarray:
    shape = _header(stream, path, num_dims)
    count = math.prod(shape)
    if count > limit:
        raise DataError(f"header claims {count} bytes {shape}; the file holds at most {limit}", file=path, offset=4)
    data = bytearray()
    while len(data) < count:
        block = stream.read(min(_BLOCK_BYTES, count - len(data)))
        if not block:
            start = 4 + 4 * num_dims + len(data)
            raise DataError(f"data ends after {len(data)} bytes, expected {count}", file=path, offset=start)
        data += block
    if stream.read(1):
        start = 4 + 4 * num_dims + count
        raise DataError(f"trailing bytes after the {count} that the header announces", file=path, offset=start)
    return np.frombuffer(data, dtype=np.uint8).reshape(shape)


def _header(stream: BinaryIO | gzip.GzipFile, path: Path, num_dims: int) -> tuple[int, ...]:
    head = stream.read(4)
    if len(head) < 4 or head[:2] != b"\0\0":
        what = f"not an IDX file: starts with {head[:4].hex() or 'nothing'}, expected 0000"
        raise DataError(what, file=path, offset=0)
    if head[2] != _UINT8:
        raise DataError(f"IDX type is 0x{head[2]:02x}, expected 0x08 (unsigned byte)", file=path, offset=2)
    if head[3] != num_dims:
        raise DataError(f"IDX has {head[3]} dimensions, expected {num_dims}", file=path, offset=3)
    sizes = stream.read(4 * num_dims)
    if len(sizes) < 4 * num_dims:
        raise DataError(f"header ends after {4 + len(sizes)} bytes, expected {4 + 4 * num_dims}", file=path, offset=4)
    return struct.unpack(f">{num_dims}I", sizes)


@dataclass(frozen=True)
class _Set:
    """The files of one set: {(train or t10k, images or labels): its files}. Several files of a kind must be equal."""

    folder: Path
    files: dict[tuple[str, str], list[Path]]

    def read(self) -> tuple[Split, Split]:
        return self._pair("train"), self._pair("t10k")

    def _pair(self, part: str) -> Split:
        if not ((part, "images") in self.files and (part, "labels") in self.files):
            raise DataError(f"no {part}-images-idx3-ubyte[.gz] and {part}-labels-idx1-ubyte[.gz]", file=self.folder)
        images, labels = self._array(part, "images"), self._array(part, "labels")
        if len(images) != len(labels):
            names = self.files[part, "images"][0].name
            what = f"{len(labels)} labels for {len(images)} images of {names}"
            raise DataError(what, file=self.files[part, "labels"][0], offset=4)
        return Split(images[..., None], labels.astype(np.int64))

    def _array(self, part: str, kind: str) -> np.ndarray:
        first, *others = self.files[part, kind]
        array = read_idx(first, _DIMS[kind])
        for other in others:
            if not np.array_equal(read_idx(other, _DIMS[kind]), array):
                raise DataError(f"holds other data than {other.name} beside it", file=first, hint="keep one of them")
        return array


def _sets(folder: Path, names: Iterable[str]) -> list[_Set]:
    """The IDX sets among the files ``names`` of a folder, one per folder and prefix before ``train-images``."""
    found: dict[tuple[str, str], dict[tuple[str, str], list[Path]]] = defaultdict(lambda: defaultdict(list))
    for name in sorted(names):
        inside, _, base = name.rpartition("/")
        match = _NAME.fullmatch(base)
        if match is None:
            continue
        if inside.rpartition("/")[2] == base:  # a program unpacked the file into a folder of the same name
            inside = inside.rpartition("/")[0]
        role = ("train" if match["part"] == "train" else "t10k", match["kind"])
        found[inside, match["set"] or ""][role].append(folder / name)
    return [_Set(folder / inside, dict(files)) for (inside, _), files in sorted(found.items())]


def find_idx(source: Tree) -> Found | None:
    """The set in four IDX files, named Fashion-MNIST if its content is; None if there are no such files."""
    sets = _sets(source.path, source.names)
    if not sets:
        return None
    if len(sets) > 1:
        seen = ", ".join(str(files[0]) for one in sets for files in list(one.files.values())[:1])
        raise DataError(f"IDX files of {len(sets)} sets: {seen}", file=source.path, hint="give the folder of one")
    files = {file: file_state(file) for group in sets[0].files.values() for file in group}
    train, test = sets[0].read()
    if train.image_shape != test.image_shape:
        what = f"training images are {train.image_shape}, test images {test.image_shape}"
        raise DataError(what, file=sets[0].folder)
    splits: dict[str, Items | Blocks] = {"train": Blocks.of(train, files), "test": Blocks.of(test, files)}
    fashion = _digest(train) == _FASHION_TRAIN and _digest(test) == _FASHION_TEST
    names = FASHION_CLASSES if fashion else _numbers(train, test)
    name, kind = ("fashion-mnist", "Fashion-MNIST") if fashion else ("idx", "IDX")
    left, used = LeftOut(source.left), {os.fspath(file) for file in files}
    left.rest((os.fspath(source.path / other) for other in source.names), used)
    notes: list[str] = []
    note_absent(train.labels, len(names), notes)
    return Found(name, f"{kind} files", source.path, names, splits, notes, left)


def _numbers(train: Split, test: Split) -> tuple[str, ...]:
    highest = max((int(split.labels.max()) for split in (train, test) if len(split)), default=-1)
    return tuple(str(number) for number in range(highest + 1))


def _digest(split: Split) -> str:
    """sha256 of a split of an official size; empty for other sizes, which are not worth hashing."""
    return split.digest() if len(split) in (60_000, 10_000) else ""


def holds_idx(folder: Path) -> bool:
    """Whether any of the four files is directly in ``folder``."""
    return is_dir(folder) and any(_NAME.fullmatch(name) for name in os.listdir(folder))


def read_official(folder: Path) -> tuple[Split, Split]:
    """(train, test) from the four files, gzipped or raw, directly in ``folder``; DataError unless images are 28 x 28 px
    and labels 0..9."""
    sets = _sets(folder, os.listdir(folder))
    if len(sets) != 1:
        raise DataError(f"IDX files of {len(sets)} sets; expected one", file=folder)
    train, test = sets[0].read()
    for part, split in (("train", train), ("t10k", test)):
        file = sets[0].files[part, "images"][0]
        if split.image_shape[:2] != (28, 28):
            height, width, _ = split.image_shape
            raise DataError(f"images are {height} x {width}, expected 28 x 28", file=file, offset=8)
        wrong = np.flatnonzero(split.labels >= 10)
        if len(wrong):
            got = f"label {split.labels[wrong[0]]} of image {wrong[0]}; allowed 0..9"
            raise DataError(got, file=sets[0].files[part, "labels"][0], offset=8 + int(wrong[0]))
    return train, test
