"""Reads Parquet with encoded images, as Hugging Face stores them; needs pyarrow, ``pip install 'imnet[parquet]'``.

A file has a column ``image`` (struct of ``bytes`` and ``path``, or plain binary), a column ``label`` of integers or
words, and perhaps class names in the schema's metadata (see ``parquet_columns``). The name of a file or of its folder
gives its part: ``train-00000-of-00005.parquet``, ``train/0000.parquet``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from imnet.data.files import reading
from imnet.data.readers.archive import MAX_MEMBERS, Member, refuse_pointer
from imnet.data.readers.base import Choice, Found, with_labels
from imnet.data.readers.items import MAX_IMAGE_BYTES, Items
from imnet.data.readers.parquet_columns import class_names, image_column, label_column
from imnet.data.readers.rule import LeftOut, split_in
from imnet.data.readers.shards import Labels, check_label, files_by_split
from imnet.data.readers.tree import FolderTree
from imnet.errors import DataError, UsageError, shown

_MAX_FOOTER_BYTES = 64 << 20
# Small, since a batch of rows is in memory twice: as Arrow read it, and as Python bytes.
_BATCH_ROWS = 16


class ParquetItems(Items):
    """Pictures that are rows of ``files``, read batch by batch in order; going back reads the row group again."""

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
        self.refuse_changed_file(i)
        if self._owner != os.getpid():  # forked workers must not share an open file
            self._open, self._owner = {}, os.getpid()
        if file not in self._open:
            self._open = {file: _Rows(file, self.columns[file])}
        try:
            data = self._open[file].get(row)
        except Exception:
            self._open.pop(file, None)
            raise
        if data is None:
            raise _no_bytes(file, row)
        if len(data) > MAX_IMAGE_BYTES:
            got = f"image has {len(data)} bytes; allowed {MAX_IMAGE_BYTES}"
            raise DataError(got, file=file, offset=f"row {row}")
        return data


def _no_bytes(file: str, row: int) -> DataError:
    hint = "pictures must lie in the file, not beside it"
    return DataError("picture has no bytes", file=file, offset=f"row {row}", hint=hint)


class _Rows:
    """One column of an open file; ``get(row)`` is fast if rows are mostly asked for in order."""

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
    """The values of ``column`` (``a``, or ``a.b`` for a field of a struct), batch by batch."""
    name, _, inner = column.partition(".")
    for batch in parquet.iter_batches(batch_size=rows, row_groups=groups, columns=[column], use_threads=False):
        values = batch.column(name)
        yield (values.field(inner) if inner else values).to_pylist()


@contextmanager
def _damage(file: str) -> Iterator[None]:
    """Turn any error of pyarrow into a one-line DataError."""
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, IndexError, MemoryError, OverflowError) as error:
        raise DataError(f"Parquet is damaged: {' '.join(str(error).split())[:200]}", file=file) from error


def _opened(file: str) -> Any:
    """Open a file with pyarrow, after checking that its footer is inside the file; DataError if it is not."""
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UsageError("reading Parquet needs pyarrow", file=file, hint="pip install 'imnet[parquet]'") from error
    with reading(file), open(file, "rb") as raw:
        refuse_pointer(raw, file)
        size = os.fstat(raw.fileno()).st_size
        tail = os.pread(raw.fileno(), 8, max(0, size - 8))
    footer = int.from_bytes(tail[:4], "little")
    if size < 12 or tail[4:] != b"PAR1":
        raise DataError(f"not Parquet or truncated: ends with {tail[4:]!r}, expected b'PAR1'", file=file, offset=size)
    if footer > min(size - 12, _MAX_FOOTER_BYTES):
        got = f"footer of {footer} bytes in a file of {size}; allowed {_MAX_FOOTER_BYTES}"
        raise DataError(got, file=file, offset=size - 8)
    with _damage(file):
        return pq.ParquetFile(file, pre_buffer=False, buffer_size=1 << 20, page_checksum_verification=True,
                              thrift_string_size_limit=_MAX_FOOTER_BYTES)  # fmt: skip


def _group_rows(parquet: Any, file: str) -> list[int]:
    with _damage(file):
        meta = parquet.metadata
        rows = [meta.row_group(i).num_rows for i in range(meta.num_row_groups)]
    if min(rows, default=0) < 0 or sum(rows) != meta.num_rows or sum(rows) > MAX_MEMBERS:
        got = f"row groups of {sum(rows)} rows, the footer says {meta.num_rows}; allowed {MAX_MEMBERS}"
        raise DataError(got, file=file)
    return rows


@dataclass
class _Set:
    """The state of reading the files of a Parquet set."""

    path: Path
    choice: Choice
    labels: Labels
    names: tuple[str, ...] = ()
    # The file that the class names are from, and a file without class names.
    named_by: str = ""
    unnamed: str = ""
    left: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)

    def add(self, items: ParquetItems, file: str) -> None:
        """Append the rows of a file; its labels are renumbered in the order of the set's class names."""
        number = items.file_number(file)
        parquet = _opened(file)
        rows = sum(_group_rows(parquet, file))
        with _damage(file):
            schema = parquet.schema_arrow
            image, others = image_column(schema, file, self.choice.image_key)
            label, other_labels = label_column(schema, file)
            groups = list(range(parquet.metadata.num_row_groups))
            labels = list(chain.from_iterable(_batches(parquet, groups, label, 1 << 16)))
            first = next(_batches(parquet, groups[:1], image, _BATCH_ROWS), []) if rows else []
        if len(labels) != rows:
            raise DataError(f"{len(labels)} labels for {rows} rows", file=file)
        if None in first:
            raise _no_bytes(file, first.index(None))
        self._note_columns("pictures", image, others)
        self._note_columns("labels", label, other_labels)
        items.columns[file] = image
        place, base = self._placed(class_names(schema, label), file), Path(file).name
        for row, value in enumerate(labels):
            name, known = f"{base} row {row}", None
            if value is not None:
                check_label(value, file=file, offset=f"row {row}")
                known = self.labels.number(value, name)
            if known is None:
                self.left["unlabelled"] += 1
                continue
            if place is not None and known >= len(place):
                raise DataError(f"{len(place)} class names, label {known}", file=file, offset=f"row {row}")
            items.add(known if place is None else place[known], number, Member(name, row, 0, 0))

    def _note_columns(self, what: str, column: str, others: list[str]) -> None:
        note = f"{what} of column {column.partition('.')[0]}; left out: {', '.join(others)}"
        if others and note not in self.notes:
            self.notes.append(note)

    def _placed(self, names: tuple[str, ...], file: str) -> list[int] | None:
        """For each class number of a file its number in the set, or None if they are the same."""
        if not names:
            self.unnamed = self.unnamed or file
        elif not self.names:
            self.names, self.named_by = names, file
        if self.names and self.unnamed:
            what = f"it has no class names, {Path(self.named_by).name} has: do its labels count alike?"
            raise DataError(what, file=self.unnamed)
        if not names or names == self.names:
            return None
        unknown = sorted(set(names) - set(self.names))
        if unknown or len(set(names)) < len(names):
            what = f"its class names ({', '.join(names[:3])}, ...) are not those of {Path(self.named_by).name}"
            raise DataError(f"{what} ({', '.join(self.names[:3])}, ...); new: {', '.join(unknown[:3])}", file=file)
        note = f"class names of {Path(file).name} come in another order: matched by name"
        self.notes.append(note)
        number = {name: i for i, name in enumerate(self.names)}
        return [number[name] for name in names]


def find_parquet(source: FolderTree, choice: Choice) -> Found | None:
    """The set in a Parquet file or in those of a folder; None if there are none."""
    path, folder = source.path, source.root
    files = [name for name in source.names if name.lower().endswith(".parquet")]
    if not files:
        return None
    _refuse_several(files, path)
    made = _Set(path, choice, Labels(path))
    splits: dict[str, ParquetItems] = {}
    for split, names in files_by_split(files, folder, choice, made.notes).items():
        splits[split] = ParquetItems(folder)
        for name in names:
            made.add(splits[split], str(folder / name))
    splits = with_labels(splits)
    if not splits:
        raise DataError("no row has a label", file=path)
    made.left.update(source.left)
    made.left.rest(source.names, files)
    names = made.labels.names(splits, made.notes, made.names, path)
    return Found("parquet", f"Parquet ({len(files)} files)", path, names, dict(splits), made.notes, made.left)


def _refuse_several(files: list[str], path: Path) -> None:
    """Raise DataError if the files are of several sets, e.g. two configurations in folders with parts of their own."""
    tops = {"/".join(part for part in name.split("/")[:-1] if part != "data" and not split_in(part)) for name in files}
    if len(tops) > 1:
        seen = ", ".join(shown(top) or "." for top in sorted(tops)[:4])
        raise DataError(f"Parquet files of {len(tops)} sets, in {seen}", file=path, hint="give one of these folders")
