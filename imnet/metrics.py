"""metrics.jsonl: one JSON object a line, appended; the source of truth for curves and reports."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imnet.errors import IOFailure
from imnet.files import finite


class MetricsLog:
    """Append-only writer. ``resume_at`` cuts the file to the length that a checkpoint knew, so no line comes twice; of
    a shorter one, which somebody has cut, the last line may be torn, and goes."""

    def __init__(self, path: Path, resume_at: int = 0):
        self.path = path
        self.loggers: list[Any] = []
        """Of ``imnet.loggers``, which get every line."""
        try:
            self._file = path.open("a+b")
            self._file.seek(0)
            self._file.truncate(self._file.read(resume_at).rfind(b"\n") + 1)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise IOFailure(f"cannot be opened: {error.strerror}", file=path) from error

    def write(self, **values: Any) -> None:
        """One line; a number that is not finite becomes null."""
        clean = finite(values)
        with self._written():
            self._file.write(json.dumps(clean).encode() + b"\n")
            self._file.flush()
            for logger in self.loggers:
                logger.write(clean)

    def sync(self) -> int:
        """Flush to the disk, where some file systems find only then that there is no room; the length in bytes."""
        with self._written():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        for file in (*self.loggers, self._file):
            with self._written():  # what a full disk has left in a buffer
                file.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IOFailure(f"not written: {error.strerror}", file=self.path, hint="make room, then resume") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every whole line; a torn last one (a run that was killed) is left out, and so are blank ones."""
    rows = []
    for line in filter(bytes.strip, path.read_bytes().splitlines()):
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows
