"""Reads WebDataset shards: tars in which adjacent members with the same key are a sample of a picture and its label."""

from __future__ import annotations

import json
import os
from collections import Counter
from itertools import groupby
from pathlib import Path
from typing import BinaryIO

from imnet.data.readers.archive import Member, list_tar, open_tar
from imnet.data.readers.base import Choice, Found, with_labels
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut, is_picture, junk_path, suffix_reason
from imnet.data.readers.shards import Labels, check_label, files_by_split
from imnet.data.readers.tree import FolderTree, text
from imnet.errors import DataError, shown
from imnet.files import is_file, lines

LABELS = ("cls", "cls.txt", "json")
# A .json may hold much more than the label, such as the outlines of what the picture shows.
_MAX_LABEL_BYTES = 16 << 20
NAME_FILES = ("classnames.txt", "classes.txt")


class _Shards:
    """The state of reading the shards of a set."""

    def __init__(self, folder: Path, choice: Choice) -> None:
        self.folder, self.choice = folder, choice
        self.labels, self.left = Labels(folder), LeftOut()

    def add(self, items: Items, tar: Path) -> None:
        number = items.file_number(str(tar))
        with open_tar(tar) as file:
            for key, group in groupby(self._members(file, tar), key=lambda member: sample_key(member.name)):
                self._sample(items, number, file, tar, key, list(group))

    def _members(self, file: BinaryIO, tar: Path):
        for member in list_tar(file, tar):
            reason = junk_path(member.name)
            if reason:
                self.left[reason] += 1
            else:
                yield member

    def _sample(self, items: Items, number: int, file, tar: Path, key: str, members: list[Member]) -> None:
        kinds = Counter(_extension(member.name) for member in members)
        twin = next((kind for kind, count in kinds.items() if count > 1), None)
        if twin is not None:
            what = f"neighbouring samples have one key: {kinds[twin]} members {key}.{twin}"
            raise DataError(what, file=tar, offset=shown(key)[:200], hint="give each sample a key of its own")
        pictures = [member for member in members if is_picture(member.name)]
        labels = {member: label for member in members if (label := read_label(file, member, tar)) is not None}
        if not pictures and not labels:
            self.left.update(suffix_reason(member.name) for member in members)
            return
        picture = self._picture(tar, key, pictures, kinds)
        if not labels:
            what = f"sample has no .cls or .json label; it has {_seen(kinds)}"
            field = "a .json has it in its field label or cls, as a whole number or a word" if "json" in kinds else None
            hint = "a key ends at its first dot" if "." in next(iter(kinds)) else field
            raise DataError(what, file=tar, offset=key[:200], hint=hint)
        label = _agreed(labels, tar, key)
        self.left.update(suffix_reason(m.name) for m in members if m is not picture and m not in labels)
        known = self.labels.number(label, f"{tar.name}: {shown(key)}")
        if known is None:
            self.left["unlabelled"] += 1
        else:
            items.add(known, number, picture)

    def _picture(self, tar: Path, key: str, pictures: list[Member], kinds: Counter[str]) -> Member:
        wanted = self.choice.image_key
        if wanted is not None:
            pictures = [member for member in pictures if _extension(member.name) == wanted.lower().lstrip(".")]
        if len(pictures) == 1:
            return pictures[0]
        if not pictures:
            lacks = "no picture" if wanted is None else f"no picture .{wanted}"
            what = f"sample has {lacks}; it has {_seen(kinds)}"
            raise DataError(what, file=tar, offset=key[:200], hint="members of a sample must be neighbours in the tar")
        kinds_seen = [_extension(member.name) for member in pictures]
        what = f"sample has {len(pictures)} pictures ({', '.join(kinds_seen)})"
        plain = [kind for kind in kinds_seen if "." not in kind]
        choose = "imnet-data pack --image-key"
        hint = f"choose one: {choose} {plain[0]}" if plain else f"a key ends at its first dot; {choose} chooses"
        raise DataError(what, file=tar, offset=key[:200], hint=hint)


def find_webdataset(source: FolderTree, tars: list[str], choice: Choice) -> Found | None:
    """The set in the tars ``tars`` of ``source``, a folder or a single tar; None if they hold no samples."""
    folder, notes = source.root, []
    shards = _Shards(folder, choice)
    splits: dict[str, Items] = {}
    for split, files in files_by_split(tars, folder, choice, notes).items():
        splits[split] = Items(folder)
        for name in files:
            shards.add(splits[split], folder / name)
    splits = with_labels(splits)
    if not splits:
        if shards.left["unlabelled"]:
            raise DataError(f"none of {shards.left['unlabelled']} pictures has a label", file=source.path)
        return None
    listed, lists = ((), []) if shards.labels.words else _class_names(folder)
    names = shards.labels.names(splits, notes, listed, folder / "".join(lists[:1]))
    shards.left.update(source.left)
    shards.left.rest(source.names, [*tars, *lists])
    kind = f"WebDataset ({len(tars)} shards)"
    return Found("webdataset", kind, source.path, names, dict(splits), notes, shards.left)


def sample_key(name: str) -> str:
    """The key that the members of a sample share: the name up to the first dot after the folders."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _extension(name: str) -> str:
    return name.rsplit("/", 1)[-1].partition(".")[2].lower()


def _seen(kinds: Counter[str]) -> str:
    return ", ".join(f".{kind}" for kind in list(kinds)[:6])


def _agreed(labels: dict[Member, int | str], tar: Path, key: str) -> int | str:
    """The label of a sample, which may have it several times; DataError if they differ."""
    values = set(labels.values())
    if len(values) > 1:
        said = " and ".join(f"{value!r} in .{_extension(member.name)}" for member, value in labels.items())
        raise DataError(f"sample has two labels: {said}", file=tar, offset=shown(key)[:200])
    return values.pop()


def is_label(name: str) -> bool:
    return _extension(name) in LABELS


def read_label(file: BinaryIO, member: Member, tar: Path) -> int | str | None:
    """The label in a ``.cls`` or ``.cls.txt`` member, or in the field ``label`` or ``cls`` of a ``.json`` member: a
    number, or the name of the class. None if the member has no label."""
    if not is_label(member.name):
        return None
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"label has {member.size} bytes; allowed {_MAX_LABEL_BYTES}", file=tar, offset=member.name)
    raw = os.pread(file.fileno(), member.size, member.offset)
    try:
        value = _field(json.loads(raw)) if member.name.lower().endswith("json") else raw.decode("utf-8-sig").strip()
        value = int(value) if isinstance(value, str) and value.lstrip("-").isdecimal() else value
    except (ValueError, RecursionError) as error:
        what = f"label is neither a number nor a word, or two that differ: {raw[:40]!r}"
        raise DataError(what, file=tar, offset=member.name) from error
    if value is not None:
        check_label(value, file=tar, offset=member.name)
    return value


def _field(record: object) -> int | str | None:
    """The label in a ``.json``, or None: it may hold other data, with the label in a ``.cls`` beside it."""
    fields = [record.get(key) for key in ("label", "cls")] if isinstance(record, dict) else []
    values = [value for value in fields if type(value) in (int, str)]
    if len(set(map(repr, values))) > 1:
        raise ValueError("two labels")
    return values[0] if values else None


def _class_names(folder: Path) -> tuple[tuple[str, ...], list[str]]:
    """(class names, files that list them) from beside the shards; the files have one name per line, in label order."""
    files = [name for name in NAME_FILES if is_file(folder / name)]
    lists = [lines(text(FolderTree(folder), name).rstrip()) for name in files]
    for name, names in zip(files, lists, strict=True):
        empty = next((row for row, line in enumerate(names, 1) if not line.strip()), None)
        if empty is not None:
            raise DataError("no class name on this line", file=folder / name, offset=f"line {empty}")
        if names != lists[0]:
            raise DataError(f"other class names than in {files[0]}", file=folder / name, hint="keep one of them")
    return tuple(line.strip() for line in lists[0]) if lists else (), files
