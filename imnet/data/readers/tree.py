"""A folder or a zip, seen alike: names of files, an entry of Items for each, small text files read."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from imnet.data.readers.archive import list_zip
from imnet.data.readers.items import Items, ZipMember
from imnet.errors import DataError, IOFailure

_MAX_TEXT_BYTES = 16 << 20
_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".gif")


class Tree(Protocol):
    """What the readers need of a folder or a zip; names use ``/`` and are relative."""

    path: Path

    def names(self, under: str = "") -> list[str]: ...

    def folders(self, under: str = "") -> list[str]: ...

    def add(self, items: Items, name: str, label: int) -> None: ...

    def text(self, name: str) -> str: ...


class FolderTree:
    """A folder. Linked folders are followed one level down (class folders are often links), never further."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def names(self, under: str = "") -> list[str]:
        return sorted(self._walk(under))

    def _walk(self, under: str) -> Iterator[str]:
        top = self.path / under if under else self.path
        for folder, folders, files in os.walk(top, onerror=_raise, followlinks=False):
            folders[:] = [name for name in folders if not name.startswith(".")]
            inside = os.path.relpath(folder, self.path)
            prefix = "" if inside == "." else inside.replace(os.sep, "/") + "/"
            yield from (prefix + name for name in files if not name.startswith("."))

    def folders(self, under: str = "") -> list[str]:
        try:
            with os.scandir(self.path / under) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
        except OSError as error:
            raise IOFailure(f"cannot list: {error.strerror or error}", file=self.path / under) from error

    def add(self, items: Items, name: str, label: int) -> None:
        items.add_file(name, label)

    def text(self, name: str) -> str:
        try:
            with open(self.path / name, "rb") as file:
                return _decoded(file.read(_MAX_TEXT_BYTES + 1), self.path / name)
        except FileNotFoundError as error:
            raise DataError(f"{name} is missing", file=self.path) from error
        except OSError as error:
            raise IOFailure(f"cannot read: {error.strerror or error}", file=self.path / name) from error


class ZipTree:
    """A zip, from its directory; nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self.path = path
        members = [member for member in list_zip(path) if not _hidden(member.name)]
        self._members: dict[str, ZipMember] = {member.name: member for member in members}
        self._sorted = sorted(self._members)

    def names(self, under: str = "") -> list[str]:
        if not under:
            return list(self._sorted)
        # "0" follows "/": everything below ``under`` lies between the two.
        start, stop = (bisect_left(self._sorted, under + after) for after in ("/", "0"))
        return self._sorted[start:stop]

    def folders(self, under: str = "") -> list[str]:
        skip = len(under) + 1 if under else 0
        inner = (name[skip:] for name in self.names(under))
        return sorted({name.split("/", 1)[0] for name in inner if "/" in name})

    def add(self, items: Items, name: str, label: int) -> None:
        if not items.files:
            items.files.append(str(self.path))
        items.add_zipped(name, label, 0, self._members[name])

    def text(self, name: str) -> str:
        if name not in self._members:
            raise DataError(f"{name} is missing", file=self.path)
        items = Items(self.path.parent)
        self.add(items, name, 0)
        return _decoded(items.read(0), self.path, name)


def tree(path: Path) -> FolderTree | ZipTree:
    return FolderTree(path) if path.is_dir() else ZipTree(path)


def is_picture(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES)


def _hidden(name: str) -> bool:
    return name.startswith("__MACOSX/") or name.rsplit("/", 1)[-1].startswith(".")


def _decoded(data: bytes, path: Path, member: str | None = None) -> str:
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"text file has more than {_MAX_TEXT_BYTES} bytes", file=path, offset=member)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason}", file=path, offset=member or error.start) from error


def _raise(error: OSError) -> None:
    raise IOFailure(f"cannot list: {error.strerror or error}", file=error.filename) from error
