"""A folder, a zip, a tar, or several archives side by side, seen alike: names of files, an entry of Items for each."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from imnet.data.files import file_state, io_errors, reading
from imnet.data.readers.archive import Member, by_name, list_tar, list_zip, open_tar
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut, junk, junk_path, runs_among
from imnet.errors import DataError, shown

_MAX_TEXT_BYTES = 16 << 20
_ARCHIVE = re.compile(r"\.(zip|tgz|tar(\.gz)?)$", re.IGNORECASE)
# train/ and the class folders in it may be links; what lies behind more links than that is another place.
_MAX_LINKS = 2
Links = tuple[str, ...]
"""The real folders in which the links lie that led to a place."""


class Tree(Protocol):
    """What the readers need. ``names``: every file that is not junk, with ``/``, folder by folder in sorted order;
    ``folders``: every folder, empty ones too, where the form can tell; ``left``: the junk, counted."""

    path: Path
    names: list[str]
    folders: set[str]
    left: LeftOut

    def add(self, items: Items, name: str, label: int) -> None: ...

    def read(self, name: str) -> bytes:
        """The bytes of a file; of one that is too large for a text perhaps not all."""
        ...


class FolderTree:
    """A folder, or a file alone in its own. Linked folders are followed, two deep and never in a circle."""

    def __init__(self, path: Path) -> None:
        self.path, self.left, self.folders = path, LeftOut(), set[str]()
        is_file = path.is_file()
        self.root = path.parent if is_file else path  # around the names
        self.names: list[str] = [path.name] if is_file else []
        self.absent: list[str] = []

    @classmethod
    def walked(cls, path: Path) -> FolderTree:
        """A folder with all that is in it; one that was not walked only reads files by name."""
        tree = cls(path)
        tree.walk()
        if tree.absent:
            what = f"{len(tree.absent)} links point at files that are not there"
            raise DataError(what, file=path / tree.absent[0], hint="git-annex and DVC: pull the files first")
        return tree

    def walk(self) -> None:
        """Walk the folder: ``names``, and ``absent``, the links to files that are not there."""
        self.names, self.folders = _without_runs(list(self._walk("", ())), self.folders, self.left)

    def _walk(self, inside: str, links: Links) -> Iterator[str]:
        for entry in _entries(self.path / inside):
            name = f"{inside}/{entry.name}" if inside else entry.name
            reason, kind = junk(entry.name), kind_of(entry)
            if kind == "folder":
                yield from self._folder(entry, name, reason, links)
            elif reason or not kind:
                self._other(entry, name, reason)
            else:
                yield name

    def _folder(self, entry: os.DirEntry, name: str, reason: str | None, links: Links) -> Iterator[str]:
        if reason:
            count = 1 if entry.is_symlink() else sum(len(files) for _, _, files in os.walk(entry.path))
            self.left.update({reason: count} if count else {})
        elif (deeper := through(entry.path, links) if entry.is_symlink() else links) is None:
            self.left["linked folder"] += 1
        else:
            self.folders.add(name)
            yield from self._walk(name, deeper)

    def _other(self, entry: os.DirEntry, name: str, reason: str | None) -> None:
        """Junk, a link to nothing (or to itself), a pipe."""
        if reason is None and entry.is_symlink() and not os.path.exists(entry.path):
            self.absent.append(name)
        else:
            self.left[reason or "no regular file"] += 1

    def add(self, items: Items, name: str, label: int) -> None:
        items.add_file(name, label)

    def read(self, name: str) -> bytes:
        path = self.root / name
        with reading(path), open(path, "rb") as file:
            return file.read(_MAX_TEXT_BYTES + 1)


def kind_of(entry: os.DirEntry[str]) -> str:
    """``folder`` or ``file``, also behind a link; empty for a pipe, a link to nothing and a link to itself."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return ""


def through(link: str, links: Links) -> Links | None:
    """The way through a link to a folder that ``links`` led to; None where it leads back up or is one too many.

    Up: to a folder around one of the links. The same pictures would come again, under other classes.
    """
    real, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    places = (*links, here)
    up = any(os.path.join(place, "").startswith(os.path.join(real, "")) for place in places)
    return None if up or len(places) > _MAX_LINKS else places


def _entries(folder: Path) -> list[os.DirEntry]:
    with io_errors(folder, "list"), os.scandir(folder) as entries:
        return list(entries)


class ArchiveTree:
    """A zip or a tar, also gzipped, from its directory; nothing is extracted."""

    def __init__(self, path: Path) -> None:
        self._state = file_state(path)
        if path.suffix.lower() == ".zip":
            members, folders = list_zip(path)
        else:
            with open_tar(path) as tar:
                members, folders = by_name(list_tar(tar, path), path), set[str]()
        self.path, self.left = path, LeftOut()
        self._members: dict[str, Member] = {}
        for name, member in members.items():
            reason = junk_path(name)
            if reason:
                self.left[reason] += 1
            else:
                self._members[name] = member
        # Junk is no file of the set, but the folder that holds nothing else is there, as on a disk.
        there = {folder for folder in folders | _parents(list(members)) if not junk_path(folder)}
        self.names, self.folders = _without_runs(list(self._members), there, self.left)

    def add(self, items: Items, name: str, label: int) -> None:
        items.add(label, items.file_number(str(self.path), self._state), self._members[name])

    def read(self, name: str) -> bytes:
        items = Items(self.path.parent)
        self.add(items, name, 0)
        return items.read(0)


class JoinedTree:
    """Several archives, each as a folder that is called as its file (``train.zip`` and ``val.zip``)."""

    def __init__(self, path: Path, trees: dict[str, ArchiveTree]) -> None:
        self.path, self._trees, self.left = path, trees, LeftOut()
        for tree_ in trees.values():
            self.left.update(tree_.left)
        self.names = in_order([f"{top}/{name}" for top, tree_ in trees.items() for name in tree_.names])
        self.folders = {f"{top}/{name}" for top, tree_ in trees.items() for name in tree_.folders} | set(trees)

    def add(self, items: Items, name: str, label: int) -> None:
        top, _, inner = name.partition("/")
        self._trees[top].add(items, inner, label)

    def read(self, name: str) -> bytes:
        top, _, inner = name.partition("/")
        return self._trees[top].read(inner)


def archives(source: FolderTree, files: list[str]) -> Tree:
    """The archive of a folder, or several joined; what lies beside them is left out."""
    trees: dict[str, ArchiveTree] = {}
    for file in files:
        name = _ARCHIVE.sub("", file)
        if name in trees:
            what = f"two archives are called {shown(name)}: {shown(trees[name].path.name)} and {shown(file)}"
            raise DataError(what, file=source.path, hint="keep one of them")
        trees[name] = ArchiveTree(source.root / file)
    tree = JoinedTree(source.path, trees) if len(files) > 1 else next(iter(trees.values()))
    tree.left.update(source.left)
    tree.left.rest(source.names, files)
    return tree


def _without_runs(names: list[str], folders: set[str], left: LeftOut) -> tuple[list[str], set[str]]:
    """Names in order and folders, without the runs of imnet, which ``left`` counts, and what holds nothing else."""
    runs = runs_among(names)
    if runs:
        inside = tuple(f"{run}/" for run in runs)
        kept = [name for name in names if not name.startswith(inside)]
        left["run of imnet"] += len(names) - len(kept)
        emptied = _parents([f"{run}/" for run in runs]) - _parents(kept)
        folders = {folder for folder in folders - emptied if not folder.startswith(inside)}
        names = kept
    return in_order(names), folders


def in_order(names: list[str]) -> list[str]:
    """Sorted folder by folder, as a walk goes: ``cat/1`` before ``cat a/1``."""
    return sorted(names, key=lambda name: name.replace("/", "\0"))


def _parents(names: list[str]) -> set[str]:
    out: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder and folder not in out:
            out.add(folder)
            folder = folder.rpartition("/")[0]
    return out


def text(source: Tree, name: str) -> str:
    """A small UTF-8 text file of a tree; DataError where it is none."""
    data = source.read(name)
    file, member = (source.root / name, None) if isinstance(source, FolderTree) else (source.path, name)
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"text file has more than {_MAX_TEXT_BYTES} bytes", file=file, offset=member)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason} at byte {error.start}", file=file, offset=member) from error
