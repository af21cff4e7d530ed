"""Decodes pictures in worker processes, in order, chunk by chunk.

Workers are forked, so that they share the list of pictures without copying it. The calling process must therefore have
no threads; ``imnet-data pack`` has none.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass

import numpy as np

from imnet.data.readers import Items
from imnet.data.readers.picture import BadPictureError, ResizeRule, check, decode, is_turned
from imnet.data.store.sources import UNKNOWN
from imnet.errors import DataError, IOFailure
from imnet.resources import num_cores

CHUNK_IMAGES = 64
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Chunk:
    """Some pictures: ``body`` has pixels (n, H, W, C) or encoded bytes of the good ones, ``bad`` (number, reason) of
    the others, ``crcs`` the crc32 of every picture's bytes; ``turned`` counts those with an EXIF rotation."""

    body: np.ndarray | list[bytes]
    bad: list[tuple[int, str]]
    crcs: list[int]
    turned: int


_JOB: tuple[Items, ResizeRule | None] | None = None


def decoded(content: Items, starts: range, rule: ResizeRule | None, workers: int) -> Iterator[Chunk]:
    """Decoded chunks in order, from ``workers`` forked processes (0: one per core; 1: this process)."""
    global _JOB
    workers = min(workers or num_cores(), max(1, len(starts)))
    _JOB = (content, rule)
    if workers == 1:
        yield from map(_chunk, starts)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("fork"), initializer=_worker, initargs=(os.getpid(),)
    )
    before = multiprocessing.active_children()
    try:
        waiting: deque[Future[Chunk]] = deque()
        for start in starts:
            waiting.append(pool.submit(_chunk, start))
            if len(waiting) > 3 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        hint = "run again to go on, with fewer --workers"
        raise IOFailure("a decoding process was killed (out of memory?)", hint=hint) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        # If the system lets only some workers start, the pool forgets those, and Python would wait for them at its end.
        for worker in set(multiprocessing.active_children()).difference(before):
            worker.kill()
            worker.join()


def _worker(parent: int) -> None:
    """Set up a worker: it leaves Ctrl-C to its parent, and ends with it, since a worker that outlived a killed pack
    would still hold its lock."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _chunk(start: int) -> Chunk:
    """Read and decode up to CHUNK_IMAGES pictures of the job from number ``start`` on."""
    assert _JOB is not None
    content, rule = _JOB
    good, bad, crcs, turned = [], [], [], 0
    for number in range(start, min(start + CHUNK_IMAGES, len(content))):
        crcs.append(UNKNOWN)
        try:
            data = content.read(number)
            crcs[-1] = zlib.crc32(data)
            if rule is None:
                check(data)
            good.append(data if rule is None else decode(data, rule))
            turned += is_turned(data)
        except (BadPictureError, DataError) as error:
            bad.append((number, error.what if isinstance(error, DataError) else str(error)))
    if rule is None:
        return Chunk(good, bad, crcs, turned)
    return Chunk(np.stack(good) if good else np.empty((0, *rule.shape), dtype=np.uint8), bad, crcs, turned)
