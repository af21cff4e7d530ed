"""A packed file that a run reads for days; if anything writes into it meanwhile, the run ends with a one-line error.

Pixels are memory-mapped, since reading row by row makes fewer 64 px batches per second and core. If the file is
truncated while the map is read, the host kernels' module reports it; without that module SIGBUS ends the process.
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
    """An open file. If it is replaced or removed, reading goes on from the old one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with reading(path):
            self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.size, self._modified = self._now()
        self._lock = threading.Lock()
        self._map: Callable[[], Any] = lambda: None
        """A weak reference to the map, so that it is unmapped when no array uses it."""
        self.verify: Callable[[Held], object] = lambda held: None
        """Reads the whole file and raises DataError if its contents have changed."""

    def _now(self) -> tuple[int, int]:
        with reading(self.path):
            status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns

    def check(self) -> None:
        """Raise DataError if the contents have changed since the file was opened. A new mtime alone is harmless (the
        file may have been touched), but has the whole file verified."""
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
            return  # another thread has verified it
        try:
            self.verify(self)
        except DataError as error:
            what = f"changed while it was read: {error.what}"
            raise DataError(what, file=self.path, offset=error.offset, hint=_RESUME) from error
        self._modified = modified

    def read(self, at: int, length: int) -> bytes:
        """``length`` bytes from offset ``at``; DataError if the file ends before that."""
        with reading(self.path):
            found = bytearray()
            while len(found) < length and (piece := os.pread(self.descriptor, length - len(found), at + len(found))):
                found += piece
        if len(found) < length:
            what = f"changed while it was read: it ends before byte {at + length}, expected {self.size} bytes"
            raise DataError(what, file=self.path, hint=_RESUME)
        return bytes(found)

    def mapped(self, at: int, shape: tuple[int, ...]) -> np.ndarray:
        """A read-only uint8 view of ``shape`` at byte ``at``. Call ``check`` after reading it, to know that the bytes
        were there."""
        view = self._map()
        if view is None:
            view = _map(self.descriptor, self.size)
            view.held, self._map = self, weakref.ref(view)
        return np.frombuffer(view, dtype=np.uint8, count=int(np.prod(shape, dtype=np.int64)), offset=at).reshape(shape)


def _map(descriptor: int, size: int) -> Any:
    """A read-only map of the file. The caller sets its ``held``; ``torn`` becomes true if bytes were missing when they
    were read, in which case zeros were read instead."""
    host = None
    if "torch" in sys.modules:  # imnet_kernels imports torch, too slow for a command that only looks at a store
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
