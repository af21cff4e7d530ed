"""Records of a store's source, kept beside the store to detect that files were added, removed, replaced or repaired.

``source.json`` has the request and one hash over names, sizes and times of everything at the source, which takes
seconds for a million files. ``<split>.source.npz`` lists the images, so that a change can be described; if sizes agree
and times do not, the crc32 of the content decides.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from array import array
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imnet.data.files import file_state, io_errors
from imnet.data.readers import Blocks, Choice, Items
from imnet.data.readers.labels import LIST_FILES
from imnet.data.readers.picture import ResizeRule
from imnet.data.readers.tree import Links, kind_of, through
from imnet.data.readers.webdataset import NAME_FILES
from imnet.errors import DataError, IOFailure, shown
from imnet.files import is_dir, is_file, temporary_of, write_atomic

_BLOCK_BYTES = 1 << 20
UNKNOWN = -1


def state(source: Path) -> str:
    """sha256 (hex) over names, sizes and times of all files at ``source``, and of lists of labels in folders above."""
    digest = hashlib.sha256(os.fsencode(os.path.realpath(source)))
    listed = [parent / name for parent in list(source.resolve().parents)[:3] for name in (*LIST_FILES, *NAME_FILES)]
    for file in [source, *listed] if is_file(source) else listed:
        with suppress(IOFailure):
            digest.update(f"{file_state(file)}".encode())
    folders: list[tuple[str, Links]] = [(os.fspath(source), ())] if is_dir(source) else []
    while folders:
        _walk(*folders.pop(), folders, digest)
    return digest.hexdigest()


def _walk(folder: str, links: Links, folders: list[tuple[str, Links]], digest: hashlib._Hash) -> None:
    """Add one folder to ``digest``, and its subfolders to ``folders``. Entries are taken in the directory's own order,
    which is stable while nothing changes: sorting would cost a second."""
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


@dataclass(frozen=True)
class Table:
    """The images (or the files of pixels) of a split when it was packed; int64 columns, ``UNKNOWN`` if not known."""

    root: str
    names: list[str]
    columns: dict[str, np.ndarray]

    @classmethod
    def of(cls, content: Items | Blocks, root: Path) -> Table:
        """The current state of a split at ``root``; contents are not read, so that ``crc`` (N,) is ``UNKNOWN``."""
        if isinstance(content, Blocks):
            names, labels = [file.name for file in content.files], np.zeros(len(content.files), dtype=np.int64)
            stamps = np.array(list(content.files.values()), dtype=np.int64).T
        else:
            (names, stamps), labels = content.stamps(), content.labels()
        size, modified, changed = stamps
        crc = np.full(len(names), UNKNOWN, dtype=np.int64)
        columns = {"size": size, "modified": modified, "changed": changed, "label": labels, "crc": crc}
        return cls(os.path.realpath(root), names, columns)

    def write(self, path: Path) -> None:
        names = np.frombuffer(os.fsencode("\0".join((self.root, *self.names))), dtype=np.uint8)
        part = temporary_of(path)
        with io_errors(path, "write"):
            with open(part, "wb") as file:
                np.savez_compressed(file, allow_pickle=False, names=names, **self.columns)
            os.replace(part, path)

    @classmethod
    def read(cls, path: Path) -> Table | None:
        """The table of a split, or None if it is missing or damaged, so that nothing is known about the source."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                columns = {key: arrays[key] for key in ("size", "modified", "changed", "label", "crc")}
                root, *names = os.fsdecode(arrays["names"].tobytes()).split("\0")
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error):
            return None
        sound = all(column.shape == (len(names),) for column in columns.values())
        return cls(root, names, columns) if sound else None


def file_crc(path: Path) -> int:
    """crc32 of a whole file."""
    crc = 0
    with io_errors(path, "read"), open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            crc = zlib.crc32(block, crc)
    return crc


def compare(old: Table, content: Items | Blocks, root: Path) -> tuple[dict[str, list[str]], Table]:
    """({kind of change: names} of everything at the source that differs from ``old``, the source's new table with
    crc32s as far as they are known)."""
    new = Table.of(content, root)
    place = {name: i for i, name in enumerate(old.names)}
    change: dict[str, list[str]] = {"added": [], "removed": [], "replaced": [], "relabelled": []}
    change["removed"] = sorted(set(old.names) - set(new.names))
    for i, name in enumerate(new.names):
        became = _became(place[name], i, old.columns, new.columns, content) if name in place else "added"
        if became:
            change[became].append(name)
    return {became: names for became, names in change.items() if names}, new


def told(change: dict[str, list[str]]) -> str:
    """A summary of a change: ``8 added, 4 replaced, the first train/cat/cat_0.jpg``."""
    first = shown(min(next(iter(change.values()))))
    return f"{', '.join(f'{len(names)} {became}' for became, names in change.items())}, the first {first}"


def _became(j: int, i: int, was: dict[str, np.ndarray], now: dict[str, np.ndarray], content: Items | Blocks) -> str:
    """The kind of change of row ``j`` of the old table, now row ``i``; empty if there is none. Sets its crc32."""
    if was["size"][j] != now["size"][i]:
        return "replaced"
    same_times = all(was[key][j] == now[key][i] for key in ("modified", "changed"))
    now["crc"][i] = was["crc"][j] if same_times else _crc(content, i)
    if now["crc"][i] != was["crc"][j] or (not same_times and was["crc"][j] == UNKNOWN):
        return "replaced"
    return "relabelled" if was["label"][j] != now["label"][i] else ""


def _crc(content: Items | Blocks, i: int) -> int:
    if isinstance(content, Blocks):
        return file_crc(list(content.files)[i])
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
    """Everything except the source that determines the content of a store, in the form that ``Origin`` keeps."""
    resize = None if rule is None else asdict(rule)
    asked = {"name": name, "min_images": min_images, "hold_out": hold_out, **asdict(choice or Choice())}
    return {**asked, "on_bad": on_bad, "max_bad": max_bad, "resize": resize}


@dataclass(frozen=True)
class Origin:
    """The source of a store: its path, the request, and the source's state when packing began."""

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
        """The origin of the store in ``target``, or None if it is missing or damaged."""
        try:
            return cls(**json.loads((target / "source.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
