"""Finds images that are both trained on and evaluated on, which make the measured accuracy too high.

Only exact copies are found, of the encoded bytes or else of the pixels; a picture in another size or quality is not.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from imnet.data.base import AnySplit, DataSet, Split, chunks

MOST_BYTES = 2 << 30
"""The most that is read to find them. Larger sets are not searched, because starting a run must not take minutes."""
NUM_SAMPLED = 64
"""Bytes of each image that are compared first."""


def counted(found: DataSet) -> DataSet:
    """The data set with its ``copies`` counted, and a note for the user about every part that has copies or is too
    large to search."""
    parts = {"test": found.test, "val": found.val, "final": found.final}
    copies: dict[str, int | None] = {}
    notes = list(found.notes)
    for name, part in parts.items():
        rows = [] if part is None else pairs(found.train, part)
        if rows is None:
            copies[name] = None
            much = f"more than {MOST_BYTES / 2**30:g} GiB would have to be read"
            notes.append(f"not looked for: {name} images that are trained on as well ({much})")
            continue
        if part is None or not rows:
            continue
        copies[name] = len(rows)
        note = f"trained on as well, to the byte: {len(rows):,} of {len(part):,} {name} images"
        others = sum(int(found.train.labels[i]) != int(part.labels[j]) for i, j in rows)
        notes.append(note + (f", {others:,} of them of another class" if others else ""))
    return replace(found, copies=copies, notes=tuple(notes)) if copies else found


def pairs(train: AnySplit, judged: AnySplit) -> list[tuple[int, int]] | None:
    """(row of ``train``, row of ``judged``) for every image of ``judged`` that is in ``train`` too; its last row if it
    is there several times. None if finding them would mean reading more than ``MOST_BYTES``."""
    if isinstance(train, Split) and train.num_bytes + judged.num_bytes > MOST_BYTES:
        return None
    ours, theirs = _likely(train), _likely(judged)
    rows, asked = (np.flatnonzero(np.isin(*both)) for both in ((ours, theirs), (theirs, ours)))
    if _num_bytes(train, rows) + _num_bytes(judged, asked) > MOST_BYTES:
        return None
    where = {_digest(train, int(i)): int(i) for i in rows}
    found = ((where.get(_digest(judged, j)), j) for j in map(int, asked))
    return [(i, j) for i, j in found if i is not None]


def _likely(split: AnySplit) -> np.ndarray:
    """Integers (N,) that are equal for equal images and rarely for others: a hash of some of an image's bytes, or the
    number of bytes of an encoded picture."""
    if not isinstance(split, Split):
        return split.sizes
    size = int(np.prod(split.image_shape))
    at = np.random.default_rng(0).integers(0, max(1, size), NUM_SAMPLED)
    # The bytes are taken as uint64, multiplied by random odd factors and added up modulo 2^64.
    factors = np.random.default_rng(1).integers(0, 2**63, NUM_SAMPLED // 8, dtype=np.uint64) * 2 + 1
    taken = (np.take(piece.reshape(len(piece), size), at, axis=1) for piece in chunks(split.images))
    found = [(some.view(np.uint64) * factors).sum(1) for some in taken]
    return np.concatenate(found) if found else np.empty(0, np.uint64)


def _num_bytes(split: AnySplit, rows: np.ndarray) -> int:
    if isinstance(split, Split):
        return len(rows) * int(np.prod(split.image_shape))
    return int(split.sizes[rows].sum(dtype=np.int64))


def _digest(split: AnySplit, i: int) -> bytes:
    content = split.images[i].tobytes() if isinstance(split, Split) else split.read(i)
    return hashlib.blake2b(content, digest_size=16).digest()
