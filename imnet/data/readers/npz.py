"""Reads an ``.npz`` batch as a stream of rows: no pickle, sizes checked before anything is read, bounded memory."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO

import numpy as np

from imnet.data.readers.zips import list_zip
from imnet.errors import DataError

LABEL_TYPES = ("i8", "i4", "i2", "u2", "u1", "u8", "u4")
_MAX_LABELS = 8 << 20
_DATA, _LABELS = "data.npy", "labels.npy"


class NpzBatch:
    """Pixels and labels of the batch at ``path``, which error lines call ``shown``. DataError if it is not a batch."""

    def __init__(self, path: Path, shown: Path) -> None:
        self._path, self._shown = path, shown
        shape, dtype, self._start = _announced(path, _DATA, shown)
        if dtype != "|u1" or len(shape) != 2:
            raise DataError(f"array is {dtype} {shape}; expected |u1 (n, 3 * s * s)", file=shown, offset=_DATA)
        self.shape = shape

    def rows(self, block_rows: int) -> Iterator[np.ndarray]:
        """The pixels as uint8 blocks of at most ``block_rows`` rows."""
        count, columns = self.shape
        with _opened(self._path, _DATA, self._shown) as stream:
            _exactly(stream, self._start, self._shown, _DATA)
            for start in range(0, count, block_rows):
                raw = _exactly(stream, min(block_rows, count - start) * columns, self._shown, _DATA)
                yield np.frombuffer(raw, dtype=np.uint8).reshape(-1, columns)
            stream.read(1)  # read to the end, so that zipfile checks the crc32

    def labels(self) -> np.ndarray:
        """The labels, int64 (n,), from a vector of integers or from one row or column of them."""
        shape, dtype, offset = _announced(self._path, _LABELS, self._shown)
        count = self.shape[0]
        flat = shape if len(shape) == 1 else tuple(size for size in shape if size != 1) or (1,)
        if dtype[1:] not in LABEL_TYPES or flat != (count,):
            what = f"array is {dtype} {shape}; expected integers ({count},)"
            raise DataError(what, file=self._shown, offset=_LABELS)
        if count > _MAX_LABELS:
            raise DataError(f"{count} labels; allowed {_MAX_LABELS}", file=self._shown, offset=_LABELS)
        with _opened(self._path, _LABELS, self._shown) as stream:
            _exactly(stream, offset, self._shown, _LABELS)
            raw = _exactly(stream, count * np.dtype(dtype).itemsize, self._shown, _LABELS)
            stream.read(1)
        return np.frombuffer(raw, dtype=dtype).astype(np.int64)


def _announced(path: Path, member: str, shown: Path) -> tuple[tuple[int, ...], str, int]:
    """(shape, dtype, offset of the data) of a .npy member; DataError unless its size is exactly that of its header."""
    listing = list_zip(path)[0]
    if member not in listing:
        raise DataError(f"npz has no {member}; it holds {sorted(listing)[:6]}", file=shown)
    with _opened(path, member, shown) as stream:
        try:
            shape, fortran, dtype = _npy_header(stream)
        except (ValueError, SyntaxError, TokenError) as error:
            raise DataError(f"not a .npy array: {error}", file=shown, offset=member) from error
        offset = stream.tell()
    if dtype.hasobject:
        raise DataError("array holds Python objects (pickle); refused", file=shown, offset=member)
    if fortran and len(shape) > 1:
        raise DataError("array is in Fortran order; expected C order", file=shown, offset=member)
    expected = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
    if listing[member].full != expected:
        got = f"member has {listing[member].full} bytes, its header announces {expected}"
        raise DataError(got, file=shown, offset=member)
    return shape, dtype.str, offset


def _npy_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"npy version {version}; allowed (1, 0), (2, 0)")


def _exactly(stream: IO[bytes], count: int, shown: Path, member: str) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise DataError(f"array ends early ({len(data)} of {count} bytes)", file=shown, offset=member)
    return data


@contextmanager
def _opened(path: Path, member: str, shown: Path) -> Iterator[IO[bytes]]:
    """Open a member for reading; the errors that zipfile raises for a damaged member become a DataError."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            yield stream
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, OSError, ValueError) as error:
        raise DataError(f"zip member is damaged: {str(error)[:200]}", file=shown, offset=member) from error
