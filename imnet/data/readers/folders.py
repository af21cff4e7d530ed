"""Reads class folders of pictures (ImageFolder, ImageNet-1K and -21K, tiny-imagenet-200) from a folder, zip or tar."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from imnet.data.readers.base import Found, with_labels
from imnet.data.readers.items import Items
from imnet.data.readers.labels import ANNOTATIONS, LABEL_FILES, Listed, listed_labels
from imnet.data.readers.layout import Layout, find_layout, join
from imnet.data.readers.rule import (
    NEUTRAL,
    TEST,
    TRAIN,
    VAL,
    by_split,
    is_picture,
    note_case,
    refuse_alike,
    same_name,
    split_of,
    suffix_reason,
)
from imnet.data.readers.tree import LeftOut, Tree, text
from imnet.errors import DataError, first_few, shown
from imnet.files import lines

TINY = "tiny-imagenet-200"


@dataclass
class _Reading:
    """The state of reading a tree: where its parts are, its classes, and the files used and left out."""

    source: Tree
    layout: Layout
    number: dict[str, int] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)
    left: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)

    def below(self, folder: str) -> Iterator[tuple[str, list[str]]]:
        """(name, names of the folders between ``folder`` and the file) of every picture below ``folder``."""
        skip = len(folder) + 1 if folder else 0
        for name in self.source.names:
            if (not folder or name.startswith(folder + "/")) and is_picture(name):
                yield name, name[skip:].split("/")[:-1]

    def part_folder(self, part: str) -> str:
        """The folder with the part's name, in which class folders may be several levels down."""
        level, root = self.layout.parts[part], self.layout.root
        skip = len(root) + 1 if root else 0
        return level if level == root else join(root, level[skip:].split("/")[0])

    def take(self, items: Items, name: str, label: int) -> None:
        self.used.add(name)
        self.source.add(items, name, label)


def find_folders(source: Tree) -> Found | None:
    """The set in ``train/<class>/...`` with val or test beside it, or in ``<class>/...`` alone; None if there is none.

    Labels follow the sorted folder names (as in torchvision's ImageFolder), or Tiny ImageNet's sorted ``wnids.txt``.
    """
    layout = find_layout(source.names, source.path)
    if layout is None:
        return None
    reading = _Reading(source, layout, left=LeftOut(source.left))
    wnids = join(layout.root, "wnids.txt")
    is_tiny = wnids in source.names
    classes = _wnids(reading, wnids) if is_tiny else _class_folders(reading)
    refuse_alike(classes, source.path)
    note_case(classes, reading.notes)
    reading.number.update({name: i for i, name in enumerate(classes)})
    splits: dict[str, Items] = {}
    for split, part in by_split({part: part for part in layout.parts}).items():
        splits[split] = _train(reading, is_tiny) if part == TRAIN else _held(reading, part, is_tiny)
    splits = with_labels(splits)
    _note_emptied(reading)
    names = _tiny_names(reading, classes) if is_tiny else tuple(map(shown, classes))
    _count_rest(reading)
    name, kind = ("tiny-imagenet", TINY) if is_tiny else ("folder", "class folders")
    return Found(name, kind, source.path, names, dict(splits), reading.notes, reading.left)


def _class_folders(reading: _Reading) -> list[str]:
    base = reading.layout.parts[TRAIN]
    prefix = f"{base}/" if base else ""
    inside = {name[len(prefix) :].split("/")[0] for name in reading.source.folders if name.startswith(prefix)}
    if not base:
        # Folders without a picture beside the class folders (docs, annotations) are not classes.
        inside &= {folders[0] for _, folders in reading.below(base) if folders}
    return sorted(inside - {""})


def _train(reading: _Reading, is_tiny: bool) -> Items:
    items, deeper = Items(reading.source.path), defaultdict(set)
    for name, folders in reading.below(reading.layout.parts[TRAIN]):
        if not folders:
            continue
        if folders[0] not in reading.number:
            raise DataError(f"class folder {shown(folders[0])} is not in wnids.txt", file=reading.source.path,
                            offset=shown(name))  # fmt: skip
        reading.take(items, name, reading.number[folders[0]])
        deeper[folders[0]].add(folders[1] if len(folders) > 1 else "")
    _refuse_empty(reading, items, is_tiny)
    nested = next((name for name, inside in deeper.items() if len(inside) > 1), None)
    if nested is not None:
        inside = ", ".join(shown(name) for name in sorted(deeper[nested] - {""})[:3])
        reading.notes.append(f"folders inside class folders count as their class: {shown(nested)} has {inside}")
    return items


def _refuse_empty(reading: _Reading, items: Items, is_tiny: bool) -> None:
    empty = sorted(set(reading.number.values()) - set(items.labels().tolist()))
    if not empty:
        return
    name = shown(next(key for key, value in reading.number.items() if value == empty[0]))
    if is_tiny:
        what = f"{len(empty)} of {len(reading.number)} classes have no pictures, the first is {name}"
        raise DataError(what, file=reading.source.path)
    prefix = f"{join(reading.layout.parts[TRAIN], name)}/"
    there = Counter(suffix_reason(file) for file in reading.source.names if file.startswith(prefix))
    holds = f" (it holds {', '.join(f'{suffix} {count}' for suffix, count in there.most_common(3))})" if there else ""
    what = f"{len(empty)} of {len(reading.number)} class folders have no pictures, the first is {name}{holds}"
    raise DataError(what, file=reading.source.path, hint="remove them or fill them")


def _held(reading: _Reading, part: str, is_tiny: bool) -> Items:
    """The pictures of val or test that have a label."""
    folder = reading.part_folder(part)
    named, flat = {}, []
    for name, folders in reading.below(folder):
        while folders and folders[0] not in reading.number and _wraps(folders[0], folder):
            folders = folders[1:]
        if folders and folders[0] not in reading.number:
            _refuse_unknown(reading, folder, folders[0])
        if folders:
            named[name] = folders[0]
        else:
            flat.append(name)
    listed = listed_labels(reading.source, folder, reading.number) if part == VAL else None
    if listed is not None:
        named = _by_list(reading, named, flat, listed)
    elif flat:
        if is_tiny and part == VAL and not named:
            raise DataError(f"{join(folder, ANNOTATIONS)} is missing", file=reading.source.path)
        reading.used.update(flat)
        reading.left["unlabelled"] += len(flat)
        if part == VAL and not named:
            reading.notes.append(f"{shown(folder)}/ has no class folders; for ImageNet put {LABEL_FILES} beside it")
    items = Items(reading.source.path)
    for name in sorted(named, key=lambda name: name.replace("/", "\0")):
        reading.take(items, name, reading.number[named[name]])
    if part == VAL and len(items):
        _note_absent(reading, folder, items)
    return items


def _wraps(name: str, folder: str) -> bool:
    return name.lower() in NEUTRAL or name == folder.rpartition("/")[2]


def _refuse_unknown(reading: _Reading, folder: str, name: str) -> None:
    alike = next((known for known in reading.number if same_name(known) == same_name(name)), None)
    near = next((known for known in reading.number if known.lower() == name.lower()), None)
    if alike is not None:
        name, there = ascii(name), ascii(alike)
    else:
        name, there = shown(name), shown(near) if near else first_few(list(reading.number))
    what = f"class folder {name} is not in train; train has {there}"
    raise DataError(what, file=reading.source.path, offset=shown(folder))


def _by_list(reading: _Reading, named: dict, flat: list[str], listed: Listed) -> dict[str, str]:
    """``named`` with the classes of the flat pictures added from a list. A picture that is in a class folder too counts
    once."""
    reading.used.update(listed.files)
    bases = {name.rpartition("/")[2]: name for name in named}
    for name in flat:
        base = name.rpartition("/")[2]
        wnid = listed.wnids.get(base)
        if base in bases:
            _refuse_other(reading, name, bases[base])
            reading.used.add(name)
            reading.left["copy of a picture in its class folder"] += 1
        elif wnid not in reading.number:
            raise DataError(_not_covered(base, listed), file=reading.source.path, offset=shown(name))
        else:
            named[name] = wnid
    for base, name in bases.items():
        if listed.wnids.get(base) not in (None, named[name]):
            what = f"lies in the folder of {shown(named[name])}, {listed.files[0]} says {listed.wnids.get(base)}"
            raise DataError(what, file=reading.source.path, offset=shown(name))
    if any(name.endswith(ANNOTATIONS) for name in listed.files):
        absent = set(listed.wnids) - {name.rpartition("/")[2] for name in named}
        if absent:
            what = f"{len(absent)} annotated pictures are missing, the first is {min(absent)}"
            raise DataError(what, file=reading.source.path)
    return named


def _not_covered(base: str, listed: Listed) -> str:
    if any(name.endswith(ANNOTATIONS) for name in listed.files):
        return f"{base} has no line in {ANNOTATIONS}"
    return f"{len(listed.wnids)} validation labels do not cover it with a class of train"


def _refuse_other(reading: _Reading, name: str, copy: str) -> None:
    """Raise DataError if two files of one name, one of them in a class folder, are different pictures."""
    if reading.source.read(name) != reading.source.read(copy):
        what = f"another picture than {shown(copy)}, which has its name"
        raise DataError(what, file=reading.source.path, offset=shown(name), hint="remove one of them")


def _note_absent(reading: _Reading, folder: str, items: Items) -> None:
    there = set(items.labels().tolist())
    absent = [name for name, label in reading.number.items() if label not in there]
    if absent:
        reading.notes.append(f"{shown(folder)} has no pictures of {len(absent)} classes ({first_few(absent)})")


def _note_emptied(reading: _Reading) -> None:
    """Add a note about val or test folders without a picture, such as an interrupted extraction leaves."""
    beside = (name.rpartition("/") for name in reading.source.folders)
    judging = [join(root, name) for root, _, name in beside
               if root == reading.layout.root and split_of(name) in (VAL, TEST)]  # fmt: skip
    for name in sorted(judging):
        if next(reading.below(name), None) is None:
            reading.notes.append(f"{shown(name)}/ has no pictures")


def _count_rest(reading: _Reading) -> None:
    """Count every file that was not used, by reason."""
    parts = {reading.part_folder(part): part for part in reading.layout.parts}
    for name in reading.source.names:
        if name in reading.used:
            continue
        if not is_picture(name):
            reading.left[suffix_reason(name)] += 1
        elif any(not folder or name.startswith(folder + "/") for folder in parts):
            reading.left["in no class folder"] += 1
        else:
            reading.left["beside train"] += 1


def _wnids(reading: _Reading, listing: str) -> list[str]:
    reading.used.add(listing)
    return sorted(set(text(reading.source, listing).split()))


def _tiny_names(reading: _Reading, wnids: list[str]) -> tuple[str, ...]:
    """Class names such as ``n02119789 kit_fox``, with the first meaning from ``words.txt`` if it has one."""
    words, listing = {}, join(reading.layout.root, "words.txt")
    if listing in reading.source.names:
        rows = (line.partition("\t") for line in lines(text(reading.source, listing)))
        words = {wnid: meaning.split(",")[0].strip() for wnid, _, meaning in rows}
        reading.used.add(listing)
    return tuple(f"{wnid} {words.get(wnid, '')}".strip() for wnid in wnids)
