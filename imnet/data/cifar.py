"""``cifar10`` and ``cifar100``: the binary version, from its folder, its ``.tar.gz``, or downloaded.

Source: Krizhevsky 2009; the page of the set gives layout and checksums. A record is the label (CIFAR-100: coarse, then
fine), then 3072 bytes of planar R, G, B, 32 x 32.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from imnet.data.base import DataSet, Request, Split, dataset, make, require, search_path
from imnet.data.download import Patience, Remote, fetch
from imnet.data.files import cache_dir
from imnet.data.store import is_store, load_named
from imnet.errors import DataError, IOFailure

BASE_URL = "https://www.cs.toronto.edu/~kriz/"
_PIXEL_BYTES = 3072
_MAX_FILE_BYTES = 512 << 20
_CIFAR10_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


@dataclass(frozen=True)
class Form:
    """One of the two sets: where its bytes lie and what a record looks like."""

    name: str
    folder: str
    archive: str
    size_bytes: int
    checksum: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int
    names_file: str


FORMS = {
    "cifar10": Form(
        "cifar10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz", 170_052_171,
        "md5:c32a1d4ab5d03f1284b67883e8d87530", tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",), 1, "batches.meta.txt",
    ),
    "cifar100": Form(
        "cifar100", "cifar-100-binary", "cifar-100-binary.tar.gz", 168_513_733,
        "md5:03b5dce01913d631647c71ecec9e9cb8", ("train.bin",), ("test.bin",), 2, "fine_label_names.txt",
    ),
}  # fmt: skip


@dataset
def cifar10(request: Request) -> DataSet:
    """CIFAR-10: 50,000 / 10,000 images, 32 px RGB, 10 classes."""
    return _load(FORMS["cifar10"], request, 10)


@dataset
def cifar100(request: Request) -> DataSet:
    """CIFAR-100: 50,000 / 10,000 images, 32 px RGB, 100 fine classes."""
    return _load(FORMS["cifar100"], request, 100)


def _load(form: Form, request: Request, num_classes: int) -> DataSet:
    options = (("split", request.split, None), ("image_px", request.image_px, 32), ("channels", request.channels, 3))
    for option, got, allowed in (*options, ("num_classes", request.num_classes, num_classes)):
        require(option, got, allowed, form.name)
    if request.data_dir is not None and is_store(request.data_dir):
        return load_named(request.data_dir, form.name)
    place = find(form, request.data_dir) or _download(form, request)
    train, test, names = read(form, place)
    return make(form.name, train, test, names)


def find(form: Form, data_dir: Path | None) -> Path | None:
    """The folder of binary files or the archive, on the search path or in the cache."""
    for root in [*search_path(data_dir, (form.folder, form.name)), cache_dir() / form.name]:
        for place in (root, root / form.folder):
            if (place / form.train[0]).is_file() and (place / form.test[0]).is_file():
                return place
        if (root / form.archive).is_file():
            return root / form.archive
    return None


def read(form: Form, place: Path) -> tuple[Split, Split, tuple[str, ...]]:
    """(train, test, class names) from the folder or the archive; DataError with file and offset on damage."""
    names = (*form.train, *form.test, form.names_file)
    raw = _from_folder(place, names) if place.is_dir() else _from_archive(place, names)
    missing = [name for name in (*form.train, *form.test) if name not in raw]
    if missing:
        raise DataError(f"{missing[0]} is missing", file=place, hint="get the set again")
    class_names = tuple(raw.get(form.names_file, b"").decode(errors="replace").split())
    class_names = class_names or (_CIFAR10_NAMES if form.name == "cifar10" else tuple(f"class_{i}" for i in range(100)))
    splits = [_split(form, [(name, raw[name]) for name in files], place, len(class_names))
              for files in (form.train, form.test)]  # fmt: skip
    return splits[0], splits[1], class_names


def _from_folder(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    try:
        return {name: (place / name).read_bytes() for name in names if (place / name).is_file()}
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=error.filename or place) from error


def _from_archive(place: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """The wanted regular members, read in one pass and never extracted."""
    import tarfile  # here, because importing imnet.data should cost little and most runs never come here

    raw: dict[str, bytes] = {}
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
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=place) from error
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


def download(form: Form, folder: Path, base_url: str = BASE_URL, patience: Patience | None = None) -> Path:
    """Fetch the archive into ``folder``, resuming; its path. IOFailure (one line) where that fails."""
    return fetch(Remote(base_url + form.archive, form.size_bytes, form.checksum), folder / form.archive, patience)


def _download(form: Form, request: Request) -> Path:
    why = "no download asked"
    target = (request.data_dir or cache_dir()) / form.name
    if request.data_dir is not None and not request.data_dir.is_dir():
        why = f"the folder {request.data_dir} does not exist, so nothing was downloaded into it"
    elif request.download:
        try:
            return download(form, target)
        except IOFailure as error:
            why = str(error)
    looked = ", ".join(map(str, [*search_path(request.data_dir, (form.name,)), cache_dir() / form.name]))
    hint = f"put {BASE_URL}{form.archive} into {target}, or train on --data shapes, which needs nothing"
    raise DataError(f"{form.name} not found: looked for {form.folder} or {form.archive} in {looked}; {why}", hint=hint)
