"""Any recognised source -> packed store: decoded in worker processes, written in order, resumable, published whole.

What is already there is kept while the source is what it was; where it changed, it is packed anew, and said why.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from imnet.data.files import io_errors, locked, make_dir
from imnet.data.readers import Blocks, Found, Items
from imnet.data.readers.picture import ResizeRule
from imnet.data.store import FORMAT, SUFFIX, open_store, split_path
from imnet.data.store.decode import CHUNK_IMAGES, chunks
from imnet.data.store.sources import UNKNOWN, Origin, Table, compare, file_crc, told
from imnet.data.store.write import Progress, Writer
from imnet.errors import DataError, IOFailure, UsageError

_BAD_SHARE = 1000


@dataclass(frozen=True)
class Options:
    """How to pack. ``rule`` None keeps pictures as they are encoded. ``on_bad``: stop | skip, at most ``max_bad`` of a
    split (None: one in 1000, and one at least)."""

    rule: ResizeRule | None = None
    on_bad: str = "stop"
    workers: int = 0
    quiet: bool = False
    max_bad: int | None = None

    def allowed_bad(self, count: int) -> int:
        """How many of ``count`` pictures may be bad."""
        if self.on_bad == "stop":
            return 0
        return max(1, count // _BAD_SHARE) if self.max_bad is None else self.max_bad


def pack(found: Found, target: Path, options: Options, origin: Origin | None = None) -> dict[str, dict]:
    """Write every split of ``found`` into the folder ``target``; {split: header}.

    A split that is already there from the same source and rule is kept; where the source has changed since, it is
    packed anew, which stderr says; one of another source or rule is refused. Several processes may do this at once: one
    writes, the others wait and find it done. ``origin`` is kept beside the store for ``unchanged``. Errors: DataError
    with file and member of a bad picture; IOFailure for the disk; what was done stays in ``.part`` files and is taken
    up by the next run.
    """
    _check_target(found, target)
    make_dir(target)
    if origin is not None:
        _refuse_other_request(origin, target)
    _drop_old_splits(found, target, options)
    splits = sorted(found.splits, reverse=True)
    # All of them now: what changes at the source while the first part is packed must not pass for the second's state.
    keys = {split: _key(found, split, options.rule) for split in splits}
    headers = {split: _pack_split(found, split, keys[split], target, options) for split in splits}
    if origin is not None:
        origin.write(target)
    return headers


def _check_target(found: Found, target: Path) -> None:
    """Refuse a folder that is the source, which the store would hide, and one whose source.json is no store's."""
    if os.path.realpath(target) == os.path.realpath(found.path):
        raise UsageError("got the source as the target: its store would be read in its place", file=target,
                         hint="name another folder")  # fmt: skip
    path = target / "source.json"
    if path.exists() and Origin.read(target) is None and not any(target.glob(f"*{SUFFIX}")):
        raise IOFailure("a file of another program, which the store's own would replace", file=path,
                        hint="choose another folder")  # fmt: skip


def unchanged(target: Path, origin: Origin) -> bool:
    """Whether ``target`` holds all that ``origin`` asks for, of a source in the state it has now."""
    return split_path(target, "train").is_file() and Origin.read(target) == origin


def _pack_split(found: Found, split: str, key: str, target: Path, options: Options) -> dict:
    content, final, listed = found.splits[split], split_path(target, split), table_path(target, split)
    _check_rule(content, options.rule, found)
    part = final.with_name(final.name + ".part")
    if final.exists() and _is_same(header := open_store(final).header, key, options):
        if not listed.exists():  # packing ended between the store and its list
            Table.of(content, found.path).write(listed)
        return header
    with locked(part, wait_s=24 * 3600.0) as descriptor:
        header = _present(final, key, found, content, options)
        if header is not None:
            part.unlink(missing_ok=True)
            return header
        (target / "source.json").unlink(missing_ok=True)
        table = Table.of(content, found.path)
        shape = content.shape if isinstance(content, Blocks) else options.rule and options.rule.shape
        writer = Writer(part, descriptor, key, shape)
        shown = Progress(split, len(content), writer.done, options.quiet)
        try:
            if isinstance(content, Items):
                labels, table.columns["crc"] = _write_items(content, writer, options, shown)
            else:
                labels, table.columns["crc"] = _write_blocks(content, writer, shown)
        except BaseException:
            writer.pause()
            raise
        _check_still(found, split, key, options.rule)
        header = writer.finish(final, labels, _about(found, split, options.rule, key))
        listed.unlink(missing_ok=True)  # of another state: none at all is better, should the disk be full now
        table.write(listed)
    counted = {"bad pictures left out": header["left_out"]}
    counted["with a camera's note to turn them, which is not followed"] = header.get("turned", 0)
    shown.close(f"{final}: {header['count']:,} images" + "".join(f", {what}: {n}" for what, n in counted.items() if n))
    return header


def table_path(target: Path, split: str) -> Path:
    """Where the list of what a split was packed from lies."""
    return target / f"{split}.source.npz"


def _check_rule(content: Items | Blocks, rule: ResizeRule | None, found: Found) -> None:
    if isinstance(content, Blocks) and rule is not None and rule.shape[:2] != content.shape[:2]:
        height, width, _ = content.shape
        raise UsageError(f"--size is {rule.size_px}; {found.kind} holds pixels of {height} x {width}",
                         hint="leave out --size")  # fmt: skip


def _check_still(found: Found, split: str, key: str, rule: ResizeRule | None) -> None:
    """DataError where an archive or a file of pixels is another one than at the beginning: the split is of both then,
    and places in an archive may be those of other pictures."""
    if _key(found, split, rule) != key:
        what = f"changed while its {split} part was packed"
        raise DataError(what, file=found.path, hint="run again once nothing writes there")


def _key(found: Found, split: str, rule: ResizeRule | None) -> str:
    with io_errors(found.path, "read"):
        content = found.splits[split].fingerprint()
    parts = [FORMAT, content, found.class_names, None if rule is None else asdict(rule)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _about(found: Found, split: str, rule: ResizeRule | None, key: str) -> dict:
    about = {
        "name": found.name,
        "split": split,
        "class_names": list(found.class_names),
        "resize": None if rule is None else asdict(rule),
        "source": {"kind": found.kind, "key": key},
    }
    return about | ({"notes": found.remarks()} if found.remarks() else {})


def _present(final: Path, key: str, found: Found, content: Items | Blocks, options: Options) -> dict | None:
    """The header of a finished split of the same source and rule; None where it is not there or must be packed anew;
    IOFailure when it is of another source or rule."""
    if not final.exists():
        return None
    header = open_store(final).header
    if _is_same(header, key, options):
        return header
    why = _changed(header, final, found, content, options)
    if not why and _too_bad(header, options):
        why = f"it left out {header['left_out']} bad pictures, which now are too many"
    if why and not options.quiet:
        sys.stderr.write(f"{final}: packing it anew: {why}\n")
    return None if why else header


def _is_same(header: dict, key: str, options: Options) -> bool:
    return header["source"]["key"] == key and not _too_bad(header, options)


def _too_bad(header: dict, options: Options) -> bool:
    return header["left_out"] > options.allowed_bad(header["count"] + header["left_out"])


def _changed(header: dict, final: Path, found: Found, content: Items | Blocks, options: Options) -> str:
    """How the source of a finished split changed since; empty where it did not; IOFailure when it is another one."""
    path = table_path(final.parent, header["split"])
    old = Table.read(path)
    if old is None:
        raise IOFailure("already packed, and no list of its source lies beside it", file=final,
                        hint="choose another folder or remove it")  # fmt: skip
    change, new = compare(old, content, found.path)
    renamed = header["class_names"] != list(found.class_names)
    same_rule = header["resize"] == (None if options.rule is None else asdict(options.rule))
    if same_rule and not change and not renamed:
        new.write(path)
        return ""
    if not same_rule or old.root != new.root:
        what = f"already packed from another source or with another rule ({old.root})"
        raise IOFailure(what, file=final, hint="choose another folder or remove it")
    return told(change) if change else "the class names changed"


def _refuse_other_request(origin: Origin, target: Path) -> None:
    """A store of the same source made in another way (--hold-out, --image-key) is another store."""
    before = Origin.read(target)
    if before is None:
        return
    other = [f"{key} {before.request.get(key)}, now {value}" for key, value in origin.request.items()
             if before.request.get(key) != value and key not in ("on_bad", "max_bad")]  # fmt: skip
    if other:
        raise IOFailure(f"already packed with another rule ({'; '.join(other)})", file=target,
                        hint="choose another folder or remove it")  # fmt: skip


def _drop_old_splits(found: Found, target: Path, options: Options) -> None:
    """Remove the splits that were packed from this source when it still had such a part."""
    for file in sorted(target.glob(f"*{SUFFIX}")):
        table = table_path(target, file.stem)
        if file.stem in found.splits or (old := Table.read(table)) is None or old.root != os.path.realpath(found.path):
            continue
        if not options.quiet:
            sys.stderr.write(f"{file}: removed, {found.path} has no such part any more\n")
        file.unlink()
        table.unlink()


def _write_blocks(content: Blocks, writer: Writer, shown: Progress) -> tuple[np.ndarray, np.ndarray]:
    """Copy pixel blocks; those that an interrupted run wrote are read again only for their labels."""
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
    for start, chunk in zip(starts, chunks(content, starts, options.rule, options.workers), strict=True):
        taken = min(CHUNK_IMAGES, len(content) - start)
        crcs[start : start + taken] = chunk.crcs
        _judge(content, writer, chunk.bad, options)
        numbers = [number for number, _ in chunk.bad]
        if isinstance(chunk.body, list):
            writer.encoded(chunk.body, taken, numbers, chunk.turned)
        else:
            writer.pixels(chunk.body, taken, numbers, chunk.turned)
        shown.update(writer.done)
    return np.delete(content.labels(), writer.bad), crcs


def _judge(content: Items, writer: Writer, bad: list[tuple[int, str]], options: Options) -> None:
    """Stop at a bad picture, or once more are bad than may be."""
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
