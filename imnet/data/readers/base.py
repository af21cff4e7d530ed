"""What a reader finds at a path: splits of encoded pictures (Items) or of pixel blocks (Blocks), and class names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from imnet.data.readers.items import Items

# images uint8 (n, H, W, C) and labels int64 (n,)
Block = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Blocks:
    """A split that already is pixels: ``count`` images of ``shape`` (H, W, C), read block by block in order."""

    count: int
    shape: tuple[int, int, int]
    stream: Callable[[], Iterator[Block]]
    key: str

    def __len__(self) -> int:
        return self.count

    def fingerprint(self) -> str:
        return self.key


@dataclass
class Found:
    """A recognised source: its kind in words, class names in label order, and its splits (train, test)."""

    name: str
    kind: str
    path: Path
    class_names: tuple[str, ...]
    splits: dict[str, Items | Blocks]
    notes: list[str] = field(default_factory=list)

    def describe(self) -> list[str]:
        """Lines for ``imnet-data inspect``."""
        lines = [f"{self.path}: {self.kind}", f"classes: {len(self.class_names)} ({_some(self.class_names)})"]
        for split, content in self.splits.items():
            what = "pictures" if isinstance(content, Items) else "images of {}x{}x{}".format(*content.shape)
            lines.append(f"{split}: {len(content)} {what}")
        return lines + [f"note: {note}" for note in self.notes]


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def stat_key(paths: list[Path]) -> str:
    """A key that changes when one of the files does: names, sizes, times."""
    return "|".join(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}" for p in paths)
