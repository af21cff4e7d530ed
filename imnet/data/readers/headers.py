"""Reads the headers of a set's pictures, to say before any packing which of them packing and training will refuse."""

from __future__ import annotations

import numpy as np

from imnet.data.readers.base import Found
from imnet.data.readers.items import Items
from imnet.data.readers.picture import BadPictureError, opened
from imnet.errors import ImnetError, shown

MOST = 2_000
"""Pictures of a split that are looked at, evenly spaced. Those of ImageNet would take minutes, more on a server."""


def refusals(found: Found) -> list[str]:
    """A line for each split with pictures whose header is refused: 16 bits a channel, no picture at all, too large.

    Only headers are read, so a picture that is damaged further on is not among them.
    """
    return [line for split, items in found.splits.items() if isinstance(items, Items) for line in _of(split, items)]


def _of(split: str, items: Items) -> list[str]:
    rows = np.unique(np.linspace(0, len(items) - 1, min(MOST, len(items))).astype(int)).tolist()
    bad = [(row, why) for row in rows if (why := _why(items, row))]
    if not bad:
        return []
    row, why = bad[0]
    file, member = items.where(row)
    where = shown(file) + (f" ({shown(member)})" if member else "")
    looked = f"{len(rows):,} pictures" + (f" looked at (of {len(items):,})" if len(rows) < len(items) else "")
    return [f"{split}: {len(bad):,} of {looked} will be refused, the first is {where}: {why}"]


def _why(items: Items, row: int) -> str:
    """Why a picture is refused; empty if it is not."""
    try:
        opened(items.read(row)).close()
    except (BadPictureError, ImnetError) as error:
        return error.what if isinstance(error, ImnetError) else str(error)
    return ""
