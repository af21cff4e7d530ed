"""A compact table of where encoded images are: about 90 bytes per image, so that 12 million of them fit in 1 GiB."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from array import array
from pathlib import Path
from typing import BinaryIO

import numpy as np

from imnet.data.files import FileState, file_state, reading, refuse_changed
from imnet.data.readers.archive import DEFLATED, Member, open_tar, plain
from imnet.errors import DataError, shown

# The largest ImageNet-1K file has 15 MB; a larger "picture" than this is an attack or a mistake.
MAX_IMAGE_BYTES = 64 << 20


class Items:
    """An append-only table of encoded images with labels; ``read(i)`` returns the bytes of one, in any process.

    ``files`` are archives; an image whose file number is -1 is not in an archive but the file ``root / name``.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)
        self._top = os.fspath(root)
        self.files: list[str] = []
        self._states: list[FileState] = []
        self._numbers: dict[str, int] = {}
        self._names = bytearray()
        self._name_ends = array("q")
        self._file, self._label, self._crc = array("i"), array("q"), array("q")
        self._offset, self._size, self._full, self._method = array("q"), array("q"), array("q"), array("b")
        # mtime and ctime in ns, only of images that are not in an archive.
        self._modified, self._changed = array("q"), array("q")

    def __len__(self) -> int:
        return len(self._label)

    def add_file(self, name: str, label: int) -> None:
        """Add an image that is the file ``root / name``."""
        size, modified, changed = file_state(f"{self._top}/{name}")
        self.add(label, -1, Member(name, 0, size, size))
        self._modified.append(modified)
        self._changed.append(changed)

    def file_number(self, archive: str, state: FileState | None = None) -> int:
        """The number of an archive in ``files``, which is added if it is new. Call this before listing the archive, or
        give the ``state`` that it had then."""
        number = self._numbers.setdefault(archive, len(self.files))
        if number == len(self.files):
            self.files.append(archive)
            self._states.append(state or file_state(archive))
        return number

    def add(self, label: int, file: int, member: Member) -> None:
        """Add an image that is a member of the archive ``files[file]``."""
        self._names += os.fsencode(member.name)
        self._name_ends.append(len(self._names))
        self._label.append(label)
        self._file.append(file)
        self._offset.append(member.offset)
        self._size.append(member.size)
        self._full.append(member.full)
        self._method.append(member.method)
        self._crc.append(member.crc)

    def name(self, i: int) -> str:
        start = self._name_ends[i - 1] if i else 0
        return os.fsdecode(bytes(self._names[start : self._name_ends[i]]))

    def label(self, i: int) -> int:
        return self._label[i]

    def labels(self) -> np.ndarray:
        """All labels, int64 (N,)."""
        return np.array(self._label, dtype=np.int64)

    def relabel(self, labels: np.ndarray) -> None:
        """Replace the labels of all images by ``labels``, int64 (N,)."""
        self._label = array("q", labels.astype(np.int64).tobytes())

    def place(self, i: int) -> tuple[str, int]:
        """(archive, offset in it) of image i, which must be in one."""
        return self.files[self._file[i]], self._offset[i]

    def where(self, i: int) -> tuple[str, str | None]:
        """(file, member) of image i, for error lines; the member is None if the image is not in an archive."""
        if self._file[i] < 0:
            return str(self.root / self.name(i)), None
        return self.files[self._file[i]], self.name(i)

    def stamps(self) -> tuple[list[str], np.ndarray]:
        """(names, int64 (3, N) of sizes, mtimes and ctimes) of all images. Images in archives have the times of their
        archive, mixed with its size."""
        if not self.files:
            columns = np.array([self._size, self._modified, self._changed], dtype=np.int64)
            return [self.name(i) for i in range(len(self))], columns
        folders = [os.path.relpath(file, self.root) for file in self.files]
        names = [f"{folders[number]}/{self.name(i)}" for i, number in enumerate(self._file)]
        size, modified, changed = np.array(self._states, dtype=np.int64)[np.array(self._file)].T
        return names, np.array([self._full, modified ^ size, changed], dtype=np.int64)

    def take(self, rows: np.ndarray, labels: np.ndarray) -> Items:
        """A new table of ``rows``, in that order, with new labels."""
        out = type(self)(self.root)
        out.files, out._numbers, out._states = list(self.files), dict(self._numbers), list(self._states)
        for row, label in zip(rows.tolist(), labels.tolist(), strict=True):
            columns = (self._offset, self._size, self._full, self._method, self._crc)
            out.add(label, self._file[row], Member(self.name(row), *(column[row] for column in columns)))
        if self._modified:
            out._modified = array("q", (self._modified[row] for row in rows.tolist()))
            out._changed = array("q", (self._changed[row] for row in rows.tolist()))
        return out

    def fingerprint(self) -> str:
        """sha256 over names, labels, places, and sizes and times of files or archives; changes if the source does."""
        columns = (self._label, self._file, self._offset, self._size, self._crc, self._modified, self._changed)
        state = hashlib.sha256(bytes(self._names))
        for column in columns:
            state.update(column.tobytes())
        for file, (size, modified, changed) in zip(self.files, self._states, strict=True):
            state.update(f"{file} {size} {modified} {changed}".encode(errors="surrogateescape"))
        return state.hexdigest()

    def refuse_changed(self) -> None:
        """Raise DataError if an archive has changed since it was listed: its offsets may belong to other pictures."""
        for file, state in zip(self.files, self._states, strict=True):
            refuse_changed(file, state)

    def refuse_changed_file(self, i: int) -> None:
        """As ``refuse_changed``, but only for the archive of image i."""
        number = self._file[i]
        refuse_changed(self.files[number], self._states[number])

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i. Raises DataError if they are too many, if a zip's crc32 does not match, or if
        the archive has changed since it was listed, and IOFailure if they cannot be read."""
        path, member = self.where(i)
        with reading(path, member):
            if member is None:
                with open(path, "rb") as file:
                    return _whole(file, path)
            self.refuse_changed_file(i)
            with open_tar(path) as file:
                return self._member(file, i, path, member)

    def _member(self, file: BinaryIO, i: int, path: str, member: str) -> bytes:
        offset, size, full = self._offset[i], self._size[i], self._full[i]
        if max(size, full) > MAX_IMAGE_BYTES:
            raise DataError(f"image has {max(size, full)} bytes; allowed {MAX_IMAGE_BYTES}", file=path, offset=member)
        if self._crc[i] >= 0:
            offset = _zip_data_offset(file, offset, path, member)
        data = os.pread(file.fileno(), size, offset)
        if len(data) < size:
            raise DataError(f"archive ends inside this member ({len(data)} of {size} bytes)", file=path, offset=member)
        if self._method[i] == DEFLATED:
            data = _inflate(data, full, path, member)
        if self._crc[i] >= 0 and zlib.crc32(data) != self._crc[i]:
            raise DataError(f"crc is {zlib.crc32(data):08x}, expected {self._crc[i]:08x}", file=path, offset=member)
        return data


def _zip_data_offset(file: BinaryIO, offset: int, path: str, member: str) -> int:
    """The offset of a member's data, from its local header, whose extra length may differ from the directory's.

    DataError if its name differs too: one of the two is damaged, and the name says the class. Names that are not ASCII
    are not compared, since the two may be in different encodings.
    """
    head = os.pread(file.fileno(), 30, offset)
    if len(head) < 30 or head[:4] != b"PK\x03\x04":
        raise DataError(f"no zip member header at byte {offset}", file=path, offset=member)
    name_bytes, extra_bytes = struct.unpack("<HH", head[26:30])
    name = os.fsdecode(os.pread(file.fileno(), name_bytes, offset + 30))
    if name.isascii() and member.isascii() and plain(name.replace("\\", "/")) != member:
        raise DataError(f"its header has another name: {shown(name)[:200]}", file=path, offset=member)
    return offset + 30 + name_bytes + extra_bytes


def _whole(file: BinaryIO, path: str) -> bytes:
    data = file.read(MAX_IMAGE_BYTES + 1)
    if len(data) > MAX_IMAGE_BYTES:
        raise DataError(f"image has more than {MAX_IMAGE_BYTES} bytes", file=path)
    return data


def _inflate(data: bytes, full: int, path: str, member: str) -> bytes:
    try:
        out = zlib.decompressobj(-15).decompress(data, full + 1)
    except zlib.error as error:
        raise DataError(f"deflate stream is damaged: {error}", file=path, offset=member) from error
    if len(out) != full:
        raise DataError(f"inflates to {len(out)} bytes or more, expected {full}", file=path, offset=member)
    return out
