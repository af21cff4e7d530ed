"""Any recognised source -> packed store: decoded in worker processes, written in order, resumable, published whole.

Run it in a process without threads of its own (``imnet-data pack`` is one): workers are forked, so that the list of
pictures is shared and not copied.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imnet.data.files import locked, make_dir
from imnet.data.readers import Blocks, Found, Items
from imnet.data.readers.picture import BadPictureError, ResizeRule, check, decode
from imnet.data.store import FORMAT, open_store, split_path
from imnet.data.store.write import Writer
from imnet.errors import DataError, IOFailure, UsageError

_CHUNK_IMAGES = 64
_BAD_SHARE = 1000
_PR_SET_PDEATHSIG = 1
_TTY_S, _PLAIN_S = 0.2, 10.0


@dataclass(frozen=True)
class Options:
    """How to pack. ``rule`` None keeps pictures as they are encoded. ``on_bad``: stop | skip (at most 0.1 %)."""

    rule: ResizeRule | None = None
    on_bad: str = "stop"
    workers: int = 0
    quiet: bool = False


def pack(found: Found, target: Path, options: Options) -> dict[str, dict]:
    """Write every split of ``found`` into the folder ``target``; {split: header}.

    A split that is already there from the same source and rule is kept, from another one is refused. Several processes
    may do this at once: one writes, the others wait and find it done. Errors: DataError with file and member of a bad
    picture; IOFailure for the disk; what was done stays in ``.part`` files and is taken up by the next run.
    """
    make_dir(target)
    return {split: _pack_split(found, split, target, options) for split in sorted(found.splits, reverse=True)}


def _pack_split(found: Found, split: str, target: Path, options: Options) -> dict:
    content, final = found.splits[split], split_path(target, split)
    _check_rule(content, options.rule, found)
    key = _key(found, content, options.rule)
    part = final.with_name(final.name + ".part")
    header = _present(final, key)
    if header is not None:
        return header
    with locked(part, wait_s=24 * 3600.0) as descriptor:
        header = _present(final, key)
        if header is not None:
            part.unlink(missing_ok=True)
            return header
        shape = content.shape if isinstance(content, Blocks) else _shape(options.rule)
        writer = Writer(part, descriptor, key, shape)
        shown = Progress(split, len(content), writer.done, options.quiet)
        try:
            if isinstance(content, Items):
                labels = _write_items(content, writer, options, shown)
            else:
                labels = _write_blocks(content, writer, shown)
        except BaseException:
            writer.pause()
            raise
        header = writer.finish(final, labels, _about(found, split, options.rule, key))
    skipped = f", {header['left_out']} bad pictures left out" if header["left_out"] else ""
    shown.close(f"{final}: {header['count']:,} images{skipped}")
    return header


def _check_rule(content: Items | Blocks, rule: ResizeRule | None, found: Found) -> None:
    if isinstance(content, Blocks) and rule is not None and (rule.size_px, rule.size_px) != content.shape[:2]:
        height, width, _ = content.shape
        raise UsageError(f"--size is {rule.size_px}; {found.kind} holds pixels of {height} x {width}",
                         hint="leave out --size")  # fmt: skip


def _shape(rule: ResizeRule | None) -> tuple[int, int, int] | None:
    return None if rule is None else (rule.size_px, rule.size_px, rule.channels)


def _key(found: Found, content: Items | Blocks, rule: ResizeRule | None) -> str:
    parts = [FORMAT, content.fingerprint(), found.class_names, None if rule is None else asdict(rule)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _about(found: Found, split: str, rule: ResizeRule | None, key: str) -> dict:
    return {
        "name": found.name,
        "split": split,
        "class_names": list(found.class_names),
        "resize": None if rule is None else asdict(rule),
        "source": {"kind": found.kind, "key": key},
    }


def _present(final: Path, key: str) -> dict | None:
    """The header of a finished split of the same source and rule; IOFailure when it is of another."""
    if not final.exists():
        return None
    header = open_store(final).header
    if header["source"]["key"] != key:
        raise IOFailure("already packed from another source or with another rule", file=final,
                        hint="choose another folder or remove it")  # fmt: skip
    return header


def _write_blocks(content: Blocks, writer: Writer, shown: Progress) -> np.ndarray:
    """Copy pixel blocks; those that an interrupted run wrote are read again only for their labels."""
    labels, at = [], 0
    for images, block_labels in content.stream():
        labels.append(block_labels)
        fresh = images[max(0, writer.done - at) :]
        at += len(images)
        if len(fresh):
            writer.pixels(fresh, len(fresh), [])
        shown.update(writer.done)
    return np.concatenate(labels) if labels else np.empty(0, dtype=np.int64)


def _write_items(content: Items, writer: Writer, options: Options, shown: Progress) -> np.ndarray:
    starts = range(writer.done, len(content), _CHUNK_IMAGES)
    for start, (body, bad) in zip(starts, _results(content, starts, options), strict=True):
        taken = min(_CHUNK_IMAGES, len(content) - start)
        _judge(content, writer, bad, options)
        numbers = [number for number, _ in bad]
        if isinstance(body, list):
            writer.encoded(body, taken, numbers)
        else:
            writer.pixels(body, taken, numbers)
        shown.update(writer.done)
    return np.delete(content.labels(), writer.bad)


def _judge(content: Items, writer: Writer, bad: list[tuple[int, str]], options: Options) -> None:
    """Stop at a bad picture, or once more than 0.1 % of all are bad."""
    if not bad:
        return
    number, why = bad[0]
    file, member = content.where(number)
    allowed = len(content) // _BAD_SHARE if options.on_bad == "skip" else 0
    if len(writer.bad) + len(bad) > allowed:
        count = len(writer.bad) + len(bad)
        more = f"; {count} bad pictures, allowed {allowed} (0.1 %)" if options.on_bad == "skip" else ""
        hint = None if options.on_bad == "skip" else "mend it, or --on-bad-image skip"
        raise DataError(why + more, file=file, offset=member, hint=hint)


Result = tuple["np.ndarray | list[bytes]", list[tuple[int, str]]]
_JOB: tuple[Items, ResizeRule | None] | None = None


def _results(content: Items, starts: range, options: Options) -> Iterator[Result]:
    """Decoded chunks in order, from ``workers`` forked processes (0: one per core; 1: this process)."""
    global _JOB
    workers = min(options.workers or os.cpu_count() or 1, max(1, len(starts)))
    _JOB = (content, options.rule)
    if workers == 1:
        yield from map(_chunk, starts)
        return
    pool = ProcessPoolExecutor(
        workers, mp_context=multiprocessing.get_context("fork"), initializer=_worker, initargs=(os.getpid(),)
    )
    try:
        waiting: deque[Future[Result]] = deque()
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


def _worker(parent: int) -> None:
    """Die with the parent (a killed pack must leave no process that holds its lock) and leave Ctrl-C to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _chunk(start: int) -> Result:
    """The pictures start.. of the job: pixels (n, H, W, C) or encoded bytes, and (number, why) of the bad ones."""
    assert _JOB is not None
    content, rule = _JOB
    good, bad = [], []
    for number in range(start, min(start + _CHUNK_IMAGES, len(content))):
        try:
            good.append(_one(content, number, rule))
        except (BadPictureError, DataError) as error:
            bad.append((number, error.what if isinstance(error, DataError) else str(error)))
    if rule is None:
        return good, bad
    shape = _shape(rule)
    return (np.stack(good) if good else np.empty((0, *(shape or ())), dtype=np.uint8)), bad


def _one(content: Items, number: int, rule: ResizeRule | None):
    data = content.read(number)
    if rule is None:
        check(data)
        return data
    return decode(data, rule)


class Progress:
    """How far a pack is, on stderr: one line rewritten on a terminal, a plain line now and then elsewhere.

    ``update(done)`` as work goes on; rates count only what this run did.
    """

    def __init__(self, what: str, total: int, done: int = 0, quiet: bool = False) -> None:
        self._what, self._total, self._first, self._quiet = what, total, done, quiet
        self._tty = sys.stderr.isatty()
        self._began = self._shown = time.monotonic()

    def update(self, done: int) -> None:
        now = time.monotonic()
        if self._quiet or now - self._shown < (_TTY_S if self._tty else _PLAIN_S):
            return
        self._shown = now
        rate = (done - self._first) / max(now - self._began, 1e-9)
        left = (self._total - done) / rate if rate > 0 else float("inf")
        line = f"{self._what}: {done:,} of {self._total:,} images, {rate:,.0f} images/s, {left:,.0f} s left"
        sys.stderr.write(f"\r\x1b[K{line}" if self._tty else line + "\n")
        sys.stderr.flush()

    def close(self, line: str) -> None:
        """The last line, always shown unless quiet."""
        if not self._quiet:
            sys.stderr.write(f"\r\x1b[K{line}\n" if self._tty else line + "\n")
