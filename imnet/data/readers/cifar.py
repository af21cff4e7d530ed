"""Reads CIFAR's binary version, from its folder or its ``.tar.gz``.

Source: Krizhevsky 2009, and the set's page. A record is the label (CIFAR-100: coarse, then fine), followed by 3072
bytes of planar R, G, B, 32 x 32.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imnet.data.base import Split
from imnet.data.files import file_state, reading
from imnet.data.readers.base import Blocks, Found
from imnet.data.readers.items import Items
from imnet.data.readers.rule import LeftOut
from imnet.data.readers.tree import Tree
from imnet.errors import DataError
from imnet.files import is_dir, is_file

_PIXEL_BYTES = 3072
_MAX_FILE_BYTES = 512 << 20
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Form:
    """One of the two sets: the names of its files, and the number of label bytes in a record."""

    name: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    names_file: str


_BATCHES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))
CIFAR10 = Form(
    "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", _BATCHES, ("test_batch.bin",), 1, "batches.meta.txt"
)
CIFAR100 = Form(
    "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), ("test.bin",), 2, "fine_label_names.txt"
)
FORMS = {form.name: form for form in (CIFAR10, CIFAR100)}


def find_cifar(source: Tree) -> Found | None:
    """CIFAR-10 or CIFAR-100 in a folder of binary files, or in one below it; None if there is none."""
    names = set(source.names)
    places = [(form, name.rpartition("/")[0]) for form in FORMS.values() for name in source.names
              if name.rpartition("/")[2] == form.train[0]
              and name.removesuffix(form.train[0]) + form.test[0] in names]  # fmt: skip
    if not places:
        _refuse_pickles(source)
        return None
    if len(places) > 1:
        seen = " and ".join(f"{form.name} in {inside or '.'}" for form, inside in places)
        raise DataError(f"two sets: {seen}", file=source.path, hint="give the folder of one")
    form, inside = places[0]
    folder = source.path / inside
    files = [name for name in (*form.train, *form.test, form.names_file) if is_file(folder / name)]
    states = {folder / name: file_state(folder / name) for name in files}
    train, test, class_names = read(form, folder)
    splits: dict[str, Items | Blocks] = {"train": Blocks.of(train, states), "test": Blocks.of(test, states)}
    used = {f"{inside}/{name}".lstrip("/") for name in files}
    left = LeftOut(source.left)
    left.rest(source.names, used)
    return Found(form.name, f"{form.name} binary files", source.path, class_names, splits, left=left)


def _refuse_pickles(source: Tree) -> None:
    """Raise DataError for the version that torchvision downloads: it is pickled, and only ImageNet-64's pickles are
    read."""
    python = ("cifar-10-batches-py/data_batch_1", "cifar-100-python/train")
    inside = next((name for name in source.names if f"{source.path.name}/{name}".endswith(python)), None)
    if inside is not None:
        hint = f"get the binary version: {' or '.join(form.archive for form in FORMS.values())}"
        raise DataError("CIFAR's Python version, which is pickles", file=source.path / inside, hint=hint)


def place(form: Form, root: Path) -> Path | None:
    """The folder of binary files, which is ``root`` or a folder in it, or else the archive in ``root``."""
    for folder in (root, root / form.folder):
        if is_file(folder / form.train[0]) and is_file(folder / form.test[0]):
            return folder
    return root / form.archive if is_file(root / form.archive) else None


def read(form: Form, place: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """(train, test, class names) from the folder or the archive; DataError with file and offset on damage."""
    names = (*form.train, *form.test, form.names_file)
    raw = _from_folder(place, names) if is_dir(place) else _from_archive(place, names)
    missing = [name for name in (*form.train, *form.test) if name not in raw]
    if missing:
        raise DataError(f"{missing[0]} is missing", file=place, hint="get the set again")
    class_names = _class_names(form, raw.get(form.names_file, b""), place)
    splits = [_split(form, [(name, raw[name]) for name in files], place, len(class_names))
              for files in (form.train, form.test)]  # fmt: skip
    return splits[0], splits[1], class_names


def _class_names(form: Form, listed: bytes, place: Path) -> tuple[str, ...]:
    """The class names in ``listed``, one per line and class; if it is empty, CIFAR-10's usual names or numbers."""
    usual = _CIFAR10_NAMES if form.name == "cifar10" else tuple(f"class_{i}" for i in range(100))
    names = tuple(line.strip() for line in listed.decode("utf-8-sig", errors="replace").split("\n") if line.strip())
    if names and len(names) != len(usual):
        what = f"{len(names)} class names, {form.name} has {len(usual)}"
        raise DataError(what, file=place, offset=form.names_file, hint="get the set again, or remove that file")
    return names or usual


def _from_folder(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    with reading(place):
        return {name: (place / name).read_bytes() for name in names if is_file(place / name)}


def _from_archive(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The regular members that are wanted, read in one pass without extracting them."""
    import tarfile  # imported here, since importing imnet.data should be fast and few runs need it

    raw: dict[str, bytes] = {}
    with reading(place):
        try:
            with tarfile.open(place, "r|gz") as archive:
                for member in archive:
                    base = member.name.rsplit("/", 1)[-1]
                    if not member.isreg() or base not in names:
                        continue
                    if base in raw or member.size > _MAX_FILE_BYTES:
                        raise DataError(f"a second one, or {member.size} bytes", file=place, offset=member.name)
                    stream = archive.extractfile(member)
                    raw[base] = stream.read() if stream is not None else b""
        except (tarfile.TarError, EOFError, zlib.error, ValueError) as error:
            raise DataError(f"archive is damaged: {error}", file=place, hint="get the set again") from error
    return raw


def _split(form: Form, files: list[tuple[str, bytes]], place: Path, num_classes: int) -> Split:
    record = form.label_bytes + _PIXEL_BYTES
    parts = []
    for name, raw in files:
        if not raw or len(raw) % record:
            raise DataError(f"{len(raw)} bytes are not whole records of {record}", file=place, offset=name)
        rows = np.frombuffer(raw, dtype=np.uint8).reshape(-1, record)
        wrong = np.flatnonzero(rows[:, form.label_bytes - 1] >= num_classes)
        if len(wrong):
            got = f"label {rows[wrong[0], form.label_bytes - 1]} of image {wrong[0]}; allowed 0..{num_classes - 1}"
            raise DataError(got, file=place, offset=name)
        parts.append(rows)
    rows = np.concatenate(parts)
    images = rows[:, form.label_bytes :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Split(np.ascontiguousarray(images), rows[:, form.label_bytes - 1].astype(np.int64))
