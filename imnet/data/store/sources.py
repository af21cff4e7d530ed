"""What a store was packed from, kept beside it: enough to see that a file was added, replaced, mended or completed.

``source.json`` has the request and one hash over names, sizes and times of everything at the source, which a walk
answers in seconds for a million files. ``<split>.source.npz`` lists the images, so that a change can be named; where
sizes agree and times do not, the crc32 of the content decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from array import array
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from imnet.data.files import io_errors
from imnet.data.readers import Blocks, Choice, Items
from imnet.data.readers.labels import LIST_FILES
from imnet.data.readers.picture import ResizeRule
from imnet.data.readers.tree import Links, kind_of, through
from imnet.data.readers.webdataset import NAME_FILES
from imnet.errors import DataError, shown
from imnet.files import temporary_of, write_atomic

_BLOCK_BYTES = 1 << 20
UNKNOWN = -1


def state(source: Path) -> str:
    """sha256 (hex) over the names, sizes and times of all that lies at ``source``, and of lists of labels above it."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(source)))
    listed = [parent / name for parent in list(source.resolve().parents)[:3] for name in (*LIST_FILES, *NAME_FILES)]
    for file in [source, *listed] if source.is_file() else listed:
        digest.update(f"{_times(file)}".encode())
    folders: list[tuple[str, Links]] = [(os.fspath(source), ())] if source.is_dir() else []
    while folders:
        _walk(*folders.pop(), folders, digest)
    return digest.hexdigest()


def _times(file: Path) -> tuple[int, ...]:
    try:
        status = os.stat(file)
    except OSError:
        return ()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _walk(folder: str, links: Links, folders: list[tuple[str, Links]], digest: hashlib._Hash) -> None:
    """One folder. In the order of the directory, which stays while nothing changes: sorting would cost a second."""
    names, numbers = [], array("q")
    with io_errors(Path(folder), "list"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(descriptor) as entries:
            for entry in entries:
                names.append(entry.name)
                if kind_of(entry) == "folder":
                    path = f"{folder}/{entry.name}"
                    deeper = through(path, links) if entry.is_symlink() else links
                    folders += [] if deeper is None else [(path, deeper)]
                    continue
                try:
                    status = entry.stat()
                except OSError:  # a link to nothing or to itself
                    continue
                numbers.extend((status.st_size, status.st_mtime_ns, status.st_ctime_ns))
    finally:
        os.close(descriptor)
    digest.update(os.fsencode("\0".join((folder, *names))))
    digest.update(numbers)


@dataclass
class Change:
    """How a source differs from what was packed; false where it does not."""

    added: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    replaced: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return any(vars(self).values())

    def line(self) -> str:
        """``8 added, 4 replaced, the first train/cat/cat_0.jpg``."""
        kinds = {kind: names for kind, names in vars(self).items() if names}
        first = shown(min(next(iter(kinds.values())))) if kinds else ""
        return f"{', '.join(f'{len(names)} {kind}' for kind, names in kinds.items())}, the first {first}"


@dataclass(frozen=True)
class Table:
    """The images (or the files of pixels) of a split as they were packed; int64 columns, ``UNKNOWN`` if not known."""

    root: str
    names: list[str]
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, content: Items | Blocks, root: Path) -> Table:
        """The split as it lies now at ``root``, its contents not read yet: ``crc`` (N,) is not known."""
        names, columns = _items(content) if isinstance(content, Items) else _files(content)
        crc = np.full(len(names), UNKNOWN, dtype=np.int64)
        return cls(os.path.realpath(root), names, {**columns, "crc": crc})

    def write(self, path: Path) -> None:
        names = np.frombuffer(os.fsencode("\0".join((self.root, *self.names))), dtype=np.uint8)
        part = temporary_of(path)
        with io_errors(path, "write"):
            with open(part, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, names=names, **self.columns)
            os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> Table | None:
        """The table of a split; None where there is none or it is damaged: then nothing is known of the source."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                columns = {key: arrays[key] for key in ("size", "modified", "changed", "label", "crc")}
                root, *names = os.fsdecode(arrays["names"].tobytes()).split("\0")
        except (OSError, ValueError, KeyError, EOFError, zlib.error):
            return None
        sound = all(column.shape == (len(names),) for column in columns.values())
        return cls(root, names, columns) if sound else None


def _items(content: Items) -> tuple[list[str], dict[str, np.ndarray]]:
    times = {file: _times(Path(file)) for file in content.files}
    rows = [content.stamp(i, times) for i in range(len(content))]
    values = np.array([row[1:] for row in rows], dtype=np.int64).reshape(len(rows), 3)
    columns = {key: values[:, k] for k, key in enumerate(("size", "modified", "changed"))}
    return [row[0] for row in rows], {**columns, "label": content.labels()}


def _files(content: Blocks) -> tuple[list[str], dict[str, np.ndarray]]:
    values = np.array([_times(file) for file in content.files], dtype=np.int64).reshape(len(content.files), 3)
    columns = {key: values[:, k] for k, key in enumerate(("size", "modified", "changed"))}
    return [file.name for file in content.files], {**columns, "label": np.zeros(len(content.files), dtype=np.int64)}


def file_crc(path: Path) -> int:
    """crc32 of a whole file."""
    crc = 0
    with io_errors(path, "read"), open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def compare(old: Table, content: Items | Blocks, root: Path) -> tuple[Change, Table]:
    """(how the source changed since, its table now with the contents that are known)."""
    new, change = Table.of(content, root), Change()
    place = {name: i for i, name in enumerate(old.names)}
    change.removed = sorted(set(old.names) - set(new.names))
    for i, name in enumerate(new.names):
        j = place.get(name)
        if j is None:
            change.added.append(name)
            continue
        _compare_one(name, i, j, old, new, content, change)
    return change, new


def _compare_one(name: str, i: int, j: int, old: Table, new: Table, content: Items | Blocks, change: Change) -> None:
    was, now = old.columns, new.columns
    if was["size"][j] != now["size"][i]:
        change.replaced.append(name)
        return
    same_times = all(was[key][j] == now[key][i] for key in ("modified", "changed"))
    now["crc"][i] = was["crc"][j] if same_times else _crc(content, i)
    if now["crc"][i] != was["crc"][j] or (not same_times and was["crc"][j] == UNKNOWN):
        change.replaced.append(name)
    elif was["label"][j] != now["label"][i]:
        change.relabelled.append(name)


def _crc(content: Items | Blocks, i: int) -> int:
    if isinstance(content, Blocks):
        return file_crc(content.files[i])
    try:
        return zlib.crc32(content.read(i))
    except DataError:  # it cannot be read, so it is not what was packed
        return UNKNOWN


def request_values(
    rule: ResizeRule | None,
    name: str | None = None,
    min_images: int = 0,
    hold_out: int = 0,
    choice: Choice | None = None,
    on_bad: str = "stop",
    max_bad: int | None = None,
) -> dict:
    """What decides the content of a store beside its source, as ``Origin`` keeps it."""
    resize = None if rule is None else asdict(rule)
    asked = {"name": name, "min_images": min_images, "hold_out": hold_out, **asdict(choice or Choice())}
    return {**asked, "on_bad": on_bad, "max_bad": max_bad, "resize": resize}


@dataclass(frozen=True)
class Origin:
    """The source of a store: its path, what was asked for, and its state when packing began."""

    path: str
    request: dict
    state: str

    @classmethod
    def of(cls, source: Path, request: dict) -> Origin:
        return cls(os.path.realpath(source), request, state(source))

    def write(self, target: Path) -> None:
        write_atomic(target / "source.json", json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def read(cls, target: Path) -> Origin | None:
        """That of the store in ``target``; None where it has none that is sound."""
        try:
            return cls(**json.loads((target / "source.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
