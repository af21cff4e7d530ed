"""A packed file that is read for days: what is written into it meanwhile ends the run with one line.

Pixels are mapped: read row by row, a core makes fewer 64 px batches in a second. What a map loses
while it is read the host kernels' module tells; without that, such a read ends the process (SIGBUS).
"""

from __future__ import annotations

import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from imnet.data.files import reading
from imnet.errors import DataError

_RESUME = "put the file back or pack it again; a run goes on from its last checkpoint"


class Held:
    """An open file: where it is replaced or removed, the old one is read on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.size, self._modified = self._now()
        self._lock = threading.Lock()
        self._map: Callable[[], Any] = lambda: None
        """The map while it is in use."""
        self.verify: Callable[[Held], object] = lambda held: None
        """Reads it all, and raises DataError where it is not what it was."""

    def _now(self) -> tuple[int, int]:
        with reading(self.path):
            status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """DataError where the file holds something else than when it was opened. A file may be touched without harm, so
        that another time of modification alone has it verified."""
        size, modified = self._now()
        if size != self.size:
            what = f"changed while it was read: it has {size} bytes, expected {self.size}"
            raise DataError(what, file=self.path, hint=_RESUME)
        if modified != self._modified:
            with self._lock:
                self._verify(modified)
        if getattr(self._map(), "torn", False):
            what = "changed while it was read, or its disk failed: a part of it was not there"
            raise DataError(what, file=self.path, hint=_RESUME)

    def _verify(self, modified: int) -> None:
        if modified == self._modified:
            return  # another thread has done it
        try:
            self.verify(self)
        except DataError as error:
            what = f"changed while it was read: {error.what}"
            raise DataError(what, file=self.path, offset=error.offset, hint=_RESUME) from error
        self._modified = modified

    def read(self, at: int, length: int) -> bytes:
        """The bytes there; DataError where the file ends before them."""
        with reading(self.path):
            found = bytearray()
            while len(found) < length and (piece := os.pread(self.descriptor, length - len(found), at + len(found))):
                found += piece
        if len(found) < length:
            what = f"changed while it was read: it ends before byte {at + length}, expected {self.size} bytes"
            raise DataError(what, file=self.path, hint=_RESUME)
        return bytes(found)

    def mapped(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
        """uint8 of ``shape`` from byte ``at`` on, read-only. After it was read, ``check`` tells whether it was so."""
        view = self._map()
        if view is None:
            view = _map(self.descriptor, self.size)
            view.held, self._map = self, weakref.ref(view)
        return np.frombuffer(view, dtype=np.uint8, count=int(np.prod(shape, dtype=np.int64)), offset=at).reshape(shape)


def _map(descriptor: int, size: int) -> Any:
    """With a ``held`` to be set, and ``torn``: whether bytes were gone when they were read, and were zeros instead."""
    host = None
    if "torch" in sys.modules:  # the package imports it, which a look at a store need not wait for
        from imnet_kernels.implementations import find_host

        host = find_host()
    mapped = getattr(host, "Mapped", None)
    return mapped(descriptor, size) if mapped else _Map(descriptor, 0, prot=mmap.PROT_READ)


class _Map(mmap.mmap):
    held: Held
    torn = False


def file_of(images: np.ndarray) -> Held | None:
    """The packed file that ``images`` are a view of; None for images in memory."""
    base: object = images
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return getattr(base, "held", None)
