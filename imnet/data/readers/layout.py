"""Where the parts of a set of class folders lie, from the names of its pictures alone: the same for every form.

A level with a single folder in it is gone through; folders that are called train, val or test are the parts; what can
be read in two ways is refused, with what was seen.
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
    """The folders of a tree that hold pictures, and how many lie right in each."""

    def __init__(self, names: list[str]) -> None:
        self.count = Counter(name.rpartition("/")[0] for name in names if is_picture(name))
        self._inside: dict[str, dict[str, None]] = {}
        for folder in sorted(self.count):
            while folder:
                above, _, last = folder.rpartition("/")
                self._inside.setdefault(above, {})[last] = None
                folder = above

    def inside(self, folder: str) -> list[str]:
        """Names of the folders right in ``folder`` that have pictures in or below them."""
        return sorted(self._inside.get(folder, {}))

    def only(self, folder: str) -> str | None:
        """The one folder in ``folder``, where no picture lies beside it."""
        inside = self.inside(folder)
        return inside[0] if len(inside) == 1 and not self.count[folder] else None


def join(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name


def find_layout(names: list[str], path: Path) -> Layout | None:
    """Where train, val and test lie; None where no class folder has a picture."""
    folders, root = Folders(names), ""
    while True:
        inside = folders.inside(root)
        parts = _real_parts(parts_among(inside), folders, root)
        if parts or len(inside) != 1:
            break
        # One folder is no set of classes; pictures beside it (a preview) are not in a class.
        root = join(root, inside[0])
    if parts:
        return Layout(root, _checked(parts, folders, root, path))
    if not inside:
        return None
    _refuse_parts_below(folders, root, path)
    return Layout(root, {TRAIN: root})


def _real_parts(parts: dict[str, list[str]], folders: Folders, root: str) -> dict[str, list[str]]:
    """{} where only ``train`` is there, beside others, with pictures right in it: that is a class (bus, train)."""
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
    """The folder whose folders are the classes: a single folder that wraps them, no ``known`` one, is gone through."""
    while (only := folders.only(base)) is not None and only not in known:
        wraps = only.lower() in NEUTRAL or split_of(only) or only == base.rpartition("/")[2]
        deeper = join(base, only)
        if not wraps and (len(folders.inside(deeper)) < 2 or folders.count[deeper]):
            break
        base = deeper
    return base


def _refuse_parts_below(folders: Folders, root: str, path: Path) -> None:
    """cat/train, cat/val, dog/train ...: neither level can be taken for the classes without a guess."""
    for name in folders.inside(root):
        base = join(root, name)
        parts = parts_among(folders.inside(base))
        if TRAIN in parts and (VAL in parts or TEST in parts):
            others = ", ".join(shown(other) for other in folders.inside(root) if other != name)
            within = ", ".join(sorted(shown(part) for part_names in parts.values() for part in part_names))
            what = f"two ways to read it: {shown(name)} has {within} in it, and lies beside {others}"
            raise DataError(
                what, file=path / shown(root), hint=f"give {shown(base)}, or make train/<class>, val/<class>"
            )
