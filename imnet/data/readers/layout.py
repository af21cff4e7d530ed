"""Finds the parts of a set of class folders from the names of its pictures alone, alike for folders and archives.

A level with a single folder is passed through, and folders named train, val or test are the parts. An ambiguous layout
is refused, with the folders that were seen.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from imnet.data.readers.rule import NEUTRAL, TEST, TRAIN, VAL, is_picture, parts_among, split_of
from imnet.errors import DataError, shown


@dataclass(frozen=True)
class Layout:
    """``root``: the folder around the parts; ``parts``: {train, val, test: the folder whose folders are classes}."""

    root: str
    parts: dict[str, str]


class Folders:
    """The folders of a tree that hold pictures, and the number of pictures directly in each."""

    def __init__(self, names: list[str]) -> None:
        self.count = Counter(name.rpartition("/")[0] for name in names if is_picture(name))
        self._inside: dict[str, dict[str, None]] = {}
        for folder in sorted(self.count):
            while folder:
                above, _, last = folder.rpartition("/")
                self._inside.setdefault(above, {})[last] = None
                folder = above

    def inside(self, folder: str) -> list[str]:
        """Names of the folders directly in ``folder`` that have pictures in or below them."""
        return sorted(self._inside.get(folder, {}))

    def only(self, folder: str) -> str | None:
        """The name of the only folder in ``folder``; None if there are others, or pictures beside it."""
        inside = self.inside(folder)
        return inside[0] if len(inside) == 1 and not self.count[folder] else None


def join(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name


def find_layout(names: list[str], path: Path) -> Layout | None:
    """Find train, val and test; None if no class folder has a picture."""
    folders, root = Folders(names), ""
    while True:
        inside = folders.inside(root)
        parts = _real_parts(parts_among(inside), folders, root)
        if parts or len(inside) != 1:
            break
        # A single folder is not a set of classes; pictures beside it (a preview) are in no class.
        root = join(root, inside[0])
    if parts:
        return Layout(root, _checked(parts, folders, root, path))
    if not inside:
        return None
    _refuse_parts_below(folders, root, path)
    return Layout(root, {TRAIN: root})


def _real_parts(parts: dict[str, list[str]], folders: Folders, root: str) -> dict[str, list[str]]:
    """Return ``parts``; {} if ``train`` is the only part, is beside other folders and has pictures directly in it: then
    it is a class (bus, train)."""
    if set(parts) != {TRAIN}:
        return parts
    called = parts[TRAIN]
    others = set(folders.inside(root)) - set(called)
    return {} if others and not any(folders.inside(join(root, name)) for name in called) else parts


def _checked(parts: dict[str, list[str]], folders: Folders, root: str, path: Path) -> dict[str, str]:
    seen = ", ".join(shown(name) for name in folders.inside(root))
    for meaning, names in parts.items():
        if len(names) > 1:
            what = f"{' and '.join(map(shown, names))} are names of one part ({meaning}); beside each other lie {seen}"
            raise DataError(what, file=path / shown(root), hint="keep one of them")
    if TRAIN not in parts:
        names = ", ".join(shown(names[0]) for names in parts.values())
        hint = "name the training part train, or give the folder that holds the classes"
        raise DataError(f"{names} without a training part beside it; seen: {seen}", file=path / shown(root), hint=hint)
    train = _class_level(folders, join(root, parts[TRAIN][0]))
    known = set(folders.inside(train))
    levels = {part: _class_level(folders, join(root, names[0]), known) for part, names in parts.items()}
    levels[TRAIN] = train
    if not known:
        what = f"{shown(parts[TRAIN][0])} has pictures but no class folders; seen: {seen}"
        raise DataError(what, file=path / shown(root), hint="one folder a class: train/cat/1.jpg")
    return levels


def _class_level(folders: Folders, base: str, known: set[str] | frozenset[str] = frozenset()) -> str:
    """The folder whose folders are the classes; a single wrapping folder that is not a ``known`` class is passed
    through."""
    while (only := folders.only(base)) is not None and only not in known:
        wraps = only.lower() in NEUTRAL or split_of(only) or only == base.rpartition("/")[2]
        deeper = join(base, only)
        if not wraps and (len(folders.inside(deeper)) < 2 or folders.count[deeper]):
            break
        base = deeper
    return base


def _refuse_parts_below(folders: Folders, root: str, path: Path) -> None:
    """Raise DataError for cat/train, cat/val, dog/train ..., and for data/train/cat beside docs, where one could only
    guess which level has the classes."""
    for name in folders.inside(root):
        base = join(root, name)
        parts = parts_among(folders.inside(base))
        classes = any(folders.inside(join(base, part)) for part in parts.get(TRAIN, ()))
        if TRAIN in parts and (VAL in parts or TEST in parts or classes):
            others = ", ".join(shown(other) for other in folders.inside(root) if other != name)
            within = ", ".join(sorted(shown(part) for part_names in parts.values() for part in part_names))
            what = f"two ways to read it: {shown(name)} has {within} in it, and lies beside {others}"
            raise DataError(
                what, file=path / shown(root), hint=f"give {shown(base)}, or make train/<class>, val/<class>"
            )
