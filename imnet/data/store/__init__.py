"""The packed store: one memory-mapped file per split, random access in O(1), every byte covered by a checksum.

Layout (little-endian; PAGE = 4096 bytes)::

    0         8 s magic, u64 offset and u64 length of the header, u32 crc32 of these 24 bytes; zeros to PAGE
    PAGE      data: uint8 pixels (N, H, W, C), or for encoded pictures N times u32 length + bytes
    aligned   labels, int64 (N,)
    after     index, u64 (N,): offset of each encoded picture's length from the start of data (absent for pixels)
    after     crc32 (u32) of each 1 MiB block from PAGE to the end of the index
    after     header, JSON: format, sections, shape, counts, class names, resize rule, source, digest
    end       32 bytes sha256 over the first 28 bytes, the block crcs and the header; 8 s end mark

The header comes last, since a writer knows the counts only at the end. Opening a store reads everything but the data;
``verify`` reads the data too, and checks the checksum of every block.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import zlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from imnet.data.base import (
    AnySplit,
    DataSet,
    EncodedSplit,
    Split,
    check_hold_out,
    check_no_test,
    combine_digests,
    hold_out,
    split_hash,
)
from imnet.data.files import reading
from imnet.data.held import Held
from imnet.errors import DataError
from imnet.files import exists, is_file

MAGIC, END, PAGE, BLOCK_BYTES, FORMAT = b"IMNETPK1", b"IMNETEND", 4096, 1 << 20, 1
PREAMBLE = struct.Struct("<8sQQI")
FOOTER_BYTES = 40
SUFFIX = ".imnet"
_MAX_HEADER_BYTES = 64 << 20
_REBUILD = "pack it again from its source"


@dataclass(frozen=True)
class Store:
    """An open split. ``header`` is the JSON header; pixels are memory-mapped."""

    path: Path
    header: dict
    labels: np.ndarray
    class_names: tuple[str, ...]
    _held: Held
    _index: np.ndarray | None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def is_encoded(self) -> bool:
        return self._index is not None

    def images(self) -> np.ndarray:
        """The mapped pixels, uint8 (N, H, W, C), read-only; DataError if the store holds encoded pictures."""
        if self.is_encoded:
            hint = "pack with --size PX to get pixels"
            raise DataError("this store holds encoded pictures, not pixels", file=self.path, hint=hint)
        return self._held.mapped(PAGE, tuple(self.header["shape"]))

    def encoded(self, i: int) -> bytes:
        """The bytes of picture i as they were in the source; only for a store of encoded pictures."""
        assert self._index is not None, self.path
        self._held.check()
        data_bytes = self.header["sections"]["data"][1]
        at = int(self._index[i])
        length = int.from_bytes(self._held.read(PAGE + at, 4), "little") if at + 4 <= data_bytes else data_bytes
        if at + 4 + length > data_bytes:
            raise DataError(f"picture {i} goes beyond the data", file=self.path, offset=PAGE + at, hint=_REBUILD)
        return self._held.read(PAGE + at + 4, length)

    def split(self, image_px: int | None = None) -> AnySplit:
        """The split for training; encoded pictures will be resized to ``image_px`` square when they are decoded."""
        if self._index is None:
            return Split(self.images(), self.labels)
        if image_px is None:
            what = "this store holds encoded pictures, not pixels"
            raise DataError(what, file=self.path, hint="give --data.image_px PX")
        ends = np.append(self._index, self.header["sections"]["data"][1])
        # 32 bits, so that the sizes of 12 million pictures take 48 MB.
        return EncodedSplit(self.encoded, self.labels, image_px, self.path, (np.diff(ends) - 4).astype(np.uint32))

    def verify(self) -> int:
        """Check each block's crc32 and the content digest; returns the number of blocks. DataError has the offset of
        the first bad block."""
        return _verified(self._held, self.header, self.labels)


def _verified(held: Held, header: dict, labels: np.ndarray) -> int:
    sections, shape = header["sections"], header["shape"]
    start, length = sections["crc"]
    expected = np.frombuffer(held.read(start, length), dtype="<u4")
    with reading(held.path):
        got, digest = scan(held.descriptor, sections["data"][1], start, labels, shape)
    if len(got) < len(expected):
        what = f"ends after {len(got)} of {len(expected)} blocks"
        raise DataError(what, file=held.path, hint=_REBUILD)
    wrong = np.flatnonzero(got != expected)
    if len(wrong):
        number = int(wrong[0])
        what = f"block {number} has crc {got[number]:08x}, expected {expected[number]:08x}"
        raise DataError(what, file=held.path, offset=PAGE + number * BLOCK_BYTES, hint=_REBUILD)
    if digest != header["digest"]:
        raise DataError(f"content digest is {digest[:16]}, expected {header['digest'][:16]}", file=held.path)
    return len(expected)


def scan(
    descriptor: int, data_bytes: int, end: int, labels: np.ndarray, shape: list[int] | None
) -> tuple[np.ndarray, str]:
    """(crc32 of each block from PAGE to ``end``, content digest), read in one pass with memory for one block."""
    state = split_hash(tuple(shape) if shape is not None else (len(labels),))
    crcs, at = [], PAGE
    while at < end:
        block = os.pread(descriptor, min(BLOCK_BYTES, end - at), at)
        if not block:
            break
        crcs.append(zlib.crc32(block))
        state.update(memoryview(block)[: max(0, PAGE + data_bytes - at)])
        at += len(block)
    state.update(np.ascontiguousarray(labels, dtype="<i8").data)
    return np.array(crcs, dtype="<u4"), state.hexdigest()


def open_store(path: Path) -> Store:
    """Open one split; DataError (file, offset) unless preamble, header, sections, footer and labels are valid."""
    path = Path(path)
    held = Held(path)
    if held.size < PAGE + FOOTER_BYTES:
        raise DataError(f"{held.size} bytes are too few for a packed store", file=path, offset=0, hint=_REBUILD)
    header = _header(held, path)
    sections = _sections(header, held.size, path)
    labels = np.frombuffer(held.read(*sections["labels"]), dtype="<i8").astype(np.int64)
    names = tuple(header["class_names"])
    wrong = np.flatnonzero((labels < 0) | (labels >= len(names)))
    if len(wrong):
        at = sections["labels"][0] + 8 * int(wrong[0])
        got = f"label {labels[wrong[0]]} of image {wrong[0]}; allowed 0..{len(names) - 1}"
        raise DataError(got, file=path, offset=at, hint=_REBUILD)
    index = None
    if header["shape"] is None:
        index = np.frombuffer(held.read(*sections["index"]), dtype="<u8")
    held.verify = partial(_verified, header=header, labels=labels)
    return Store(path, header, labels, names, held, index)


def _header(held: Held, path: Path) -> dict:
    size, first = held.size, held.read(0, PAGE)
    magic, offset, length, crc = PREAMBLE.unpack_from(first)
    if magic != MAGIC:
        raise DataError(f"not a packed store: starts with {magic!r}, expected {MAGIC!r}", file=path, offset=0)
    if zlib.crc32(first[:24]) != crc or any(first[PREAMBLE.size :]):
        raise DataError("first page is damaged (crc)", file=path, offset=24, hint=_REBUILD)
    if held.read(size - 8, 8) != END or offset + length + FOOTER_BYTES != size:
        expected = offset + length + FOOTER_BYTES
        raise DataError(f"truncated or overlong: {size} bytes, expected {expected}", file=path, offset=size,
                        hint=_REBUILD)  # fmt: skip
    if not 0 < length <= _MAX_HEADER_BYTES:
        raise DataError(f"header of {length} bytes; allowed 1..{_MAX_HEADER_BYTES}", file=path, offset=8)
    raw = held.read(offset, length)
    try:
        header = json.loads(raw)
        start, extent = header["sections"]["crc"]
        crcs = held.read(start, extent)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError("header is not what a packed store has", file=path, offset=offset, hint=_REBUILD) from error
    if hashlib.sha256(first[:28] + crcs + raw).digest() != held.read(size - FOOTER_BYTES, 32):
        raise DataError("footer hash does not match header and crcs", file=path, offset=size - FOOTER_BYTES,
                        hint=_REBUILD)  # fmt: skip
    return header


def _sections(header: dict, size: int, path: Path) -> dict[str, list[int]]:
    """The sections; DataError unless they are in order, inside the file, and fit the count and the shape."""
    if header.get("format") != FORMAT:
        got = header.get("format")
        raise DataError(f"store format is {got!r}; this version reads {FORMAT}", file=path, hint=_REBUILD)
    try:
        sections, count, shape = header["sections"], header["count"], header["shape"]
        data, labels, index, crc = (tuple(map(int, sections[key])) for key in ("data", "labels", "index", "crc"))
        pixels = None if shape is None else int(np.prod([int(n) for n in shape], dtype=object))
        blocks = -(-(index[0] + index[1] - PAGE) // BLOCK_BYTES)
        good = (
            data[0] == PAGE
            and data[0] + data[1] <= labels[0]
            and labels[0] + labels[1] == index[0]
            and index[0] + index[1] == crc[0]
            and crc[0] + crc[1] <= size
            and labels[1] == 8 * count
            and index[1] == (8 * count if shape is None else 0)
            and crc[1] == 4 * blocks
            and min(count, *data, *labels, *index, *crc) >= 0
            and (shape is None or (len(shape) == 4 and shape[0] == count and pixels == data[1]))
            and all(isinstance(name, str) for name in header["class_names"])
            and isinstance(header["digest"], str)
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"header lacks or garbles {error}", file=path, hint=_REBUILD) from error
    if not good:
        raise DataError("header's sections do not fit its count, shape or the file", file=path, hint=_REBUILD)
    return sections


def split_path(folder: Path, split: str) -> Path:
    return Path(folder) / f"{split}{SUFFIX}"


def is_store(folder: Path) -> bool:
    """Whether a folder holds a packed training split."""
    return is_file(split_path(folder, "train"))


def load_store(
    folder: Path, image_px: int | None = None, held_share: float = 0.0, seed: int = 0, name: str | None = None
) -> DataSet:
    """A packed folder as a DataSet of mapped splits; its fingerprint equals that of the same data in memory.

    In a store without a test part, ``held_share`` of each class, chosen by ``seed``, becomes it. DataError if the store
    holds another set than ``name``, except for ``folder``, which may be packed from anything.
    """
    if any(folder.glob(f"*{SUFFIX}.part")) and not exists(folder / "source.json"):
        hint = "wait for it, or run the same imnet-data pack again"
        raise DataError("packing has not ended here: parts may be of two states of the source", file=folder, hint=hint)
    train = open_store(split_path(folder, "train"))
    held = train.header["name"]
    if name not in (None, "folder", held):
        raise DataError(f"this packed store holds {held}, not {name}", file=folder, hint=f"--data packed:{folder}")
    name = name or held
    files = {split: split_path(folder, split) for split in ("test", "final")}
    stores = {split: open_store(file) for split, file in files.items() if is_file(file)}
    if "test" in stores:
        check_no_test(held_share)
    if held_share:
        return _held_out(train, name, image_px, held_share, seed)
    if "test" not in stores:
        hint = "--data.hold_out 0.1 takes a tenth of each class for it"
        raise DataError("packed store has no test split", file=folder, hint=hint)
    for split, store in stores.items():
        if store.class_names != train.class_names:
            raise DataError(f"train and {split} have different class names", file=store.path, hint=_REBUILD)
    names, digests = train.class_names, (train.header["digest"], stores["test"].header["digest"])
    parts = {split: store.split(image_px) for split, store in stores.items()}
    return DataSet(
        name, train.split(image_px), parts["test"], names, combine_digests(*digests, names),
        _notes(train, *stores.values()), parts.get("final"),
    )  # fmt: skip


def _held_out(train: Store, name: str, image_px: int | None, share: float, seed: int) -> DataSet:
    check_hold_out(train.labels, train.path)
    rest, held = hold_out(train.split(image_px), share, seed)
    mark = f"{train.header['digest']} hold_out {share} {seed}".encode()
    digest = combine_digests(hashlib.sha256(mark).hexdigest(), train.header["digest"], train.class_names)
    note = f"no test part: {share:.0%} of each class, {len(held):,} images, is held out for it"
    single = int((np.bincount(train.labels) == 1).sum())
    note += f"; {single} classes with one image have none in it" if single else ""
    return DataSet(name, rest, held, train.class_names, digest, (*_notes(train), note))


def _notes(*stores: Store) -> tuple[str, ...]:
    """The reader's notes from packing, and the numbers of pictures that were left out or have an EXIF rotation."""
    said = {"left_out": "pictures that cannot be decoded, left out", "turned": "pictures with a camera's note to turn "
            "them (EXIF), which nothing here follows"}  # fmt: skip
    counted = {name: [(s.header.get(name), s.header["split"]) for s in stores] for name in said}
    told = {name: ", ".join(f"{n:,} of {split}" for n, split in counts if n) for name, counts in counted.items()}
    return (
        *map(str, stores[0].header.get("notes", ())),
        *(f"{said[name]}: {told[name]}" for name in said if told[name]),
    )
