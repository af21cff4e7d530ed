"""Reads the labels of held-out pictures in a flat folder or tar from lists beside them, by file name.

ImageNet-1K has its validation labels in its devkit or in one of two other files, Tiny ImageNet in
``val_annotations.txt``.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imnet.data.readers.tree import ArchiveTree, FolderTree, Tree, text
from imnet.errors import DataError
from imnet.files import is_dir, is_file, lines

VAL_PICTURE = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG")
ANNOTATIONS = "val_annotations.txt"
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
_CLSLOC, _META = "map_clsloc.txt", "meta.mat"
_PICTURES = 50_000
_DEVKIT = "ILSVRC2012_devkit_t12"
_IN_DEVKIT = f"{_DEVKIT}/data/"
# Names of all lists that are looked for beside or above the given path.
LIST_FILES = (*_SYNSETS, _SOLUTION, _CLSLOC, f"{_DEVKIT}.tar.gz")
LIST_FILES += tuple(folder + name for folder in ("", _IN_DEVKIT) for name in (_TRUTH, _META))
LABEL_FILES = f"{_DEVKIT}.tar.gz, {_SYNSETS[0]} or {_SOLUTION}"
# Constants of MATLAB files.
_HEADER_BYTES = 128
_MAX_BYTES = 64 << 20
_COMPRESSED = 15
_STRUCT = 2
# Storage types of numbers and of text (UTF-8 and UTF-16), as numpy dtypes.
_STORED = {1: "<i1", 2: "<u1", 3: "<i2", 4: "<u2", 5: "<i4", 6: "<u4", 7: "<f4", 9: "<f8", 12: "<i8", 13: "<u8"}
_STORED |= {16: "<u1", 17: "<u2"}


@dataclass(frozen=True)
class Listed:
    """Labels (wnids) by file name, and the files of the tree that they were read from."""

    wnids: dict[str, str]
    files: tuple[str, ...] = ()


def listed_labels(source: Tree, part: str, known: Container[str]) -> Listed | None:
    """The list for the flat pictures of the folder ``part``, from that folder or the nearest folder above it that has
    one; None if there is none. Tiny ImageNet's list may only name ``known`` classes."""
    names, folder = set(source.names), part
    annotations = f"{part}/{ANNOTATIONS}" if part else ANNOTATIONS
    if annotations in names:
        return Listed(_annotations(source, annotations, known), (annotations,))
    while True:
        found = _imagenet(source, names, f"{folder}/" if folder else "")
        if found is not None or not folder:
            break
        folder = folder.rpartition("/")[0]
    if found is None and is_dir(source.path):
        found = beside(list(source.path.resolve().parents)[:3])
    return found or (beside([source.path.resolve().parent]) if is_file(source.path) else None)


def beside(folders: list[Path]) -> Listed | None:
    """ImageNet-1K's validation labels from the first of ``folders`` that has any; ``files`` stays empty, because these
    files are outside the tree."""
    for folder in folders:
        there = {name for name in LIST_FILES if is_file(folder / name)}
        found = _imagenet(FolderTree(folder), there, "")
        if found is not None:
            return Listed(found.wnids)
    return None


def _annotations(source: Tree, listing: str, known: Container[str]) -> dict[str, str]:
    """{file name: wnid} from ``val_annotations.txt``, which has name, wnid and a box, separated by tabs."""
    labels: dict[str, str] = {}
    for row, line in enumerate(lines(text(source, listing)), 1):
        parts = line.split("\t")
        if len(parts) < 2 or parts[1] not in known or parts[0] in labels:
            got = f"got {line[:60]!r}; expected a new file name, a wnid of wnids.txt, and a box"
            raise DataError(got, file=source.path, offset=f"{listing} line {row}")
        labels[parts[0]] = parts[1]
    return labels


def _imagenet(source: Tree, names: set[str], prefix: str) -> Listed | None:
    """The labels from a synset list (one wnid per line, in picture order), from Kaggle's solution table, or from the
    devkit, packed or not, whose class numbers are those of ``map_clsloc.txt`` or its own ``meta.mat``."""
    for name in _SYNSETS:
        if prefix + name in names:
            return _numbered(dict(enumerate(_in_order(source, prefix + name), 1)), prefix + name)
    if prefix + _SOLUTION in names:
        return _numbered(_solution(source, prefix + _SOLUTION), prefix + _SOLUTION)
    for folder in (prefix, prefix + _IN_DEVKIT):
        truth = folder + _TRUTH
        for listing in (prefix + _CLSLOC, folder + _META):
            if {truth, listing} <= names:
                return _numbered(_devkit(source, listing, truth), listing, truth)
    packed = f"{prefix}{_DEVKIT}.tar.gz"
    if packed not in names or not is_file(source.path / packed):
        return None
    inside = ArchiveTree(source.path / packed)
    found = _imagenet(inside, set(inside.names), "")
    return found and Listed(found.wnids, (packed,))


def _in_order(source: Tree, name: str) -> list[str]:
    """The labels of a list that has one per picture, in the order of the pictures' numbers. DataError if they are more
    than ImageNet-1K has pictures: with one line too many, all pictures behind it would have the label of another."""
    labels = text(source, name).split()
    if len(labels) > _PICTURES:
        what = f"{len(labels)} labels; allowed {_PICTURES}, one for each validation picture"
        raise DataError(what, file=source.path / name, hint="get the file again")
    return labels


def _numbered(wnids: dict[int, str], *files: str) -> Listed:
    return Listed({f"ILSVRC2012_val_{number:08d}.JPEG": wnid for number, wnid in wnids.items()}, files)


def _solution(source: Tree, name: str) -> dict[int, str]:
    out: dict[int, str] = {}
    for row, line in enumerate(lines(text(source, name)), 1):
        match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8}) ", line)
        if match is None and row > 1:
            got = f"got {line[:60]!r}; expected ILSVRC2012_val_########,n######## ..."
            raise DataError(got, file=source.path / name, offset=f"line {row}")
        if match is not None and out.setdefault(int(match[1]), match[2]) != match[2]:
            what = f"{match[2]} for a picture that is {out[int(match[1])]} on a line above"
            raise DataError(what, file=source.path / name, offset=f"line {row}", hint="get the file again")
    return out


def _devkit(source: Tree, listing: str, truth: str) -> dict[int, str]:
    wnid = _class_numbers(source, listing)
    out: dict[int, str] = {}
    for line, number in enumerate(_in_order(source, truth), 1):
        if number not in wnid:
            what = f"class {number[:20]!r} is not in {listing.rpartition('/')[2]}"
            raise DataError(what, file=source.path / truth, offset=f"line {line}")
        out[line] = wnid[number]
    return out


def _class_numbers(source: Tree, listing: str) -> dict[str, str]:
    """{number: wnid} from ``map_clsloc.txt`` or ``meta.mat``."""
    if listing.endswith(_CLSLOC):
        rows = (line.split() for line in lines(text(source, listing)))
        return {row[1]: row[0] for row in rows if len(row) >= 2}
    try:
        return _of_meta(source.read(listing))
    except ValueError as error:
        raise DataError(f"not the class list of ImageNet's devkit: {error}", file=source.path / listing) from error


def _of_meta(data: bytes) -> dict[str, str]:
    """{ILSVRC2012_ID: wnid}, both as text, from the devkit's ``meta.mat``: a MATLAB file (level 5) with one array of
    structs, one per class. ValueError if the file is damaged or holds something else.

    Only the types in that file are supported: structs, text and numbers, little-endian, compressed or not.
    """
    try:
        rows = [row for matrix in _matrices(data[_HEADER_BYTES:]) for row in _structs(matrix)]
        found = {str(int(_values(row["ILSVRC2012_ID"])[0])): "".join(map(chr, _values(row["WNID"]))) for row in rows}
    except (TypeError, KeyError, IndexError, ArithmeticError, struct.error, zlib.error) as error:
        raise ValueError(f"{type(error).__name__}: {error}") from error
    if len(found) < len(rows) or not rows:
        raise ValueError(f"{len(found)} numbers of {len(rows)} classes")
    return found


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(type, content) of each element: a tag of 8 bytes, followed by the content, padded to a multiple of 8 bytes."""
    at = 0
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        start, fill = at + 8, 0 if kind == _COMPRESSED else -size % 8
        if kind >> 16:  # a content of up to four bytes is in the tag itself
            kind, size, start, fill = kind & 0xFFFF, kind >> 16, at + 4, 4 - (kind >> 16)
        if start + size > len(data):
            raise ValueError(f"{size} bytes from {start} on, of {len(data)}")
        yield kind, data[start : start + size]
        at = start + size + fill


def _matrices(data: bytes) -> Iterator[bytes]:
    """The arrays of a file, each of which may be compressed on its own."""
    for kind, content in _elements(data):
        if kind == _COMPRESSED:
            ((_, content),) = _elements(zlib.decompressobj().decompress(content, _MAX_BYTES))
        yield content


def _structs(matrix: bytes) -> Iterator[dict[str, bytes]]:
    """The elements of an array of structs as {field: matrix}; nothing for any other array.

    Flags, dimensions and a name precede the names of the fields, which are all of one width.
    """
    parts = [content for _, content in _elements(matrix)]
    if parts[0][0] != _STRUCT:
        return
    width, names, values = int.from_bytes(parts[3], "little"), parts[4], parts[5:]
    fields = [names[i : i + width].split(b"\0")[0].decode("ascii") for i in range(0, len(names), width)]
    for i in range(0, len(values), len(fields)):
        yield dict(zip(fields, values[i : i + len(fields)], strict=True))


def _values(matrix: bytes) -> list[Any]:
    """The values of an array of numbers or of characters."""
    _, _, _, (kind, content) = _elements(matrix)
    return np.frombuffer(content, _STORED[kind]).tolist()
