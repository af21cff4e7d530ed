"""metrics.jsonl: one JSON object per line, append-only; the source of truth for curves and reports."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imnet.errors import DataError, IOFailure
from imnet.files import finite


class MetricsLog:
    """Append-only writer. The file is first cut to ``resume_at``, its length in bytes when the checkpoint was saved, so
    that no line is written twice. If it is shorter, its last line is removed if that is incomplete."""

    def __init__(self, path: Path, resume_at: int):
        self.path = path
        self.loggers: list[Any] = []
        """Loggers of ``imnet.loggers``, to which every line is passed on."""
        try:
            self._file = path.open("a+b")
            self._file.seek(0)
            self._file.truncate(self._file.read(resume_at).rfind(b"\n") + 1)
            self._file.seek(0, os.SEEK_END)
        except OSError as error:
            raise IOFailure(f"cannot be opened: {error.strerror}", file=path) from error

    def write(self, **values: Any) -> None:
        """Append one line; numbers that are not finite become null."""
        clean = finite(values)
        with self._written():
            self._file.write(json.dumps(clean).encode() + b"\n")
            self._file.flush()
            for logger in self.loggers:
                logger.write(clean)

    def sync(self) -> int:
        """Flush to the disk and return the file's length in bytes. Some file systems report a full disk only here."""
        with self._written():
            self._file.flush()
            os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        for file in (*self.loggers, self._file):
            with self._written():  # closing flushes the buffer, for which a full disk has no room
                file.close()

    @contextlib.contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IOFailure(f"not written: {error.strerror}", file=self.path, hint="make room, then resume") from error


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The object of every complete line; empty if there is no file. For errors see ``parse``."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise IOFailure(f"cannot be read: {error.strerror}", file=path) from error
    return [row for _, row in parse(data, path)[0]]


def parse(data: bytes, path: Path) -> tuple[list[tuple[int, dict[str, Any]]], bytes]:
    """Returns ([(line number from 1, object)] of all lines but blank ones, the last line if a killed run left it
    incomplete, else b""). DataError for any other line that is not an object or whose kind or step has a wrong type."""
    rows: list[tuple[int, dict[str, Any]]] = []
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            if number == len(lines):
                return rows, line
            offset = sum(map(len, lines[: number - 1]))
            raise DataError(f"line {number} is not JSON", file=path, offset=offset, hint="remove it") from None
        if not isinstance(row, dict):
            raise DataError(f"line {number} holds a {type(row).__name__}, must be an object", file=path)
        for name, kind, words in (("kind", str, "text"), ("step", int, "a number without a fraction")):
            if name in row and type(row[name]) is not kind:
                raise DataError(f"line {number}: {name} is {row[name]!r:.40}, must be {words}", file=path)
        rows.append((number, row))
    return rows, b""
