"""Reads tars: ImageNet's official ones (a tar of class tars; the validation tar), one tar per class, class folders."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

from imnet.data.readers.archive import Member, by_name, list_tar, open_tar
from imnet.data.readers.base import Choice, Found
from imnet.data.readers.folders import find_folders
from imnet.data.readers.items import Items
from imnet.data.readers.labels import LABEL_FILES, LIST_FILES, VAL_PICTURE, beside
from imnet.data.readers.rule import LeftOut, is_picture, junk_path, suffix_reason
from imnet.data.readers.shards import files_by_split
from imnet.data.readers.tree import FolderTree, archives
from imnet.data.readers.webdataset import find_webdataset, is_label, sample_key
from imnet.errors import DataError, shown
from imnet.files import is_dir, is_file

# Suffixes of tars. Those compressed with bzip2, xz or zstd are included, so that opening one gives an error about its
# compression instead of about an unknown file.
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")
_CLASS_TAR = re.compile(r"(?:.*/)?(n\d{8})\.tar")
_CLASSES_1K = 1000
# The kind of a tar is decided by this many members; a WebDataset sample has fewer.
_HEAD = 200


def is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_SUFFIXES)


def find_tars(source: FolderTree, choice: Choice) -> Found | None:
    """The set in a tar or in the tars of a folder; None if there is no tar."""
    path, folder = source.path, source.root
    # ImageNet's devkit, which is often beside its tars, has lists but no pictures.
    tars = [name for name in source.names if is_tar(name) and (is_file(path) or "devkit" not in name)]
    if not tars:
        return None
    if is_dir(path) and all(_CLASS_TAR.fullmatch(tar) for tar in tars):
        return _class_tars(source, tars, choice)
    kinds = {tar: _kind(folder / tar) for tar in tars}
    if {"train", "val"} & set(kinds.values()):
        return _imagenet(source, kinds)
    if set(kinds.values()) == {"folders"}:
        return find_folders(archives(source, tars))
    odd = next((tar for tar, kind in kinds.items() if kind == "folders"), None)
    if odd is not None and "samples" in kinds.values():
        other = next(tar for tar, kind in kinds.items() if kind == "samples")
        raise DataError(f"{shown(odd)} holds class folders and {shown(other)} WebDataset samples", file=path,
                        hint="give one of them")  # fmt: skip
    return find_webdataset(source, tars, choice)


def _kind(tar: Path) -> str:
    """The kind of a tar by its first members: train or val (ImageNet's official tars), folders (of pictures), or
    samples (WebDataset)."""
    head = list(islice((member.name for member in _members(tar) if not junk_path(member.name)), _HEAD))
    if not head:
        raise DataError("tar is empty", file=tar, offset=0)
    if any(_CLASS_TAR.fullmatch(name) for name in head):
        return "train"
    if any(VAL_PICTURE.fullmatch(name) for name in head) and not any(map(is_label, head)):
        return "val" if all("/" not in name for name in head) else "folders"
    pictures = [name for name in head if is_picture(name)]
    labelled = {sample_key(name) for name in head if is_label(name)}
    in_folders = any("/" in name for name in pictures)
    return "folders" if in_folders and not labelled.intersection(map(sample_key, pictures)) else "samples"


def _members(path: Path, start: int = 0, length: int | None = None) -> Iterator[Member]:
    with open_tar(path) as file:
        yield from list_tar(file, path, start, length)


def _class_tars(source: FolderTree, tars: list[str], choice: Choice) -> Found:
    path, left, notes = source.path, LeftOut(source.left), []
    number = {wnid: i for i, wnid in enumerate(sorted({Path(tar).stem for tar in tars}))}
    wnids = tuple(number)
    splits: dict[str, Items] = {}
    for split, files in files_by_split(tars, path, choice, notes).items():
        twin = next((stem for stem, count in Counter(Path(tar).stem for tar in files).items() if count > 1), None)
        if twin:
            places = " and ".join(tar for tar in files if Path(tar).stem == twin)
            raise DataError(f"two tars of one class: {places}", file=path)
        splits[split] = Items(path)
        for tar in files:
            _add_tar(splits[split], path / tar, number[Path(tar).stem], left)
    absent = sorted(set(range(len(wnids))) - set(splits["train"].labels().tolist())) if "train" in splits else []
    if absent:
        notes.append(f"{len(absent)} of {len(wnids)} class tars have no pictures, the first is {wnids[absent[0]]}")
    left.rest(source.names, tars)
    return Found("imagenet21k", "one tar per class", path, wnids, dict(splits), notes, left)


def _add_tar(items: Items, tar: Path, label: int, left: LeftOut, start: int = 0, length: int | None = None) -> None:
    """Add every picture of a class tar, which may itself be inside ``tar`` (``length`` bytes from ``start``)."""
    number = items.file_number(str(tar))
    for member in by_name(_members(tar, start, length), tar).values():
        reason = junk_path(member.name) or (None if is_picture(member.name) else suffix_reason(member.name))
        if reason:
            left[reason] += 1
        else:
            items.add(label, number, member)


def _imagenet(source: FolderTree, kinds: dict[str, str]) -> Found:
    folder, left, splits, wnids = source.root, LeftOut(source.left), {}, ()
    train, val = ([tar for tar, got in kinds.items() if got == kind] for kind in ("train", "val"))
    for kind, tars in (("train", train), ("val", val)):
        if len(tars) > 1:
            raise DataError(f"two {kind} tars: {tars[0]} and {tars[1]}", file=folder, hint="keep one of them")
    if train:
        splits["train"], wnids = _training(folder, folder / train[0], left)
    if val:
        splits["test"], wnids = _validation(folder, folder / val[0], wnids, left)
    left.rest(source.names, {*train, *val, *LIST_FILES})
    name = "imagenet" if len(wnids) <= _CLASSES_1K else "imagenet21k"
    return Found(name, "ImageNet's official tars", source.path, wnids, splits, left=left)


def _training(folder: Path, train: Path, left: LeftOut) -> tuple[Items, tuple[str, ...]]:
    items, inner = Items(folder), []
    items.file_number(str(train))
    for member in by_name(_members(train), train).values():
        match = _CLASS_TAR.fullmatch(member.name)
        if match is None or junk_path(member.name):
            left[junk_path(member.name) or suffix_reason(member.name)] += 1
        else:
            inner.append((match[1], member))
    inner.sort(key=lambda entry: entry[0])
    twin = next((one[0] for one, other in pairwise(inner) if one[0] == other[0]), None)
    if twin is not None:
        raise DataError("two tars of one class", file=train, offset=f"{twin}.tar")
    for label, (_, member) in enumerate(inner):
        _add_tar(items, train, label, left, member.offset, member.size)
    return items, tuple(wnid for wnid, _ in inner)


def _validation(folder: Path, val: Path, wnids: tuple[str, ...], left: LeftOut) -> tuple[Items, tuple[str, ...]]:
    listed = beside([folder])
    if listed is None:
        raise DataError("validation tar without labels", file=val, hint=f"put {LABEL_FILES} beside it")
    wnids = wnids or tuple(sorted(set(listed.wnids.values())))
    number = {wnid: i for i, wnid in enumerate(wnids)}
    items = Items(folder)
    file = items.file_number(str(val))
    for member in by_name(_members(val), val).values():
        if VAL_PICTURE.fullmatch(member.name) is None or junk_path(member.name):
            left[junk_path(member.name) or suffix_reason(member.name)] += 1
            continue
        wnid = listed.wnids.get(member.name.rpartition("/")[2])
        if wnid not in number:
            got = f"{len(listed.wnids)} validation labels do not cover it with a class of train"
            raise DataError(got, file=val, offset=member.name)
        items.add(number[wnid], file, member)
    return items, wnids
