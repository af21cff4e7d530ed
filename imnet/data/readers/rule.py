"""The only module that interprets names: which part of a set a name means, and what is junk or a picture.

Folders, zips, tars, WebDataset and Parquet all use it, so that the same files give the same set in any form.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from imnet.errors import DataError, shown

T = TypeVar("T")
TRAIN, VAL, TEST = "train", "val", "test"
_WORD = re.compile(
    r"(?:(?P<train>train(?:ing)?|trn)"
    r"|(?P<val>val(?:id(?:ation)?)?|dev(?:elopment)?)"
    r"|(?P<test>test(?:ing)?|tst|eval(?:uation)?))"
    r"(?:sets?|data|images|imgs|splits?)?"
)
# Words without meaning beside a split's name: ``training_set``, ``Test Images``, ``train-2017``.
NEUTRAL = frozenset(
    "set sets data dataset image images img imgs jpg jpeg png picture pictures photos split splits folder full".split()  # noqa: SIM905
)
_JUNK = frozenset(
    ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "@__thumb", "#recycle", "$recycle.bin",
     "lost+found", "system volume information", "__pycache__", "icon\r")
)  # fmt: skip
# Suffixes of pictures that Pillow reads; AVIF and JPEG 2000 only if it was built with them.
_PICTURES = frozenset(
    ".jpg .jpeg .jpe .jfif .mpo .png .apng .bmp .dib .gif .webp .tif .tiff .ppm .pgm .pbm .pnm".split()  # noqa: SIM905
)
_OPTIONAL = {"avif": (".avif", ".avifs"), "jpg_2000": (".jp2", ".j2k", ".jpx")}
_SHOWN_REASONS = 8
_RUN, _RUN_FILES = "/run.json", ("config.yaml", "metrics.jsonl")
# The beginning of the pointer that replaces a file that Git LFS has not fetched.
LFS_POINTER = b"version https://git-lfs"


class LeftOut(Counter[str]):
    """The number of files that a reader left out, by reason. Every reader returns one, and commands print ``line``."""

    def rest(self, names: Iterable[str], used: Iterable[str]) -> None:
        """Count the files in ``names`` that a reader has not ``used``, by suffix."""
        read = frozenset(used)
        self.update(suffix_reason(name) for name in names if name not in read)

    def line(self) -> str:
        """``left out: 6 files (.tif 4, hidden 2)``, the most frequent reason first; empty if nothing was left out."""
        total = sum(self.values())
        if not total:
            return ""
        ranked = sorted(self.items(), key=lambda entry: (-entry[1], entry[0]))
        reasons = [f"{shown(reason)} {count}" for reason, count in ranked[:_SHOWN_REASONS]]
        rest = sum(count for _, count in ranked[_SHOWN_REASONS:])
        return f"left out: {total} file{'s' * (total > 1)} ({', '.join(reasons + [f'other {rest}'] * bool(rest))})"


def junk(part: str) -> str | None:
    """The reason why a file or folder of this name is ignored (``hidden``, ``junk``), or None."""
    if part.startswith(".") and part not in (".", ".."):
        return "hidden"
    return "junk" if part.lower() in _JUNK else None


def junk_path(path: str) -> str | None:
    """The reason why a file is ignored, from the first part of its path that is hidden or junk, or None."""
    return next(filter(None, map(junk, path.split("/"))), None)


def runs_among(names: Iterable[str]) -> set[str]:
    """The folders that are runs of imnet, which hold pictures too and may have been written inside their own data."""
    found = {name.removesuffix(_RUN) for name in names if name.endswith(_RUN)}
    there = set(names) if found else set[str]()
    return {folder for folder in found if all(f"{folder}/{file}" in there for file in _RUN_FILES)}


@lru_cache(maxsize=1)
def picture_suffixes() -> frozenset[str]:
    """Suffixes of pictures, with the dot, in lower case."""
    from PIL import features

    built = (suffixes for feature, suffixes in _OPTIONAL.items() if features.check(feature))
    return _PICTURES.union(*built)


def _suffix(name: str) -> str:
    """``.jpg`` for ``a/b.JPG``; empty if there is none. Fast, since it is called a few times for millions of names."""
    dot = name.rfind(".")
    return name[dot:].lower() if dot > name.rfind("/") + 1 else ""


def is_picture(name: str) -> bool:
    return _suffix(name) in picture_suffixes()


def suffix_reason(name: str) -> str:
    """The reason under which a file that is not a picture is counted: its suffix."""
    suffix = _suffix(name)
    return suffix if 1 < len(suffix) <= 12 else "no suffix"


def _words(name: str) -> Iterable[list[str]]:
    """The words of a name, first as they are written, then with ``TrainSet`` split into two."""
    yield re.findall(r"[a-z]+", name.lower())
    yield [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", name)]


def _meaning(word: str) -> str | None:
    match = _WORD.fullmatch(word)
    return match.lastgroup if match else None


def split_of(folder: str) -> str | None:
    """The part (train, val, test) that a folder's name means, if it means nothing else: TEST, training_set, valid.

    None for ``latest``, ``carnival``, ``bullet_train`` and ``trainval``.
    """
    for words in _words(folder):
        meanings = [_meaning(word) for word in words if word not in NEUTRAL]
        if len(meanings) == 1 and meanings[0]:
            return meanings[0]
    return None


def by_split(parts: Mapping[str, T]) -> dict[str, T]:
    """Turn {part: value} into {split: value}: val becomes the split ``test``, evaluated during training, and a test set
    beside it becomes ``final``, kept for the end."""
    names = {TRAIN: "train", VAL: "test", TEST: "final" if VAL in parts else "test"}
    return {names[part]: parts[part] for part in (TRAIN, VAL, TEST) if part in parts}


def split_in(stem: str) -> set[str]:
    """The parts that the words of a file's name mean: ``imagenet-train-000017`` is {train}, ``latest-7`` is {}."""
    for words in _words(stem):
        found = {meaning for word in words if (meaning := _meaning(word))}
        if found:
            return found
    return set()


def parts_among(folders: Iterable[str]) -> dict[str, list[str]]:
    """{part: folders with such a name} among folders side by side.

    ``seg_train`` beside ``seg_test`` counts, because the rest of the two names is equal, and so does ``trainA`` beside
    ``testA``; ``bullet_train`` alone does not, since it is a class.
    """
    names = sorted(folders)
    plain: dict[str, list[str]] = {}
    for name in names:
        if meaning := split_of(name):
            plain.setdefault(meaning, []).append(name)
    return plain or _decorated(names)


def _decorated(names: list[str]) -> dict[str, list[str]]:
    by_rest: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for name in names:
        for words in _words(name):
            meanings = [meaning for word in words if (meaning := _meaning(word))]
            if len(meanings) == 1:
                rest = tuple(word for word in words if not _meaning(word))
                by_rest.setdefault(rest, {}).setdefault(meanings[0], []).append(name)
                break
    # Of several such pairs (trainA, testA, trainB, testB) none is preferred: the caller refuses a part twice.
    found: dict[str, list[str]] = {}
    for parts in by_rest.values():
        if TRAIN in parts and len(parts) > 1:
            for part, folders in parts.items():
                found.setdefault(part, []).extend(folders)
    return found


def same_name(name: str) -> str:
    """The class name in Unicode's form NFC (Macs write an accent as a separate character), without outer spaces."""
    return unicodedata.normalize("NFC", name).strip()


def refuse_alike(classes: Iterable[str], path: Path) -> None:
    """Raise DataError if the names of two classes look the same: they are one class, written in two ways."""
    met: dict[str, str] = {}
    for name in classes:
        other = met.setdefault(same_name(name), name)
        if other != name:
            what = f"two classes have names that look the same: {other!a} and {name!a}"
            raise DataError(what, file=path, hint="give them one name")


def note_case(classes: Iterable[str], notes: list[str]) -> None:
    """Add a note if classes differ only in case: they may be letters of an alphabet, or misspelled."""
    met: dict[str, str] = {}
    twins = [(other, name) for name in classes if (other := met.setdefault(name.casefold(), name)) != name]
    if twins:
        some = ", ".join(shown(f"{other} and {name}") for other, name in twins[:3])
        notes.append(f"classes that differ in capitals alone: {some}")
