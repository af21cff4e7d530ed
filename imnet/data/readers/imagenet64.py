"""Reads ImageNet-64 / 32 / 16 / 8: pickled batches, ``.npz`` batches, and the zips of both from image-net.org.

Rows are planar R, G, B; labels are 1..1000 in the order of ``map_clsloc.txt`` (not of sorted wnids). Source:
PatrykChrabaszcz/Imagenet32_Scripts.
"""

from __future__ import annotations

import io
import re
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from imnet.data.files import file_state, reading
from imnet.data.readers.archive import unpacking
from imnet.data.readers.base import Block, Blocks, Found
from imnet.data.readers.npz import LABEL_TYPES, NpzBatch
from imnet.data.readers.pickles import Latin1, RefusedError, run_child
from imnet.data.readers.rule import LeftOut, junk_path, suffix_reason
from imnet.data.readers.tree import FolderTree
from imnet.data.readers.zips import list_zip, zip_name
from imnet.errors import DataError
from imnet.files import is_file, lines

NUM_CLASSES = 1000
CLSLOC = "map_clsloc.txt"
_SIDES = {3 * side * side: side for side in (8, 16, 32, 64)}
_BLOCK_ROWS = 2048
_BATCH = re.compile(r"(train_data_batch_(\d{1,9})|val_data)(\.npz)?")
_ZIP = re.compile(r"Imagenet\d+_\w+\.zip", re.IGNORECASE)
_MAX_BATCH_BYTES = 4 << 30


def batch_order(name: str) -> tuple[str, int] | None:
    """(split, number) from a batch's file name; None for other files."""
    match = _BATCH.fullmatch(name)
    if match is None:
        return None
    return ("train", int(match[2])) if match[2] else ("test", 0)


@dataclass(frozen=True)
class _Batch:
    """The place of a batch: a file, or a ``member`` of a zip."""

    split: str
    number: int
    file: Path
    member: str | None = None

    @property
    def place(self) -> dict[str, Any]:
        """The place as keyword arguments of DataError."""
        return {"file": self.file, "offset": self.member}


def find(source: FolderTree) -> Found | None:
    """ImageNet-64 in batches or their zips anywhere below a folder, or in one zip or batch; None if there are none."""
    path, folder = source.path, source.root
    batches: list[_Batch] = []
    left, used = LeftOut(source.left), {CLSLOC}
    for name in source.names:
        base, found = name.rpartition("/")[2], []
        if (order := batch_order(base)) is not None:
            found = [_Batch(*order, folder / name)]
        elif _ZIP.fullmatch(base):
            found = _zipped(folder / name, left)
        used.update({base} if found else ())
        batches += found
    if not batches:
        return None
    left.update(suffix_reason(name) for name in source.names if name.rpartition("/")[2] not in used)
    _refuse_twins(batches, folder, path)
    splits = {}
    for split in ("train", "test"):
        chosen = sorted((one for one in batches if one.split == split), key=lambda one: one.number)
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
    kind = f"ImageNet-{side} ({len(batches)} batches{_gaps(batches)})"
    return Found(f"imagenet{side}", kind, path, names, splits, notes, left)


def _gaps(batches: list[_Batch]) -> str:
    """The numbers of the training batches if some from the first on are missing, else an empty string."""
    numbers = sorted(one.number for one in batches if one.split == "train")
    whole = numbers == list(range(1, len(numbers) + 1))
    return "" if whole else f", of train only {', '.join(map(str, numbers))}"


def _zipped(file: Path, left: LeftOut) -> list[_Batch]:
    out: list[_Batch] = []
    for name in list_zip(file)[0]:
        order, junk = batch_order(name.rpartition("/")[2]), junk_path(name)
        if junk or order is None:
            left[junk or suffix_reason(name)] += 1
        else:
            out.append(_Batch(*order, file, name))
    return out


def _refuse_twins(batches: list[_Batch], folder: Path, path: Path) -> None:
    """Raise DataError if a batch is there twice (as pickle and npz, or zipped and unpacked): it would be trained on
    twice."""
    seen: dict[tuple[str, int], str] = {}
    for one in batches:
        place = f"{one.file.relative_to(folder)}{f' ({one.member})' if one.member else ''}"
        first = seen.setdefault((one.split, one.number), place)
        if first is not place:
            raise DataError(f"one batch twice: {first} and {place}", file=path, hint="keep one of them")


def class_names(listing: Path) -> tuple[str, ...]:
    """``n02119789 kit_fox`` ... in label order from ``map_clsloc.txt``, or else ``class_0001`` ..."""
    if not is_file(listing):
        return tuple(f"class_{i:04d}" for i in range(1, NUM_CLASSES + 1))
    names: dict[int, str] = {}
    for number, line in enumerate(lines(listing.read_text(encoding="utf-8-sig", errors="replace")), 1):
        parts = line.split()
        if not parts:
            continue
        place = int(parts[1]) if len(parts) > 1 and re.fullmatch(r"\d{1,9}", parts[1]) else 0
        if not 1 <= place <= NUM_CLASSES or place in names:
            raise DataError(f"got {line[:60]!r}; expected wnid, a new number 1..1000, name", file=listing,
                            offset=f"line {number}")  # fmt: skip
        names[place] = " ".join([parts[0], *parts[2:]])
    if len(names) != NUM_CLASSES:
        raise DataError(f"{len(names)} classes, expected {NUM_CLASSES}", file=listing)
    return tuple(names[i] for i in range(1, NUM_CLASSES + 1))


def _blocks(batches: list[_Batch]) -> Blocks:
    """All batches of a split as one stream. Shapes are read now, labels and pixels while streaming."""
    counts, sides = [], []
    files = {file: file_state(file) for file in sorted({one.file for one in batches})}
    for one in batches:
        with _opened(one) as batch:
            rows, columns = batch.shape
        if columns not in _SIDES:
            raise DataError(f"rows have {columns} bytes; allowed {sorted(_SIDES)}", **one.place)
        counts.append(rows)
        sides.append(_SIDES[columns])
    if len(set(sides)) > 1:
        raise DataError(f"batches of different sizes: {sorted(set(sides))} px", file=batches[0].file.parent)

    def stream() -> Iterator[Block]:
        for one in batches:
            with _opened(one) as batch:
                labels, start = zero_based(batch.labels(), batch.shape[0], one), 0
                for rows in batch.rows(_BLOCK_ROWS):
                    yield interleaved(rows, sides[0]), labels[start : start + len(rows)]
                    start += len(rows)

    return Blocks(sum(counts), (sides[0], sides[0], 3), stream, files)


@contextmanager
def _opened(one: _Batch) -> Iterator[_PickleBatch | NpzBatch]:
    """Open a batch for reading; one in a zip is first copied into a temporary folder."""
    with ExitStack() as stack:
        path = one.file
        if one.member is not None:
            with unpacking(one.file):
                folder = tempfile.TemporaryDirectory(prefix="imnet-batch-", ignore_cleanup_errors=True)
            path = Path(stack.enter_context(folder)) / "batch"
            _extract(one, path)
        is_npz = (one.member or one.file.name).endswith(".npz")
        yield NpzBatch(path, one.file) if is_npz else _PickleBatch(path, one)


def _extract(one: _Batch, target: Path) -> None:
    try:
        with reading(one.file), zipfile.ZipFile(one.file) as archive:
            info = {zip_name(info, one.file): info for info in archive.infolist()}[one.member or ""]
            if info.file_size > _MAX_BATCH_BYTES:
                raise DataError(f"batch has {info.file_size} bytes; allowed {_MAX_BATCH_BYTES}", **one.place)
            with archive.open(info) as source, unpacking(one.file), open(target, "xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        raise DataError(f"zip is damaged: {error}", **one.place) from error


class _PickleBatch:
    """One pickled batch: a child process reads its structure, then pixels are read from the file at ``path``."""

    def __init__(self, path: Path, batch: _Batch) -> None:
        self._path, self._place = path, batch.place
        try:
            found = run_child(path)
        except RefusedError as error:
            at = error.at if batch.member is None else batch.member
            raise DataError(
                f"pickle refused: {error}", file=batch.file, offset=at, hint="get the file again"
            ) from error
        data = found["data"]
        if data["dtype"] != "u1" or len(data["shape"]) != 2:
            raise DataError(f"data is {data['dtype']} {data['shape']}; expected u1 (n, 3 * s * s)", **self._place)
        self.shape = tuple(data["shape"])
        self._data, self._labels = data, found["labels"]

    def rows(self, block_rows: int) -> Iterator[np.ndarray]:
        count, columns = self.shape
        with self._at(self._data) as pixels:
            for start in range(0, count, block_rows):
                size = min(block_rows, count - start) * columns
                raw = pixels.read(size)
                if len(raw) < size:
                    raise DataError("file became shorter while it was read", **self._place)
                yield np.frombuffer(raw, dtype=np.uint8).reshape(-1, columns)

    def _at(self, place: dict) -> BinaryIO | Latin1:
        """The bytes of an array as a file. They are not mapped: a mapped batch would count as 1.6 GB of memory."""
        if "hex" in place:
            return io.BytesIO(bytes.fromhex(place["hex"]))
        file = open(self._path, "rb")  # noqa: SIM115  (the caller closes it)
        file.seek(place["offset"])
        return Latin1(file) if place["text"] else file

    def labels(self) -> np.ndarray:
        """The labels, integers (n,), from a list or an array of integers (a vector, or one row or column)."""
        place = self._labels
        if isinstance(place, list):
            return np.array(place, dtype=object)  # Python's integers, which may be of any size
        count = int(np.prod(place["shape"], dtype=object))
        if place["dtype"] not in LABEL_TYPES or count != max(place["shape"], default=0):
            got = f"labels are {place['dtype']} {place['shape']}; expected integers ({self.shape[0]},)"
            raise DataError(got, **self._place)
        kind = np.dtype("<" + place["dtype"])
        with self._at(place) as file:
            raw = file.read(count * kind.itemsize)
        return np.frombuffer(raw, dtype=kind).astype(np.int64)


def zero_based(labels: np.ndarray, count: int, batch: _Batch) -> np.ndarray:
    """Labels 0..999, int64, from 1..1000; DataError unless there are ``count`` of them, all in range."""
    if labels.shape != (count,):
        raise DataError(f"{labels.shape} labels for {count} images", **batch.place)
    wrong = np.flatnonzero((labels < 1) | (labels > NUM_CLASSES))
    if len(wrong):
        raise DataError(f"label {labels[wrong[0]]} of image {wrong[0]}; allowed 1..{NUM_CLASSES}", **batch.place)
    return labels.astype(np.int64) - 1


def interleaved(rows: np.ndarray, side: int) -> np.ndarray:
    """Planar rows (n, 3 * side * side) -> (n, side, side, 3)."""
    return np.ascontiguousarray(rows.reshape(-1, 3, side, side).transpose(0, 2, 3, 1))
