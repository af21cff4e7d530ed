"""Parquet with encoded images in it, as Hugging Face stores data sets; needs pyarrow, ``pip install 'imnet[parquet]'``.

A column ``image`` (struct of ``bytes`` and ``path``, or plain binary), a column ``label`` of integers, class names from
the schema's metadata where it has them. Splits come from file names: ``train-00000-of-00005.parquet``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imnet.data.readers.archive import MAX_MEMBERS
from imnet.data.readers.base import Found
from imnet.data.readers.items import MAX_IMAGE_BYTES, Items
from imnet.errors import DataError, IOFailure, UsageError

_IMAGES = ("image", "img", "jpg", "png", "picture")
_LABELS = ("label", "labels", "fine_label", "cls", "class")
_MAX_FOOTER_BYTES = 64 << 20
# A batch of rows is held as Arrow read it and once more as Python bytes.
_BATCH_ROWS = 16
_MAX_CLASSES = 1_000_000
_NO_LABEL = -1


class ParquetItems(Items):
    """Pictures that are rows of ``files``, read batch by batch in order; going back starts the row group anew."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.columns: dict[str, str] = {}
        self._open: dict[str, Any] = {}
        self._owner = 0

    def where(self, i: int) -> tuple[str, str | None]:
        file, row = self.place(i)
        return file, f"row {row}"

    def take(self, rows: np.ndarray, labels: np.ndarray) -> ParquetItems:
        out = super().take(rows, labels)
        assert isinstance(out, ParquetItems)
        out.columns = dict(self.columns)
        return out

    def read(self, i: int) -> bytes:
        file, row = self.place(i)
        if self._owner != os.getpid():  # an open file is not shared with forked workers
            self._open, self._owner = {}, os.getpid()
        if file not in self._open:
            self._open = {file: _Rows(file, self.columns[file])}
        try:
            data = self._open[file].get(row)
        except Exception:
            self._open.pop(file, None)
            raise
        if data is None:
            hint = "pictures must lie in the file, not beside it"
            raise DataError("picture has no bytes", file=file, offset=f"row {row}", hint=hint)
        if len(data) > MAX_IMAGE_BYTES:
            got = f"image has {len(data)} bytes; allowed {MAX_IMAGE_BYTES}"
            raise DataError(got, file=file, offset=f"row {row}")
        return data


class _Rows:
    """One column of one open file: ``get(row)`` for rows that mostly come in order."""

    def __init__(self, file: str, column: str) -> None:
        self._file, self._column = file, column
        self._parquet = _opened(file)
        self._ends = np.cumsum([0, *_group_rows(self._parquet, file)])
        self._batches: Iterator[list[bytes | None]] = iter(())
        self._held: list[bytes | None] = []
        self._start = self._group_end = 0

    def get(self, row: int) -> bytes | None:
        if not self._start <= row < self._group_end:
            group = int(np.searchsorted(self._ends, row, side="right")) - 1
            self._start, self._group_end = int(self._ends[group]), int(self._ends[group + 1])
            self._batches, self._held = self._stream(group), []
        while row >= self._start + len(self._held):
            self._start += len(self._held)
            self._held = next(self._batches, [])
            if not self._held:
                raise DataError("row group ends early", file=self._file, offset=f"row {row}")
        return self._held[row - self._start]

    def _stream(self, group: int) -> Iterator[list[bytes | None]]:
        with _damage(self._file):
            yield from (
                [None if value is None else bytes(value) for value in values]
                for values in _batches(self._parquet, [group], self._column, _BATCH_ROWS)
            )


def _batches(parquet: Any, groups: list[int], column: str, rows: int) -> Iterator[list[Any]]:
    """The values of a column, ``a`` or ``a.b`` for a field of a struct, a batch at a time."""
    name, _, inner = column.partition(".")
    for batch in parquet.iter_batches(batch_size=rows, row_groups=groups, columns=[column], use_threads=False):
        values = batch.column(name)
        yield (values.field(inner) if inner else values).to_pylist()


@contextmanager
def _damage(file: str) -> Iterator[None]:
    """Whatever pyarrow raises, as one DataError line."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise DataError(f"Parquet is damaged: {' '.join(str(error).split())[:200]}", file=file) from error


def _opened(file: str) -> Any:
    """pyarrow's reader of a file whose footer lies inside it; DataError otherwise."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("reading Parquet needs pyarrow", file=file, hint="pip install 'imnet[parquet]'") from error
    try:
        with open(file, "rb") as raw:
            size = os.fstat(raw.fileno()).st_size
            tail = os.pread(raw.fileno(), 8, max(0, size - 8))
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=file) from error
    footer = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != b"PAR1":
        raise DataError(f"not Parquet or truncated: ends with {tail[4:]!r}, expected b'PAR1'", file=file, offset=size)
    if footer > min(size - 12, _MAX_FOOTER_BYTES):
        got = f"footer of {footer} bytes in a file of {size}; allowed {_MAX_FOOTER_BYTES}"
        raise DataError(got, file=file, offset=size - 8)
    with _damage(file):
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20,
                              thrift_string_size_limit=_MAX_FOOTER_BYTES)  # fmt: skip


def _group_rows(parquet: Any, file: str) -> list[int]:
    with _damage(file):
        meta = parquet.metadata
        rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != meta.num_rows or sum(rows) > MAX_MEMBERS:
        got = f"row groups of {sum(rows)} rows, the footer says {meta.num_rows}; allowed {MAX_MEMBERS}"
        raise DataError(got, file=file)
    return rows


def find_parquet(path: Path) -> Found | None:
    """The set in a Parquet file, or in the files of a folder or of ``data`` in it; None where there are none."""
    files = (
        [path]
        if path.is_file()
        else next(filter(None, (sorted(p.glob("*.parquet")) for p in (path, path / "data"))), [])
    )
    if not files:
        return None
    kinds = {file: _split(file.stem) for file in files}
    held_out = "validation" if "validation" in kinds.values() else "test"
    splits: dict[str, ParquetItems] = {}
    names: tuple[str, ...] = ()
    for file, kind in kinds.items():
        if kind in ("train", held_out):
            items = splits.setdefault("train" if kind == "train" else "test", ParquetItems(path))
            names = _add(items, str(file)) or names
    highest = max((int(items.labels().max()) for items in splits.values() if len(items)), default=-1)
    if names and highest >= len(names):
        raise DataError(f"{len(names)} class names, labels go to {highest}", file=path)
    left = sum(kind not in ("train", held_out) for kind in kinds.values())
    notes = [f"{left} files of the unlabelled or second test split are left out"] if left else []
    names = names or tuple(f"class_{i:04d}" for i in range(highest + 1))
    return Found("parquet", f"Parquet ({len(files)} files)", path, names, dict(splits), notes)


def _split(stem: str) -> str:
    words = re.split(r"[^a-z]+", stem.lower())
    if {"val", "valid", "validation", "dev"} & set(words):
        return "validation"
    return "test" if {"test", "testing", "eval"} & set(words) else "train"


def _add(items: ParquetItems, file: str) -> tuple[str, ...]:
    """Append the rows of a file; its class names, if it knows them."""
    parquet = _opened(file)
    rows = sum(_group_rows(parquet, file))
    with _damage(file):
        schema = parquet.schema_arrow
        image, label = _image_column(schema, file), _label_column(schema, file)
        groups = list(range(parquet.metadata.num_row_groups))
        labels = list(chain.from_iterable(_batches(parquet, groups, label, 1 << 16)))
    if len(labels) != rows:
        raise DataError(f"{len(labels)} labels for {rows} rows", file=file)
    number = len(items.files)
    items.files.append(file)
    items.columns[file] = image
    stem = Path(file).name
    for row, value in enumerate(labels):
        if type(value) is not int or not 0 <= value < _MAX_CLASSES:
            what = "no label" if value in (None, _NO_LABEL) else f"label {value}; allowed 0..{_MAX_CLASSES - 1}"
            raise DataError(f"row has {what}", file=file, offset=f"row {row}")
        items.add_member(f"{stem} row {row}", value, number, row, 0)
    return _class_names(schema, label)


def _image_column(schema: Any, file: str) -> str:
    """``image.bytes`` of a struct, or a plain binary column."""
    import pyarrow.types as kinds

    def binary(kind: Any) -> bool:
        return kinds.is_binary(kind) or kinds.is_large_binary(kind)

    named = sorted((f for f in schema), key=lambda f: _IMAGES.index(f.name) if f.name in _IMAGES else len(_IMAGES))
    for field in named:
        if "." in field.name:
            continue
        if kinds.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            if binary(field.type.field("bytes").type):
                return f"{field.name}.bytes"
        elif field.name in _IMAGES and binary(field.type):
            return field.name
    got = ", ".join(f"{f.name}: {str(f.type)[:40]}" for f in schema)[:200]
    raise DataError(f"no column of pictures (image: struct<bytes, path> or binary); it has {got}", file=file)


def _label_column(schema: Any, file: str) -> str:
    import pyarrow.types as kinds

    for name in _LABELS:
        at = schema.get_field_index(name)
        if at >= 0 and kinds.is_integer(schema.field(at).type):
            return name
    raise DataError(f"no integer column {' or '.join(_LABELS[:3])}; it has {', '.join(schema.names)[:200]}", file=file)


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The ClassLabel names that the ``datasets`` library keeps in the schema's metadata; () where there are none."""
    raw = (schema.metadata or {}).get(b"huggingface", b"")
    try:
        names = json.loads(raw)["info"]["features"][label]["names"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ()
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else ()
