"""Shares decoding between the ranks of one machine that train different networks on the same batches.

Each rank decodes a part of every batch and puts it into shared memory for the others. A crop is a pure function of
(seed, epoch, sample id), so that any rank may make it: if a part is missing, because another rank is late, stopped or
at another batch, a rank makes it itself. No rank depends on another, and results do not depend on the sharing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from imnet.data.order import shard
from imnet.files import exists, is_dir

MEMORY = Path("/dev/shm")
PATIENCE_S = 2.0
"""Time to wait for a part of another rank. After a timeout that rank is not waited for until a part of it is found."""

Crops = tuple[np.ndarray, np.ndarray]
"""Images, uint8 (B, side, side, 3), and the ids that were taken, int64 (B,)."""


class Shelf:
    """The parts of rank ``number`` of ``count`` in the shared ``folder``, and its access to those of the others.

    The last ``kept`` batches stay for ranks that are behind; 8 of 256 crops of 224 pixels are 0.3 GiB per machine.
    """

    def __init__(self, folder: Path, number: int, count: int, kept: int = 8):
        self.folder, self.number, self.count, self.kept = folder, number, count, kept
        self._mine: deque[Path] = deque()
        self._absent: set[int] = set()
        self._full = False
        self.close()

    def close(self) -> None:
        """Remove this rank's files, including those that an earlier process left."""
        for path in self.folder.glob(f"*-{self.number}.*"):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def crops(self, make: Callable[[Tensor], Crops], ids: Tensor, epoch: int) -> tuple[Crops, list[int]]:
        """The crops ``make(ids)`` of a batch, and the rows that other ranks have made."""
        parts = [shard(torch.arange(len(ids)), number, self.count) for number in range(self.count)]
        key = hashlib.blake2b(ids.numpy().tobytes() + b"%d" % epoch, digest_size=12).hexdigest()
        found = {self.number: make(ids[parts[self.number]])}
        self._put(key, found[self.number])
        theirs: list[int] = []
        for number in range(self.number + 1, self.number + self.count):
            number %= self.count
            got = self._get(key, number)
            theirs += [] if got is None else parts[number].tolist()
            found[number] = make(ids[parts[number]]) if got is None else got
        ordered = [found[number] for number in range(self.count)]
        return (np.concatenate([p for p, _ in ordered]), np.concatenate([t for _, t in ordered])), theirs

    def _path(self, key: str, number: int) -> Path:
        return self.folder / f"{key}-{number}.npy"

    def _put(self, key: str, crops: Crops) -> None:
        if self._full:
            return
        path = self._path(key, self.number)
        try:
            self.folder.mkdir(mode=0o700, exist_ok=True)
            with path.with_suffix(".tmp").open("wb") as file:
                for array in crops:
                    np.save(file, array)
            path.with_suffix(".tmp").rename(path)
        except OSError:
            self._full = True  # no more parts are written; the others make them themselves
            with contextlib.suppress(OSError):
                path.with_suffix(".tmp").unlink()
        self._mine.append(path)
        if len(self._mine) > self.kept:
            with contextlib.suppress(OSError):
                self._mine.popleft().unlink()

    def _get(self, key: str, number: int) -> Crops | None:
        path = self._path(key, number)
        end = time.monotonic() + (0 if number in self._absent else PATIENCE_S)
        while not exists(path):
            if time.monotonic() >= end:
                self._absent.add(number)
                return None
            time.sleep(0.001)
        self._absent.discard(number)
        try:
            with path.open("rb") as file:
                return np.load(file), np.load(file)
        except (OSError, ValueError, EOFError):
            return None  # removed in the meantime


def shelf_for(run: Path, number: int, count: int, part: int) -> Shelf | None:
    """The shelf of rank ``number`` of the ``count`` ranks of this machine that train in the folder ``run`` on one
    ``part`` of its batches; None if there is no other rank or no shared memory."""
    if count < 2 or not is_dir(MEMORY):
        return None
    name = hashlib.blake2b(str(run.resolve()).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    folder = MEMORY / f"imnet-{name}-{part}"
    if exists(folder) and folder.stat().st_uid != os.getuid():
        return None  # it belongs to another user, whose pictures cannot be trusted
    return Shelf(folder, number, count)
