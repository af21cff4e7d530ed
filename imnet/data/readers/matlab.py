"""``meta.mat`` of ImageNet's devkit: a MATLAB file (level 5) with one array of structs, a class each.

Only what that file needs is read: structs, texts and numbers, compressed or not, in the byte order of PCs.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np

_HEADER_BYTES = 128
_MAX_BYTES = 64 << 20
_COMPRESSED = 15
_STRUCT = 2
# How numbers are stored, whatever they are, and letters, which are UTF-8 and UTF-16 too.
_STORED = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_STORED |= {16: "<u1", 17: "<u2"}


def class_numbers(data: bytes) -> dict[str, str]:
    """{ILSVRC2012_ID: wnid}, both as text; ValueError where the file is damaged or holds something else."""
    try:
        rows = [row for matrix in _matrices(data[_HEADER_BYTES:]) for row in _structs(matrix)]
        found = {str(int(_values(row["ILSVRC2012_ID"])[0])): "".join(map(chr, _values(row["WNID"]))) for row in rows}
    except (TypeError, KeyError, IndexError, ArithmeticError, struct.error, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if len(found) < len(rows) or not rows:
        raise ValueError(f"{len(found)} numbers of {len(rows)} classes")
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) one after the other: a tag of 8 bytes, then the content, filled up to 8 bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, fill = at + 8, 0 if kind == _COMPRESSED else -size % 8
        if kind >> 16:  # up to four bytes lie in the tag itself
            kind, size, start, fill = kind & 0xFFFF, kind >> 16, at + 4, 4 - (kind >> 16)
        if start + size > len(data):
            raise ValueError(f"{size} bytes from {start} on, of {len(data)}")
        yield kind, data[start : start + size]
        at = start + size + fill


def _matrices(data: bytes) -> Iterator[bytes]:
    """The arrays of a file; one that is compressed is compressed alone."""
    for kind, content in _elements(data):
        if kind == _COMPRESSED:
            ((_, content),) = _elements(zlib.decompressobj().decompress(content, _MAX_BYTES))
        yield content


def _structs(matrix: bytes) -> Iterator[dict[str, bytes]]:
    """The elements of an array of structs, {field: matrix}; none of another array.

    Flags, sides and a name precede the names of the fields, which are of one width.
    """
    parts = [content for _, content in _elements(matrix)]
    if parts[0][0] != _STRUCT:
        return
    width, names, values = int.from_bytes(parts[3], "little"), parts[4], parts[5:]
    fields = [names[i : i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
    for i in range(0, len(values), len(fields)):
        yield dict(zip(fields, values[i : i + len(fields)], strict=True))


def _values(matrix: bytes) -> list[Any]:
    """Of an array of numbers or letters."""
    _, _, _, (kind, content) = _elements(matrix)
    return np.frombuffer(content, _STORED[kind]).tolist()
