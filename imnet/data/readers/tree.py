"""A common view of a folder, a zip, a tar, or several archives: the names of files, each of which can go into Items."""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Protocol

from imnet.data.files import file_state, io_errors, reading
from imnet.data.readers.archive import Member, by_name, list_tar, open_tar
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut, junk, junk_path, runs_among
from imnet.data.readers.zips import list_zip
from imnet.errors import DataError, shown
from imnet.files import is_file

_MAX_TEXT_BYTES = 16 << 20
_ARCHIVE = re.compile(r"\.(zip|tgz|tar(\.gz)?)$", re.IGNORECASE)
# train/ and the class folders in it may be links; more links than that are not followed.
_MAX_LINKS = 2
Links = tuple[str, ...]
"""The real paths of the folders that contain the links followed to a place."""


class Tree(Protocol):
    """The interface for readers. ``names`` are all files that are not junk, with ``/``, sorted folder by folder;
    ``folders`` are all folders (empty ones too, if the format records them); ``left`` counts the junk."""

    path: Path
    names: list[str]
    folders: set[str]
    left: LeftOut

    def add(self, items: Items, name: str, label: int) -> None: ...

    def read(self, name: str) -> bytes:
        """The bytes of a file; a file that is too large for a text may be cut off."""
        ...


class FolderTree:
    """A folder, or a single file. Links to folders are followed, two deep and never in a circle."""

    def __init__(self, path: Path) -> None:
        self.path, self.left, self.folders = path, LeftOut(), set[str]()
        alone = is_file(path)
        self.root = path.parent if alone else path  # names are relative to it
        self.names: list[str] = [path.name] if alone else []
        self.absent: list[str] = []

    @classmethod
    def walked(cls, path: Path) -> FolderTree:
        """A folder with the names of its contents; without walking, a FolderTree can only read files by name."""
        tree = cls(path)
        tree.walk()
        if tree.absent:
            what = f"{len(tree.absent)} links point at files that are not there"
            raise DataError(what, file=path / tree.absent[0], hint="git-annex and DVC: pull the files first")
        return tree

    def walk(self) -> None:
        """Walk the folder to fill ``names``, ``folders``, and ``absent``, the links to missing files."""
        names: list[str] = []
        waiting: list[tuple[str, Links]] = [("", ())]  # no recursion, since a copy into itself is hundreds deep
        while waiting:
            inside, links = waiting.pop()
            for entry in _entries(self.path / inside):
                name = f"{inside}/{entry.name}" if inside else entry.name
                reason, kind = junk(entry.name), kind_of(entry)
                if kind == "folder":
                    waiting += self._folder(entry, name, reason, links)
                elif reason or not kind:
                    self._other(entry, name, reason)
                else:
                    names.append(name)
        self.names, self.folders = _without_runs(names, self.folders, self.left)

    def _folder(self, entry: os.DirEntry, name: str, reason: str | None, links: Links) -> list[tuple[str, Links]]:
        """The folder as what is to be walked; none if it is junk, or a link that is not followed."""
        if reason:
            count = 1 if entry.is_symlink() else sum(len(files) for _, _, files in os.walk(entry.path))
            self.left.update({reason: count} if count else {})
        elif (deeper := through(entry.path, links) if entry.is_symlink() else links) is None:
            self.left["linked folder"] += 1
        else:
            self.folders.add(name)
            return [(name, deeper)]
        return []

    def _other(self, entry: os.DirEntry, name: str, reason: str | None) -> None:
        """Record an entry that is junk, a link to nothing (or to itself), or a pipe."""
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
    """``folder`` or ``file``, also for a link to one; empty for a pipe, a link to nothing or a link to itself."""
    try:
        return "folder" if entry.is_dir() else "file" if entry.is_file() else ""
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return ""


def through(link: str, links: Links) -> Links | None:
    """The links followed after ``links`` and then ``link``; None if ``link`` leads back up or is one too many.

    A link leads up if it points to a folder that contains one of the links: its pictures would be read again, under
    other classes.
    """
    real, here = os.path.realpath(link), os.path.realpath(os.path.dirname(link))
    places = (*links, here)
    up = any(os.path.join(place, "").startswith(os.path.join(real, "")) for place in places)
    return None if up or len(places) > _MAX_LINKS else places


def _entries(folder: Path) -> list[os.DirEntry]:
    with io_errors(folder, "list"), os.scandir(folder) as entries:
        return list(entries)


class ArchiveTree:
    """A zip or a tar (gzipped or not), of which only the list of members is read; nothing is extracted."""

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
        # Junk does not count as a file, but a folder that holds only junk counts as a folder, as on a disk.
        there = {folder for folder in folders | _parents(list(members)) if not junk_path(folder)}
        self.names, self.folders = _without_runs(list(self._members), there, self.left)

    def add(self, items: Items, name: str, label: int) -> None:
        items.add(label, items.file_number(str(self.path), self._state), self._members[name])

    def read(self, name: str) -> bytes:
        items = Items(self.path.parent)
        self.add(items, name, 0)
        return items.read(0)


class JoinedTree:
    """Several archives (``train.zip`` and ``val.zip``), each as a folder with the name of its file."""

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
    """The tree of the archives ``files`` of a folder, joined if there are several; other files are left out."""
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
    """(sorted names, folders) without imnet's runs, which ``left`` counts, and without folders that hold only runs."""
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
    """The names sorted folder by folder, as in a walk: ``cat/1`` before ``cat a/1``."""
    return sorted(names, key=lambda name: name.replace("/", "\0"))


def _parents(names: list[str]) -> set[str]:
    out: set[str] = set()
    for folder in {name.rpartition("/")[0] for name in names}:
        while folder and folder not in out:
            out.add(folder)
            folder = folder.rpartition("/")[0]
    return out


def text(source: Tree, name: str) -> str:
    """The contents of a small UTF-8 text file of a tree; DataError if it is too large or not UTF-8."""
    data = source.read(name)
    file, member = (source.root / name, None) if isinstance(source, FolderTree) else (source.path, name)
    if len(data) > _MAX_TEXT_BYTES:
        raise DataError(f"text file has more than {_MAX_TEXT_BYTES} bytes", file=file, offset=member)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8 text: {error.reason} at byte {error.start}", file=file, offset=member) from error
