"""``.npz`` members as streams of rows: no pickle, sizes checked before anything is read, bounded memory."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from imnet.data.readers.archive import list_zip
from imnet.errors import DataError

_MAX_VECTOR_BYTES = 64 << 20
_LABEL_TYPES = ("i8", "i4", "i2", "u2", "u1", "u8", "u4")


def npz_rows(
    path: Path, member: str, shown: str
) -> tuple[tuple[int, int], Callable[[int], Iterator[np.ndarray]]]:  # fmt: skip
    """((n, columns), rows): ``rows(k)`` yields uint8 blocks of at most k rows. DataError on anything else."""
    shape, dtype, offset = _announced(path, member, shown)
    if dtype != "|u1" or len(shape) != 2:
        raise DataError(f"array is {dtype} {shape}; expected |u1 (n, 3 * s * s)", file=shown, offset=member)

    def rows(block_rows: int) -> Iterator[np.ndarray]:
        with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
            _exactly(stream, offset, shown, member)
            for start in range(0, shape[0], block_rows):
                count = min(block_rows, shape[0] - start)
                raw = _exactly(stream, count * shape[1], shown, member)
                yield np.frombuffer(raw, dtype=np.uint8).reshape(count, shape[1])
            _end(stream, shown, member)

    return (shape[0], shape[1]), rows


def npz_vector(path: Path, member: str, count: int, shown: str) -> np.ndarray:
    """A vector of ``count`` integers as int64; DataError on another type, length, or damage."""
    shape, dtype, offset = _announced(path, member, shown)
    flat = shape if len(shape) == 1 else tuple(size for size in shape if size != 1) or (1,)
    if dtype[1:] not in _LABEL_TYPES or flat != (count,):
        raise DataError(f"array is {dtype} {shape}; expected integers ({count},)", file=shown, offset=member)
    if count * 8 > _MAX_VECTOR_BYTES:
        raise DataError(f"{count} labels; allowed {_MAX_VECTOR_BYTES // 8}", file=shown, offset=member)
    with zipfile.ZipFile(path) as archive, archive.open(member) as stream:
        _exactly(stream, offset, shown, member)
        raw = _exactly(stream, count * np.dtype(dtype).itemsize, shown, member)
        _end(stream, shown, member)
    return np.frombuffer(raw, dtype=dtype).astype(np.int64)


def _announced(path: Path, member: str, shown: str) -> tuple[tuple[int, ...], str, int]:
    """(shape, dtype, offset of the data) of a .npy member whose size is exactly what its header announces."""
    listing, _ = list_zip(path)
    if member not in listing:
        raise DataError(f"npz has no {member}; it holds {sorted(listing)[:6]}", file=shown)
    with zipfile.ZipFile(path) as archive:
        try:
            with archive.open(member) as stream:
                shape, fortran, dtype = _npy_header(stream)
                offset = stream.tell()
        except zipfile.BadZipFile as error:
            raise DataError(f"zip member is damaged: {error}", file=shown, offset=member) from error
        except (ValueError, SyntaxError, EOFError, OSError) as error:
            raise DataError(f"not a .npy array: {error}", file=shown, offset=member) from error
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


def _exactly(stream: IO[bytes], count: int, shown: str, member: str) -> bytes:
    try:
        data = stream.read(count)
    except (zipfile.BadZipFile, EOFError, OSError, ValueError) as error:
        raise DataError(f"zip member is damaged: {error}", file=shown, offset=member) from error
    if len(data) != count:
        raise DataError(f"array ends early ({len(data)} of {count} bytes)", file=shown, offset=member)
    return data


def _end(stream: IO[bytes], shown: str, member: str) -> None:
    """Read to the end, so that the zip's crc32 is checked."""
    try:
        stream.read(1)
    except zipfile.BadZipFile as error:
        raise DataError(f"zip member is damaged: {error}", file=shown, offset=member) from error
