"""Packs any recognised source into a store: worker processes decode, one process writes in order and can be resumed.

A finished split is kept while its source is unchanged; otherwise it is packed again, and the reason is printed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from imnet.data.files import locked, make_dir, reading, refuse_run
from imnet.data.readers import Blocks, Found, Items
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import FORMAT, SUFFIX, open_store, split_path
from imnet.data.store.decode import CHUNK_IMAGES, decoded
from imnet.data.store.sources import UNKNOWN, Origin, Table, compare, file_crc, told
from imnet.data.store.write import Progress, Writer
from imnet.errors import DataError, IOFailure, UsageError
from imnet.files import exists, is_file

_BAD_SHARE = 1000


@dataclass(frozen=True)
class Options:
    """How to pack. ``rule`` None keeps pictures encoded. ``on_bad`` is stop, or skip: leave out at most ``max_bad``
    pictures of a split (None: one in 1000, but at least one)."""

    rule: ResizeRule | None = None
    on_bad: str = "stop"
    workers: int = 0
    quiet: bool = False
    max_bad: int | None = None

    def allowed_bad(self, count: int) -> int:
        """The number of ``count`` pictures that may be bad."""
        if self.on_bad == "stop":
            return 0
        return max(1, count // _BAD_SHARE) if self.max_bad is None else self.max_bad


def pack(found: Found, target: Path, options: Options, origin: Origin | None = None) -> dict[str, dict]:
    """Write every split of ``found`` into the folder ``target``; returns {split: header}.

    An existing split of the same source and rule is kept; if the source has changed since, it is packed again, with a
    line on stderr; one of another source or rule is refused. Several processes may call this at once: one writes, the
    others wait for it. ``origin`` is saved beside the store for ``unchanged``. Raises DataError with file and member of
    a bad picture, and IOFailure for the disk; finished work stays in ``.part`` files, from which the next run goes on.
    """
    _check_target(found, target)
    make_dir(target)
    if origin is not None:
        _refuse_other_request(origin, target)
    _drop_old_splits(found, target, options)
    jobs = [_Job(found, split, target, options) for split in sorted(found.splits)]
    # In this order train is packed last: a folder counts as a store once its training part exists.
    headers = {job.split: job.run() for job in jobs}
    if origin is not None:
        origin.write(target)
    return dict(sorted(headers.items(), reverse=True))


def _check_target(found: Found, target: Path) -> None:
    """Refuse as target the source itself, which the store would hide, a run's folder, and a folder with another
    program's source.json."""
    if os.path.realpath(target) == os.path.realpath(found.path):
        raise UsageError("got the source as the target: its store would be read in its place", file=target,
                         hint="name another folder")  # fmt: skip
    refuse_run(target)
    path = target / "source.json"
    if exists(path) and Origin.read(target) is None and not any(target.glob(f"*{SUFFIX}")):
        raise IOFailure("a file of another program, which the store's own would replace", file=path,
                        hint="choose another folder")  # fmt: skip


def unchanged(target: Path, origin: Origin) -> bool:
    """Whether ``target`` is a complete store of ``origin``: the same request and the same state of the source."""
    return is_file(split_path(target, "train")) and Origin.read(target) == origin


class _Job:
    """The packing of one split of a source into ``target``."""

    def __init__(self, found: Found, split: str, target: Path, options: Options) -> None:
        self.found, self.split, self.content = found, split, found.splits[split]
        self.options, self.rule = options, options.rule
        self.final, self.listed = split_path(target, split), table_path(target, split)
        # The key identifies the rule and this split of the source as it was listed.
        parts = [FORMAT, self.content.fingerprint(), found.class_names, self.resize]
        self.key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    @property
    def resize(self) -> dict | None:
        """The rule in the form of the header."""
        return None if self.rule is None else asdict(self.rule)

    def run(self) -> dict:
        """Pack the split unless it exists already; returns its header."""
        content, rule = self.content, self.rule
        content.refuse_changed()
        if isinstance(content, Blocks) and rule is not None and rule.shape[:2] != content.shape[:2]:
            height, width, _ = content.shape
            what = f"--size is {rule.size_px}; {self.found.kind} holds pixels of {height} x {width}"
            raise UsageError(what, hint="leave out --size")
        if exists(self.final) and self._is_same(header := open_store(self.final).header):
            if not exists(self.listed):  # packing ended between the store and its list
                Table.of(content, self.found.path).write(self.listed)
            return header
        part = self.final.with_name(self.final.name + ".part")
        with locked(part, wait_s=24 * 3600.0) as descriptor:
            header = self._present()
            if header is None:
                header = self._packed(part, descriptor)
            else:
                part.unlink(missing_ok=True)
        return header

    def _packed(self, part: Path, descriptor: int) -> dict:
        content, options = self.content, self.options
        (self.final.parent / "source.json").unlink(missing_ok=True)
        table = Table.of(content, self.found.path)
        shape = content.shape if isinstance(content, Blocks) else self.rule and self.rule.shape
        writer = Writer(part, descriptor, self.key, shape, options.allowed_bad(len(content)))
        shown = Progress(self.split, len(content), writer.done, options.quiet)
        try:
            with reading(self.found.path):
                labels, table.columns["crc"] = (
                    _write_items(content, writer, options, shown) if isinstance(content, Items) else
                    _write_blocks(content, writer, shown)
                )  # fmt: skip
        except BaseException as error:
            writer.pause()
            if isinstance(error, Exception):
                content.refuse_changed()  # a changed source explains the error better
            raise
        content.refuse_changed()
        header = writer.finish(self.final, labels, self._about())
        self.listed.unlink(missing_ok=True)  # if the disk is full now, no list is better than an outdated one
        table.write(self.listed)
        counted = {"bad pictures left out": header["left_out"]}
        counted["with a camera's note to turn them, which is not followed"] = header.get("turned", 0)
        told_counts = "".join(f", {what}: {n}" for what, n in counted.items() if n)
        shown.close(f"{self.final}: {header['count']:,} images{told_counts}")
        return header

    def _about(self) -> dict:
        found, notes = self.found, self.found.remarks()
        about = {"name": found.name, "split": self.split, "class_names": list(found.class_names)}
        about |= {"resize": self.resize, "source": {"kind": found.kind, "key": self.key}}
        return about | ({"notes": notes} if notes else {})

    def _present(self) -> dict | None:
        """The header of a finished split of the same source and rule; None if there is none or it must be packed again;
        IOFailure if it has another source or rule."""
        if not exists(self.final):
            return None
        header = open_store(self.final).header
        if self._is_same(header):
            return header
        why = self._changed(header)
        if not why and self._too_bad(header):
            why = f"it left out {header['left_out']} bad pictures, which now are too many"
        if why and not self.options.quiet:
            sys.stderr.write(f"{self.final}: packing it anew: {why}\n")
        return None if why else header

    def _is_same(self, header: dict) -> bool:
        return header["source"]["key"] == self.key and not self._too_bad(header)

    def _too_bad(self, header: dict) -> bool:
        return header["left_out"] > self.options.allowed_bad(header["count"] + header["left_out"])

    def _changed(self, header: dict) -> str:
        """How the source of a finished split has changed since; empty if it has not. IOFailure if the split has another
        source or rule."""
        old, hint = Table.read(self.listed), "choose another folder or remove it"
        if old is None:
            what = "already packed, and the list of its source is missing or damaged"
            raise IOFailure(what, file=self.final, hint=hint)
        change, new = compare(old, self.content, self.found.path)
        renamed = header["class_names"] != list(self.found.class_names)
        same_rule = header["resize"] == self.resize
        if same_rule and not change and not renamed:
            new.write(self.listed)
            return ""
        if not same_rule or old.root != new.root:
            what = f"already packed from another source or with another rule ({old.root})"
            raise IOFailure(what, file=self.final, hint=hint)
        return told(change) if change else "the class names changed"


def table_path(target: Path, split: str) -> Path:
    """The path of the table of a split's source images (see ``sources.Table``)."""
    return target / f"{split}.source.npz"


def _refuse_other_request(origin: Origin, target: Path) -> None:
    """Raise IOFailure if ``target`` was packed with other options (such as --hold-out or --image-key)."""
    before = Origin.read(target)
    if before is None:
        return
    was, now = _words_of(before), _words_of(origin)
    other = [f"--{name} was {was.get(name) or 'none'}, is {now.get(name) or 'none'}" for name in {**was, **now}
             if was.get(name) != now.get(name)]  # fmt: skip
    if other:
        raise IOFailure(f"already packed with another rule ({', '.join(other)})", file=target,
                        hint="choose another folder or remove it")  # fmt: skip


def _words_of(origin: Origin) -> dict[str, Any]:
    """The values of the options that a store was packed with, by option; without sizes if pictures stay encoded."""
    asked = {**origin.request, **(origin.request.get("resize") or {})}
    left = ("resize", "on_bad", "max_bad")
    return {key.removesuffix("_px").replace("_", "-"): value for key, value in asked.items() if key not in left}


def _drop_old_splits(found: Found, target: Path, options: Options) -> None:
    """Remove splits that were packed from this source when it had a part that it no longer has."""
    for file in sorted(target.glob(f"*{SUFFIX}")):
        table = table_path(target, file.stem)
        if file.stem in found.splits or (old := Table.read(table)) is None or old.root != os.path.realpath(found.path):
            continue
        if not options.quiet:
            sys.stderr.write(f"{file}: removed, {found.path} has no such part any more\n")
        file.unlink()
        table.unlink()


def _write_blocks(content: Blocks, writer: Writer, shown: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Copy pixel blocks. Those that an interrupted run has written are read again, but only for their labels."""
    labels, at = [], 0
    for images, block_labels in content.stream():
        labels.append(block_labels)
        fresh = images[max(0, writer.done - at) :]
        at += len(images)
        if len(fresh):
            writer.pixels(fresh, len(fresh), [])
        shown.update(writer.done)
    crcs = np.array([file_crc(file) for file in content.files], dtype=np.int64)
    return np.concatenate(labels) if labels else np.empty(0, dtype=np.int64), crcs


def _write_items(
    content: Items, writer: Writer, options: Options, shown: Progress
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    starts = range(writer.done, len(content), CHUNK_IMAGES)
    crcs = np.full(len(content), UNKNOWN, dtype=np.int64)
    for start, chunk in zip(starts, decoded(content, starts, options.rule, options.workers), strict=True):
        taken = min(CHUNK_IMAGES, len(content) - start)
        crcs[start : start + taken] = chunk.crcs
        _judge(content, writer, chunk.bad, options)
        numbers = [number for number, _ in chunk.bad]
        if isinstance(chunk.body, list):
            writer.encoded(chunk.body, taken, numbers, chunk.turned)
        else:
            writer.pixels(chunk.body, taken, numbers, chunk.turned)
        shown.update(writer.done)
    labels = np.delete(content.labels(), writer.bad)
    if not len(labels):
        file, member = content.where(0)
        what = f"all pictures of the part are bad ({len(content)}, this one first): none is left to pack"
        raise DataError(what, file=file, offset=member, hint="mend them")
    return labels, crcs


def _judge(content: Items, writer: Writer, bad: list[tuple[int, str]], options: Options) -> None:
    """Raise DataError if there are more bad pictures than ``options`` allow."""
    if not bad:
        return
    number, why = bad[0]
    file, member = content.where(number)
    allowed, count = options.allowed_bad(len(content)), len(writer.bad) + len(bad)
    if count <= allowed:
        return
    hint = "mend it, or --on-bad-image skip"
    if options.on_bad == "skip":
        why = f"{why}; {count} bad pictures, allowed {allowed}{' (0.1 %)' if options.max_bad is None else ''}"
        hint = f"mend them, or imnet-data pack --max-bad {count}"
    raise DataError(why, file=file, offset=member, hint=hint)
