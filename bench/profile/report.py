"""How profiles are written down: aligned tables, numbers that a person can read, files in a folder that can be used."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from imnet.errors import IOFailure

_PREFIXES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns two spaces apart: the first to the left, the others to the right."""
    lines = [list(head), *(list(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    pairs = [zip(line, widths, strict=True) for line in lines]
    found = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(p)).rstrip() for p in pairs]
    return "\n".join([found[0], "-" * len(found[0]), *found[1:]])


def scaled(value: float | None, unit: str = "") -> str:
    """Three digits with a decimal prefix: 12.3 GB/s; ``-`` where nothing is known."""
    if value is None:
        return "-"
    for size, prefix in _PREFIXES:
        if abs(value) >= size:
            return f"{value / size:{'.3g' if abs(value / size) < 999.5 else '.0f'}} {prefix}{unit}"
    return f"{value:.3g} {unit}".rstrip()


def duration(seconds: float) -> str:
    """Microseconds or milliseconds, three digits."""
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.3g} us"


def plural(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def clipped(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."


def usable_folder(path: Path) -> Path:
    """The folder, made where it was not; IOFailure unless files can be written into it."""
    with refusals(path):
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".probe.{os.getpid()}"
        probe.write_bytes(b"imnet")
        probe.unlink()
    return path


@contextlib.contextmanager
def refusals(path: Path) -> Iterator[None]:
    """What the disk refuses, as IOFailure."""
    try:
        yield
    except OSError as error:
        what = f"not writable: {error.strerror}"
        raise IOFailure(what, file=path, hint="choose another --out") from error


def saved(path: Path, write: Callable[[str], object]) -> Path:
    """``write(name)`` under a temporary name, renamed once it is whole."""
    temporary = path.with_name(f".{os.getpid()}.{path.name}")
    with refusals(path.parent):
        write(str(temporary))
        temporary.rename(path)
    return path
