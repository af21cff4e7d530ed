"""Sets in several files (tars, Parquet): the part that each file belongs to, missing files, and labels."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imnet.data.readers.base import Choice
from imnet.data.readers.items import Items
from imnet.data.readers.rule import TRAIN, by_split, note_case, refuse_alike, split_in
from imnet.errors import DataError, shown

_OF = re.compile(r"(.*?)(\d+)-of-(\d+)(.*)")
_NUMBERED = re.compile(r"(|.*?[-_/a-z])(\d+)(\.\D.*)", re.IGNORECASE)
_NO_INTEGER = re.compile(r"[+-]?(\d+\.\d*|\.\d+)(e[+-]?\d+)?|\+\d+", re.IGNORECASE)
_COPY = re.compile(r"( \(\d+\)| copy( \d+)?| - Copy( \(\d+\))?)(?=\.[^/]*$)")
_MAX_CLASSES = 1_000_000
_MAX_ABSENT = 100_000


@dataclass
class Labels:
    """Collects the labels of a set, numbers or words, and makes its class names at the end."""

    path: Path
    words: dict[str, int] = field(default_factory=dict)
    met: dict[str, str] = field(default_factory=dict)

    def number(self, value: int | str, where: str) -> int | None:
        """The number of a label, or None for -1 (no label); words are numbered in the order of their appearance."""
        kind = "number" if isinstance(value, int) else "word"
        self.met.setdefault(kind, f"{value!r} ({where})")
        if len(self.met) > 1:
            what = f"labels are numbers and words: {self.met['number']} and {self.met['word']}"
            raise DataError(what, file=self.path)
        if isinstance(value, str):
            return self.words.setdefault(value, len(self.words))
        return None if value == -1 else value

    def names(
        self, splits: Mapping[str, Items], notes: list[str], listed: tuple[str, ...], file: Path
    ) -> tuple[str, ...]:  # fmt: skip
        """The class names. If labels are words, these are the sorted words, and ``splits`` are relabelled in their
        order; if they are numbers, the names ``listed`` in ``file``, or names made of the numbers."""
        if self.words:
            return self._numbered(splits, notes)
        highest = max(int(items.labels().max()) for items in splits.values())
        if listed and len(listed) <= highest:
            raise DataError(f"{len(listed)} class names, labels go to {highest}", file=file)
        names = listed or tuple(f"class_{i:04d}" for i in range(highest + 1))
        if "train" in splits:
            note_absent(splits["train"].labels(), len(names), notes)
        return names

    def _numbered(self, splits: Mapping[str, Items], notes: list[str]) -> tuple[str, ...]:
        names = sorted(self.words)
        refuse_alike(names, self.path)
        note_case(names, notes)
        if "train" in splits:
            self._refuse_new(splits)
        place = np.empty(len(names), dtype=np.int64)
        place[[self.words[name] for name in names]] = np.arange(len(names))
        for items in splits.values():
            items.relabel(place[items.labels()])
        return tuple(names)

    def _refuse_new(self, splits: Mapping[str, Items]) -> None:
        """Raise DataError for words that no training picture has: they cannot be learned, or are misspelled."""
        known = set(splits["train"].labels().tolist())
        new = sorted(word for word, number in self.words.items() if number not in known)
        if new:
            some, there = ", ".join(new[:3]), ", ".join(sorted(set(self.words) - set(new))[:3])
            raise DataError(f"{len(new)} classes have no training pictures: {some}; train has {there}", file=self.path)


def check_label(value: int | str, **where) -> None:
    """Raise DataError unless ``value`` is a class number, -1 for none, or a word that can name a class. ``1.0`` and
    ``+1`` are not allowed as words: they are numbers in another form, and would be other classes than 1."""
    if isinstance(value, int) and not -1 <= value < _MAX_CLASSES:
        raise DataError(f"label is {value}; allowed 0..{_MAX_CLASSES - 1}, or -1 for none", **where)
    if isinstance(value, str) and (not value.strip() or shown(value) != value or _NO_INTEGER.fullmatch(value)):
        raise DataError(f"label is {ascii(value)[:40]}; allowed: a whole number or a word", **where)


def files_by_split(files: list[str], path: Path, choice: Choice, notes: list[str]) -> dict[str, list[str]]:
    """{split: files}, from the words in their names or else in their folders' names; by default a file is for training.

    DataError for a name with two parts, two spellings of one part, files without a part beside files for training, and
    missing shards of those that ``-of-N`` announces.
    """
    parts: dict[str, list[str]] = defaultdict(list)
    words: dict[str, dict[str, str]] = defaultdict(dict)
    for name in files:
        part, word = _part(name, path)
        parts[part].append(name)
        words[part].setdefault(word, name)
    for part, spelled in words.items():
        if len(spelled) > 1:
            first, second = list(spelled.values())[:2]
            what = f"{shown(first)} and {shown(second)} name one part ({part or TRAIN}) in two ways"
            raise DataError(what, file=path, hint="keep one of them, or give the files of one set a name of their own")
    if "" in parts and TRAIN in parts:
        what = f"{shown(parts[''][0])} names no part of the set, beside {shown(parts[TRAIN][0])}"
        raise DataError(what, file=path, hint="is it for training? give it a name with train, val or test, or move it")
    if "" in parts:
        parts[TRAIN] = parts.pop("")
    _refuse_copies(files, path)
    _refuse_missing(files, path, choice, notes)
    return by_split(parts)


def _refuse_copies(files: list[str], path: Path) -> None:
    """Raise DataError for ``train-0 (1).tar`` beside ``train-0.tar``, as browsers and file managers name copies."""
    there = set(files)
    for name in files:
        first = _COPY.sub("", name)
        if first != name and first in there and (path / first).stat().st_size == (path / name).stat().st_size:
            raise DataError(f"{shown(name)} looks like a copy of {shown(first)}", file=path, hint="remove one of them")


def _part(name: str, path: Path) -> tuple[str, str]:
    """(part, word for it) from a file's name, or else from its nearest folder that names a part; ('', '') if none."""
    *folders, base = name.split("/")
    stem = re.sub(r"\.(tar(\.gz)?|tgz|parquet|zip)$", "", base, flags=re.IGNORECASE)
    folder = next((name for name in reversed(folders) if split_in(name)), "")
    own, above = split_in(stem), split_in(folder)
    if len(own) > 1 or len(above) > 1 or (own and above and own != above):
        what = f"its name says {' and '.join(sorted(own | above))}: which part of the set is it?"
        raise DataError(what, file=path, offset=shown(name))
    words = re.findall(r"[a-z]+", (stem if own else folder).lower())
    return next(iter(own or above), ""), next((word for word in words if split_in(word)), "")


def _refuse_missing(files: list[str], path: Path, choice: Choice, notes: list[str]) -> None:
    announced: dict[tuple[str, str, str], set[int]] = defaultdict(set)
    for name in files:
        if match := _OF.fullmatch(name):
            # The datasets library adds a hash after the count: train-00000-of-00002-1359597a978bc4fa.parquet.
            announced[match[1], match[3], re.sub(r"-[0-9a-f]{8,}", "", match[4])].add(int(match[2]))
    absent = []
    for (before, total, after), there in announced.items():
        if int(total) > len(there) + _MAX_ABSENT:  # refused before their names are made, of which there may be 10^11
            raise DataError(f"{shown(before)}...-of-{total}: more shards are announced than can be", file=path)
        first = 0 if 0 in there or int(total) not in there else 1
        absent += [f"{before}{i:0{len(total)}d}-of-{total}{after}" for i in range(first, first + int(total))
                   if i not in there]  # fmt: skip
    if absent and not choice.allow_missing:
        what = f"{len(absent)} shards are missing, the first is {shown(absent[0])}"
        raise DataError(what, file=path, hint="get them, or go on without by imnet-data pack --allow-missing")
    if absent:
        notes.append(f"{len(absent)} shards are missing, the first is {shown(absent[0])}")
    _note_holes(files, notes)


def _note_holes(files: list[str], notes: list[str]) -> None:
    """Add a note if plainly numbered shards have gaps, but more than half of the numbers exist."""
    runs: dict[tuple[str, str], set[int]] = defaultdict(set)
    for name in files:
        match = _NUMBERED.fullmatch(name)
        if match and not _OF.fullmatch(name):
            runs[match[1], match[3]].add(int(match[2]))
    for (before, after), there in runs.items():
        span = range(min(there), max(there) + 1)
        if len(there) < len(span) < 2 * len(there):
            first = next(number for number in span if number not in there)
            notes.append(f"{len(span) - len(there)} shards seem to be missing: there is no {before}...{first}{after}")


def note_absent(labels: np.ndarray, count: int, notes: list[str]) -> None:
    """Add a note if class numbers have no training picture: labels may count from 1, or classes may be missing."""
    absent = np.flatnonzero(np.bincount(labels, minlength=count) == 0)
    if len(labels) and len(absent):
        hint = "; do labels count from 1?" if absent.tolist() == [0] else ""
        notes.append(
            f"{len(absent)} of {count} classes have no training pictures, the first is number {absent[0]}{hint}"
        )
