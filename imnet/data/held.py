"""A packed file that is read for days: by place, never mapped.

A mapped file that is cut short, or whose disk or server fails, ends the process (SIGBUS) without a word; here that is
one line.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from imnet.data.files import reading
from imnet.errors import DataError

_RESUME = "put the file back or pack it again; a run goes on from its last checkpoint"


class Held:
    """An open file: where it is replaced or removed, the old one is read on; what is written into it is noticed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self._file = open(path, "rb")  # noqa: SIM115  (it is kept)
        self.descriptor = self._file.fileno()
        self.size, self._modified = self._now()
        self._lock = threading.Lock()

    def _now(self) -> tuple[int, int]:
        with reading(self.path):
            status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def check(self, verify: Callable[[], object]) -> None:
        """DataError where the file holds something else than when it was opened.

        ``verify`` reads it all and raises a DataError where it is not what it was. It is asked when the time of
        modification is another one, because a file may be touched without harm.
        """
        size, modified = self._now()
        if size != self.size:
            what = f"changed while it was read: it has {size} bytes, expected {self.size}"
            raise DataError(what, file=self.path, hint=_RESUME)
        if modified == self._modified:
            return
        with self._lock:
            if modified != self._modified:
                try:
                    verify()
                except DataError as error:
                    what = f"changed while it was read: {error.what}"
                    raise DataError(what, file=self.path, offset=error.offset, hint=_RESUME) from error
                self._modified = modified

    def read(self, at: int, length: int) -> bytes:
        """The bytes there, fewer where the file was no longer when it was opened."""
        out = bytearray(max(0, min(length, self.size - at)))
        self.fill(memoryview(out), [at], len(out))
        return bytes(out)

    def fill(self, buffer: memoryview, places: Iterable[int], length: int) -> None:
        """``length`` bytes from each place, one behind the other in ``buffer``; DataError where the file ends."""
        start = 0
        with reading(self.path):
            for place in places:
                end = start + length
                while start < end:
                    got = os.preadv(self.descriptor, [buffer[start:end]], place)
                    if not got:
                        what = f"changed while it was read: it ends before byte {place}, expected {self.size} bytes"
                        raise DataError(what, file=self.path, hint=_RESUME)
                    start, place = start + got, place + got


class Pixels:
    """uint8 images (N, H, W, C) in a file, one behind the other from byte ``start`` on.

    ``pixels[i]``, ``pixels[a:b]`` and ``pixels[rows]`` are read when they are asked for: arrays in memory.
    """

    dtype, ndim = np.dtype(np.uint8), 4

    def __init__(self, held: Held, start: int, shape: tuple[int, ...], verify: Callable[[], object]) -> None:
        self.shape, self._held, self._start, self._verify = shape, held, start, verify
        self._image_bytes = int(np.prod(shape[1:], dtype=np.int64))

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return len(self) * self._image_bytes

    def __array__(self, dtype: object = None, copy: bool | None = None) -> np.ndarray:
        return self[:]

    def __getitem__(self, key: int | np.integer | slice | list[int] | np.ndarray) -> np.ndarray:
        rows = range(len(self))[key] if isinstance(key, int | np.integer | slice) else key
        if isinstance(rows, int):
            return self._read([rows], 1)[0]
        if isinstance(rows, range) and rows.step == 1:  # neighbours, in one piece
            return self._read([rows.start], len(rows))
        return self._read(np.asarray(rows, dtype=np.int64).tolist(), 1)

    def _read(self, rows: list[int], neighbours: int) -> np.ndarray:
        """``neighbours`` images from each row on, which lies within the file."""
        self._held.check(self._verify)
        out = np.empty((len(rows) * neighbours, *self.shape[1:]), dtype=np.uint8)
        places = (self._start + row * self._image_bytes for row in rows)
        self._held.fill(out.reshape(-1).data, places, neighbours * self._image_bytes)
        return out
