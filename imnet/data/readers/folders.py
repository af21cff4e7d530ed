"""Class folders of pictures (ImageFolder, ImageNet-1K and -21K as folders) and tiny-imagenet-200; folder or zip."""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

from imnet.data.readers.base import Found
from imnet.data.readers.items import Items
from imnet.data.readers.tree import FolderTree, Tree, is_picture
from imnet.errors import DataError

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("val", "valid", "validation", "test", "testing")
TINY = "tiny-imagenet-200"
# Labels of ImageNet-1K's validation pictures, which come in one flat folder or tar, lie in one of three files.
VAL_PICTURE = re.compile(r"(?:.*/)?ILSVRC2012_val_(\d{8})\.JPEG")
_SYNSETS = ("imagenet_2012_validation_synset_labels.txt", "synset_labels.txt")
_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
_SOLUTION = "LOC_val_solution.csv"
LABEL_FILES = f"{_SYNSETS[0]}, {_SOLUTION}, or {_TRUTH} with map_clsloc.txt,"


def find_tiny(source: Tree) -> Found | None:
    """tiny-imagenet-200: 200 classes in ``wnids.txt`` order sorted, val labels from ``val_annotations.txt``."""
    names = source.folders()
    root = "" if {"train", "val"} <= set(names) else f"{TINY}/" if TINY in names else None
    if root is None or f"{root}wnids.txt" not in _texts(source, root):
        return None
    wnids = sorted(set(source.text(f"{root}wnids.txt").split()))
    words = _words(source, root)
    number = {wnid: i for i, wnid in enumerate(wnids)}
    splits = {"train": _tiny_train(source, root, number), "test": _tiny_val(source, root, number)}
    class_names = tuple(f"{wnid} {words[wnid]}".strip() for wnid in wnids)
    return Found("tiny-imagenet", TINY, source.path, class_names, dict(splits))


def _texts(source: Tree, root: str) -> list[str]:
    """The text files right under ``root``; a folder is not walked for it."""
    if source.path.is_dir():
        return [root + file.name for file in (source.path / root).glob("*.txt")]
    return [name for name in source.names() if name.startswith(root) and name.endswith(".txt")]


def _words(source: Tree, root: str) -> dict[str, str]:
    words: dict[str, str] = defaultdict(str)
    if f"{root}words.txt" in _texts(source, root):
        for line in source.text(f"{root}words.txt").splitlines():
            wnid, _, text = line.partition("\t")
            words[wnid] = text.split(",")[0].strip()
    return words


def _tiny_train(source: Tree, root: str, number: dict[str, int]) -> Items:
    items = Items(source.path)
    for name in source.names(f"{root}train"):
        wnid = name[len(root) :].split("/")[1]
        if not is_picture(name):
            continue
        if wnid not in number:
            raise DataError(f"class folder {wnid} is not in wnids.txt", file=source.path, offset=name)
        source.add(items, name, number[wnid])
    missing = sorted(set(number.values()) - set(items.labels().tolist()))
    if missing:
        wnid = next(key for key, value in number.items() if value == missing[0])
        raise DataError(f"{len(missing)} of {len(number)} classes have no pictures, the first is {wnid}",
                        file=source.path)  # fmt: skip
    return items


def _tiny_val(source: Tree, root: str, number: dict[str, int]) -> Items:
    listing = f"{root}val/val_annotations.txt"
    labels: dict[str, int] = {}
    for row, line in enumerate(source.text(listing).splitlines(), 1):
        parts = line.split("\t")
        if len(parts) < 2 or parts[1] not in number or parts[0] in labels:
            got = f"got {line[:60]!r}; expected a new file name, a wnid of wnids.txt, and a box"
            raise DataError(got, file=source.path, offset=f"{listing} line {row}")
        labels[parts[0]] = number[parts[1]]
    items = Items(source.path)
    for name in source.names(f"{root}val/images"):
        base = name.rsplit("/", 1)[-1]
        if is_picture(name) and base not in labels:
            raise DataError(f"{base} has no line in val_annotations.txt", file=source.path, offset=name)
        if is_picture(name):
            source.add(items, name, labels.pop(base))
    if labels:
        raise DataError(f"{len(labels)} annotated pictures are missing, the first is {min(labels)}", file=source.path)
    return items


def find_folders(source: Tree) -> Found | None:
    """Class folders: ``train/<class>/...`` with ``val`` or ``test`` beside, or ``<class>/...`` alone; one folder around
    all of it is allowed. Labels follow the sorted folder names (as torchvision's ImageFolder)."""
    root = _root(source)
    if root is None:
        return None
    inside = source.folders(root)
    train = next((name for name in TRAIN_NAMES if name in inside), None)
    base = _join(root, train) if train else root
    class_names = tuple(source.folders(base))
    number = {name: i for i, name in enumerate(class_names)}
    splits = {"train": _class_items(source, base, number)}
    if not len(splits["train"]):
        return None
    notes = []
    test = next((name for name in TEST_NAMES if train and name in inside), None)
    if test and source.folders(_join(root, test)):
        splits["test"] = _class_items(source, _join(root, test), number)
    elif test:
        flat = _flat_items(source, _join(root, test), number)
        splits |= {"test": flat} if flat is not None else {}
        notes += [] if flat is not None else [f"{test}/ has no class folders; for ImageNet put {LABEL_FILES} beside it"]
    empty = sorted(set(number.values()) - set(splits["train"].labels().tolist()))
    if empty:
        name = class_names[empty[0]]
        raise DataError(f"{len(empty)} of {len(number)} class folders have no pictures, the first is {name}",
                        file=source.path, hint="remove them or fill them")  # fmt: skip
    return Found("folder", "class folders", source.path, class_names, dict(splits), notes)


def _flat_items(source: Tree, base: str, number: dict[str, int]) -> Items | None:
    """ImageNet-1K validation pictures in one folder; their labels lie here or up to three folders above (Kaggle)."""
    if not source.path.is_dir():
        return None
    top = source.path.resolve()
    wnids = validation_wnids([top / Path(base).parent, top, *list(top.parents)[:3]])
    if wnids is None:
        return None
    items = Items(source.path)
    for name in source.names(base):
        match = VAL_PICTURE.fullmatch(name)
        wnid = wnids.get(int(match[1])) if match else None
        if match and wnid not in number:
            got = f"{len(wnids)} validation labels do not cover it with a class of train"
            raise DataError(got, file=source.path, offset=name)
        if match:
            source.add(items, name, number[str(wnid)])
    return items if len(items) else None


def _root(source: Tree) -> str | None:
    """Where train/ or the class folders lie: here, or in the only folder here."""
    inside = source.folders()
    if len(inside) == 1 and inside[0] not in TRAIN_NAMES:
        deeper = source.folders(inside[0])
        if any(name in deeper for name in TRAIN_NAMES):
            return inside[0]
    return "" if inside else None


def _join(root: str, name: str) -> str:
    return f"{root}/{name}" if root else name


def _class_items(source: Tree, base: str, number: dict[str, int]) -> Items:
    items = Items(source.path)
    for class_name in source.folders(base):
        if class_name not in number:
            raise DataError(f"class folder {class_name} is not in train", file=source.path, offset=base)
        for name in source.names(_join(base, class_name)):
            if is_picture(name):
                source.add(items, name, number[class_name])
    return items


def validation_wnids(folders: list[Path]) -> dict[int, str] | None:
    """{picture number from 1: wnid} from the first folder that holds such labels; None where none does.

    A synset list (one wnid a line, in picture order), Kaggle's solution table, or the devkit's numbers, which count as
    ``map_clsloc.txt`` does.
    """
    for folder in folders:
        for name in _SYNSETS:
            if (folder / name).is_file():
                return dict(enumerate(FolderTree(folder).text(name).split(), 1))
        if (folder / _SOLUTION).is_file():
            return _solution(folder)
        for truth in (folder / _TRUTH, folder / "ILSVRC2012_devkit_t12" / "data" / _TRUTH):
            if truth.is_file() and (folder / "map_clsloc.txt").is_file():
                return _devkit(folder, truth)
    return None


def _solution(folder: Path) -> dict[int, str]:
    out: dict[int, str] = {}
    for row, line in enumerate(FolderTree(folder).text(_SOLUTION).splitlines(), 1):
        match = re.match(r"ILSVRC2012_val_(\d{8}),(n\d{8}) ", line)
        if match is None and row > 1:
            got = f"got {line[:60]!r}; expected ILSVRC2012_val_########,n######## ..."
            raise DataError(got, file=folder / _SOLUTION, offset=f"line {row}")
        if match is not None:
            out[int(match[1])] = match[2]
    return out


def _devkit(folder: Path, truth: Path) -> dict[int, str]:
    rows = (line.split() for line in FolderTree(folder).text("map_clsloc.txt").splitlines())
    wnid = {row[1]: row[0] for row in rows if len(row) >= 2}
    out: dict[int, str] = {}
    for line, number in enumerate(FolderTree(truth.parent).text(truth.name).split(), 1):
        if number not in wnid:
            raise DataError(f"class {number[:20]!r} is not in map_clsloc.txt", file=truth, offset=f"line {line}")
        out[line] = wnid[number]
    return out
