"""ImageNet-64 / 32 / 16 / 8: pickled batches, ``.npz`` batches, and the zips of both, as image-net.org serves them.

Rows are planar R, G, B; labels 1..1000 in the order of ``map_clsloc.txt`` (not of sorted wnids). Source:
PatrykChrabaszcz/Imagenet32_Scripts.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imnet.data.files import io_errors
from imnet.data.readers.archive import list_zip
from imnet.data.readers.base import Block, Blocks, Found
from imnet.data.readers.npz import npz_rows, npz_vector
from imnet.data.readers.pickles import Latin1, RefusedError, run_child
from imnet.data.readers.rule import LeftOut, junk_path, suffix_reason
from imnet.data.readers.tree import Tree
from imnet.errors import DataError

NUM_CLASSES = 1000
CLSLOC = "map_clsloc.txt"
_SIDES = {3 * side * side: side for side in (8, 16, 32, 64)}
_BLOCK_ROWS = 2048
_BATCH = re.compile(r"(train_data_batch_(\d+)|val_data)(\.npz)?")
_ZIP = re.compile(r"Imagenet\d+_\w+\.zip", re.IGNORECASE)
_MAX_BATCH_BYTES = 4 << 30


def batch_order(name: str) -> tuple[str, int] | None:
    """(split, number) of a batch's file name, None for other files."""
    match = _BATCH.fullmatch(name)
    if match is None:
        return None
    return ("train", int(match[2])) if match[2] else ("test", 0)


def find(source: Tree) -> Found | None:
    """ImageNet-64 in batches or in their zips, anywhere below a folder, or in one zip or batch; None without any."""
    path = source.path
    folder = path if path.is_dir() else path.parent
    sources: list[tuple[tuple[str, int], Path, str | None]] = []
    left, used = LeftOut(source.left), {CLSLOC}
    for name in source.names if path.is_dir() else [path.name]:
        base = name.rpartition("/")[2]
        order, found = batch_order(base), []
        if order is not None:
            found = [(order, folder / name, None)]
        elif _ZIP.fullmatch(base):
            found = _zipped(folder / name, left)
        used.update({base} if found else ())
        sources += found
    if not sources:
        return None
    left.update(suffix_reason(name) for name in source.names if name.rpartition("/")[2] not in used)
    _refuse_twins(sources, path)
    splits = {}
    for split in ("train", "test"):
        chosen = [(file, name) for order, file, name in sorted(sources, key=lambda one: one[0]) if order[0] == split]
        if chosen:
            splits[split] = _blocks(chosen)
    sides = {split: blocks.shape[0] for split, blocks in splits.items()}
    if len(set(sides.values())) > 1:
        raise DataError(f"batches of different sizes: {sides} px", file=path)
    side, notes = next(iter(sides.values())), []
    names = class_names(next((folder / name for name in source.names if name.rpartition("/")[2] == CLSLOC),
                             folder / CLSLOC))  # fmt: skip
    if not names[0].startswith("n0"):
        notes.append(f"no {CLSLOC} beside the batches: classes are named by number")
    kind = f"ImageNet-{side} ({len(sources)} batches{_gaps(sources)})"
    return Found(f"imagenet{side}", kind, path, names, splits, notes, left)


def _gaps(sources: list[tuple[tuple[str, int], Path, str | None]]) -> str:
    """Which training batches there are, where some between them are not."""
    numbers = sorted(order[1] for order, _, _ in sources if order[0] == "train")
    whole = not numbers or numbers[-1] - numbers[0] + 1 == len(numbers)
    return "" if whole else f", of train only {', '.join(map(str, numbers))}"


def _zipped(file: Path, left: LeftOut) -> list[tuple[tuple[str, int], Path, str | None]]:
    out: list[tuple[tuple[str, int], Path, str | None]] = []
    for member in list_zip(file)[0].values():
        order = batch_order(member.name.rpartition("/")[2])
        reason = junk_path(member.name) or (suffix_reason(member.name) if order is None else None)
        if reason or order is None:
            left[reason or "no suffix"] += 1
        else:
            out.append((order, file, member.name))
    return out


def _refuse_twins(sources: list[tuple[tuple[str, int], Path, str | None]], path: Path) -> None:
    """One batch twice (as pickle and as npz, or in its zip and unpacked) would be trained on twice."""
    seen: dict[tuple[str, int], str] = {}
    for order, file, member in sources:
        place = f"{file.relative_to(path) if path.is_dir() else file.name}{f' ({member})' if member else ''}"
        if order in seen:
            raise DataError(f"one batch twice: {seen[order]} and {place}", file=path, hint="keep one of them")
        seen[order] = place


def class_names(listing: Path) -> tuple[str, ...]:
    """``n02119789 kit_fox`` ... in label order from ``map_clsloc.txt``, else ``class_0001`` ..."""
    if not listing.is_file():
        return tuple(f"class_{i:04d}" for i in range(1, NUM_CLASSES + 1))
    names: dict[int, str] = {}
    for number, line in enumerate(listing.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        parts = line.split()
        if not parts:
            continue
        if len(parts) < 2 or not parts[1].isdigit() or not 1 <= int(parts[1]) <= NUM_CLASSES or int(parts[1]) in names:
            raise DataError(f"got {line[:60]!r}; expected wnid, a new number 1..1000, name", file=listing,
                            offset=f"line {number}")  # fmt: skip
        names[int(parts[1])] = " ".join([parts[0], *parts[2:]])
    if len(names) != NUM_CLASSES:
        raise DataError(f"{len(names)} classes, expected {NUM_CLASSES}", file=listing)
    return tuple(names[i] for i in range(1, NUM_CLASSES + 1))


def _blocks(chosen: list[tuple[Path, str | None]]) -> Blocks:
    """All batches of a split as one stream; shapes and labels are read now, pixels when streamed."""
    counts, sides = [], []
    for file, member in chosen:
        with _at_hand(file, member) as batch:
            rows, columns = batch.shape
        if columns not in _SIDES:
            raise DataError(f"rows have {columns} bytes; allowed {sorted(_SIDES)}", file=file, offset=member)
        counts.append(rows)
        sides.append(_SIDES[columns])
    if len(set(sides)) > 1:
        raise DataError(f"batches of different sizes: {sorted(set(sides))} px", file=chosen[0][0].parent)

    def stream() -> Iterator[Block]:
        for file, member in chosen:
            with _at_hand(file, member) as batch:
                yield from batch.blocks(sides[0])

    paths = tuple(sorted({file for file, _ in chosen}))
    return Blocks(sum(counts), (sides[0], sides[0], 3), stream, paths)


class _at_hand:  # noqa: N801  (a context manager, used like a function)
    """A batch file ready to read; one inside a zip is copied to a temporary folder first, size-checked, and removed."""

    def __init__(self, file: Path, member: str | None) -> None:
        self._file, self._member, self._folder = file, member, None

    def __enter__(self) -> _PickleBatch | _NpzBatch:
        path = self._file
        if self._member is not None:
            self._folder = tempfile.mkdtemp(prefix="imnet-batch-")
            path = self._extract(Path(self._folder) / "batch")
        npz = (self._member or self._file.name).endswith(".npz")
        return (_NpzBatch if npz else _PickleBatch)(path, self._file, self._member)

    def _extract(self, target: Path) -> Path:
        with zipfile.ZipFile(self._file) as archive:
            info = archive.getinfo(self._member or "")
            if info.file_size > _MAX_BATCH_BYTES:
                got = f"batch has {info.file_size} bytes; allowed {_MAX_BATCH_BYTES}"
                raise DataError(got, file=self._file, offset=self._member)
            try:
                with archive.open(info) as source, io_errors(target, "write"), open(target, "xb") as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
            except (zipfile.BadZipFile, EOFError) as error:
                raise DataError(f"zip member is damaged: {error}", file=self._file, offset=self._member) from error
        return target

    def __exit__(self, *_: object) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)


class _PickleBatch:
    """One pickled batch: read in a child, its pixels then taken from the mapped file."""

    def __init__(self, path: Path, file: Path, member: str | None) -> None:
        self._path, self._file, self._member = path, file, member
        try:
            found = run_child(path)
        except RefusedError as error:
            at = error.at if member is None else member
            raise DataError(f"pickle refused: {error}", file=file, offset=at, hint="get the file again") from error
        data = found["data"]
        if data["dtype"] != "u1" or len(data["shape"]) != 2:
            got = f"data is {data['dtype']} {data['shape']}; expected u1 (n, 3 * s * s)"
            raise DataError(got, file=file, offset=member)
        self.shape = tuple(data["shape"])
        self._data = data
        labels = found["labels"]
        self._labels = self._vector(labels) if isinstance(labels, dict) else np.array(labels, dtype=np.int64)

    def blocks(self, side: int) -> Iterator[Block]:
        labels = zero_based(self._labels, self.shape[0], self._file, self._member)
        count, columns = self.shape
        with self._at(self._data) as pixels:
            for start in range(0, count, _BLOCK_ROWS):
                size = min(_BLOCK_ROWS, count - start) * columns
                raw = pixels.read(size)
                if len(raw) < size:
                    raise DataError("file became shorter while it was read", file=self._file, offset=self._member)
                rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, columns)
                yield interleaved(rows, side), labels[start : start + _BLOCK_ROWS]

    def _at(self, place: dict) -> BinaryIO | Latin1:
        """An array's bytes by reading, not mapping: a mapped batch would count as 1.6 GB of memory."""
        if "hex" in place:
            return io.BytesIO(bytes.fromhex(place["hex"]))
        file = open(self._path, "rb")  # noqa: SIM115  (the caller closes it)
        file.seek(place["offset"])
        return Latin1(file) if place["text"] else file

    def _vector(self, place: dict) -> np.ndarray:
        """int64 labels of an array of integers, of one row or column too; nothing where it is another array."""
        count = int(np.prod(place["shape"], dtype=object))
        if place["dtype"] not in ("i8", "i4", "i2", "u1", "u2") or count != max(place["shape"], default=0):
            return np.empty(0, dtype=np.int64)
        kind = np.dtype("<" + place["dtype"])
        with self._at(place) as file:
            raw = file.read(count * kind.itemsize)
        return np.frombuffer(raw, dtype=kind).astype(np.int64)


class _NpzBatch:
    """One .npz batch: members are streamed, never loaded whole."""

    def __init__(self, path: Path, file: Path, member: str | None) -> None:
        self._path, self._file, self._member = path, file, member
        self.shape, self._rows = npz_rows(path, "data.npy", os.fspath(file))

    def blocks(self, side: int) -> Iterator[Block]:
        raw = npz_vector(self._path, "labels.npy", self.shape[0], os.fspath(self._file))
        labels, start = zero_based(raw, self.shape[0], self._file, self._member), 0
        for rows in self._rows(_BLOCK_ROWS):
            yield interleaved(rows, side), labels[start : start + len(rows)]
            start += len(rows)


def zero_based(labels: np.ndarray, count: int, file: Path, member: str | None) -> np.ndarray:
    """Labels 0..999 from 1..1000; DataError unless there are ``count`` of them, all in range."""
    if labels.shape != (count,):
        raise DataError(f"{labels.shape} labels for {count} images", file=file, offset=member)
    wrong = np.flatnonzero((labels < 1) | (labels > NUM_CLASSES))
    if len(wrong):
        got = f"label {labels[wrong[0]]} of image {wrong[0]}; allowed 1..{NUM_CLASSES}"
        raise DataError(got, file=file, offset=member)
    return labels - 1


def interleaved(rows: np.ndarray, side: int) -> np.ndarray:
    """Planar rows (n, 3 * side * side) -> (n, side, side, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))
