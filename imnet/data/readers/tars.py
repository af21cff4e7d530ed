"""ImageNet's official tars (a tar of class tars; the validation tar), class tars of ImageNet-21K, WebDataset shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from imnet.data.readers.archive import TarMember, list_tar
from imnet.data.readers.base import Found
from imnet.data.readers.folders import LABEL_FILES, TEST_NAMES, VAL_PICTURE, validation_wnids
from imnet.data.readers.items import Items
from imnet.data.readers.tree import FolderTree, is_picture
from imnet.errors import DataError, IOFailure

_CLASS_TAR = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_MAX_LABEL_BYTES = 1 << 16


def find_tars(path: Path) -> Found | None:
    """The set that a tar, or a folder of tars, holds; None where there is no tar."""
    tars = sorted(path.glob("*.tar")) if path.is_dir() else [path]
    if not tars:
        return None
    if path.is_dir() and all(_CLASS_TAR.fullmatch(tar.name) for tar in tars):
        return _class_tars(path, tars)
    first = {tar: _first(tar) for tar in tars}
    train = next((tar for tar, name in first.items() if _CLASS_TAR.fullmatch(name)), None)
    val = next((tar for tar, name in first.items() if VAL_PICTURE.fullmatch(name)), None)
    if train is not None or val is not None:
        return _imagenet(path, train, val)
    return _webdataset(path, tars)


def _members(path: Path) -> Iterator[TarMember]:
    try:
        with open(path, "rb") as file:
            yield from list_tar(file, path)
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=path) from error


def _first(path: Path) -> str:
    member = next(_members(path), None)
    if member is None:
        raise DataError("tar is empty", file=path, offset=0)
    return member.name


def _add_tar(items: Items, tar: Path, number: int, label: int, start: int = 0, length: int | None = None) -> None:
    """Every picture of a class tar, which may itself lie inside ``tar``."""
    with open(tar, "rb") as file:
        for member in list_tar(file, tar, start, length):
            if is_picture(member.name):
                items.add_member(member.name, label, number, member.offset, member.size)


def _class_tars(path: Path, tars: list[Path]) -> Found:
    items = Items(path)
    for label, tar in enumerate(tars):
        items.files.append(str(tar))
        _add_tar(items, tar, label, label)
    names = tuple(tar.stem for tar in tars)
    return Found("imagenet21k", "one tar per class", path, names, {"train": items})


def _imagenet(path: Path, train: Path | None, val: Path | None) -> Found:
    folder = path if path.is_dir() else path.parent
    splits: dict[str, Items] = {}
    wnids: tuple[str, ...] = ()
    if train is not None:
        items = Items(folder)
        items.files.append(str(train))
        inner = sorted((match[1], member) for member in _members(train) if (match := _CLASS_TAR.fullmatch(member.name)))
        wnids = tuple(wnid for wnid, _ in inner)
        for label, (_, member) in enumerate(inner):
            _add_tar(items, train, 0, label, member.offset, member.size)
        splits["train"] = items
    if val is not None:
        splits["test"], wnids = _validation(folder, val, wnids)
    return Found("imagenet", "ImageNet-1K official tars", path, wnids, dict(splits))


def _validation(folder: Path, val: Path, wnids: tuple[str, ...]) -> tuple[Items, tuple[str, ...]]:
    order = validation_wnids([folder])
    if order is None:
        raise DataError("validation tar without labels", file=val, hint=f"put {LABEL_FILES} beside it")
    wnids = wnids or tuple(sorted(set(order.values())))
    number = {wnid: i for i, wnid in enumerate(wnids)}
    items = Items(folder)
    items.files.append(str(val))
    for member in _members(val):
        match = VAL_PICTURE.fullmatch(member.name)
        if match is None:
            continue
        wnid = order.get(int(match[1]))
        if wnid not in number:
            got = f"{len(order)} validation labels do not cover it with a class of train"
            raise DataError(got, file=val, offset=member.name)
        items.add_member(member.name, number[wnid], 0, member.offset, member.size)
    return items, wnids


def _webdataset(path: Path, tars: list[Path]) -> Found | None:
    splits: dict[str, Items] = {}
    for tar in tars:
        test = any(name in tar.stem.lower() for name in TEST_NAMES)
        items = splits.setdefault("test" if test else "train", Items(path if path.is_dir() else path.parent))
        items.files.append(str(tar))
        _add_shard(items, tar, len(items.files) - 1)
    if not any(len(items) for items in splits.values()):
        return None
    count = 1 + max(int(items.labels().max()) for items in splits.values() if len(items))
    names = _class_names(path if path.is_dir() else path.parent, count)
    return Found("webdataset", f"WebDataset ({len(tars)} shards)", path, names, dict(splits))


def _add_shard(items: Items, tar: Path, number: int) -> None:
    """Samples of a shard: neighbouring members with the same key, one of them a picture, one its label."""
    with open(tar, "rb") as file:
        for key, group in groupby(list_tar(file, tar), key=_key):
            members = list(group)
            picture = next((member for member in members if is_picture(member.name)), None)
            label = next((value for member in members if (value := _label(file, member, tar)) is not None), None)
            if picture is None and label is None:
                continue
            if picture is None or label is None:
                lacks = "no picture" if picture is None else "no .cls or .json label"
                raise DataError(f"sample has {lacks}", file=tar, offset=key[:200])
            items.add_member(picture.name, label, number, picture.offset, picture.size)


def _key(member: TarMember) -> str:
    folder, slash, base = member.name.rpartition("/")
    return folder + slash + base.split(".", 1)[0]


def _label(file, member: TarMember, tar: Path) -> int | None:
    """The class number in a ``.cls`` member, or in the ``label`` or ``cls`` field of a ``.json`` member."""
    extension = member.name.rsplit("/", 1)[-1].partition(".")[2].lower()
    if extension not in ("cls", "json"):
        return None
    if member.size > _MAX_LABEL_BYTES:
        raise DataError(f"label has {member.size} bytes; allowed {_MAX_LABEL_BYTES}", file=tar, offset=member.name)
    file.seek(member.offset)
    raw = file.read(member.size)
    try:
        value = int(raw) if extension == "cls" else _field(json.loads(raw))
    except (ValueError, RecursionError) as error:
        raise DataError("label is not a number", file=tar, offset=member.name) from error
    if value is not None and not 0 <= value < 1_000_000:
        raise DataError(f"label is {value}; allowed 0..999999", file=tar, offset=member.name)
    return value


def _field(record: object) -> int | None:
    value = record.get("label", record.get("cls")) if isinstance(record, dict) else None
    return value if type(value) is int else None


def _class_names(folder: Path, count: int) -> tuple[str, ...]:
    for name in ("classnames.txt", "classes.txt"):
        if (folder / name).is_file():
            names = tuple(line.strip() for line in FolderTree(folder).text(name).splitlines() if line.strip())
            if len(names) < count:
                raise DataError(f"{len(names)} class names, labels go to {count - 1}", file=folder / name)
            return names
    return tuple(f"class_{i:04d}" for i in range(count))
