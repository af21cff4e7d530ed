"""Writes files that are either complete or absent, and that do not replace files of others."""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import glob
import json
import math
import mmap
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from imnet.errors import IOFailure, UsageError, quoted

WEIGHTS = (".safetensors", ".onnx", ".pt2", ".pt", ".pth")
"""Suffixes of files of networks, which mimetypes does not know."""


def _status(path: Path) -> os.stat_result | None:
    """What lies at ``path`` or at the end of its links; None if nothing does. Any other OSError is raised.

    Since Python 3.14 pathlib answers False also for a path that cannot be looked at: for lack of permission, or because
    a network disk does not answer. A run or a list of labels there would be taken for absent.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a NUL in the name
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def exists(path: Path) -> bool:
    """Whether something lies at ``path``; raises OSError if that cannot be told."""
    return _status(path) is not None


def is_dir(path: Path) -> bool:
    """Whether ``path`` is or leads to a folder; raises OSError if that cannot be told."""
    found = _status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: Path) -> bool:
    """Whether ``path`` is or leads to a regular file; raises OSError if that cannot be told."""
    found = _status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def check_kind(out: Path, suffix: str, told: str) -> None:
    """UsageError, with what is written (``told``), if ``out`` is the name of a file of another kind than ``suffix``
    (report.pdf): its reader would take it for a damaged one. A name of no known kind is accepted, and for what is not a
    page also one of text or of plain bytes (.bin)."""
    import mimetypes  # here, and tempfile below, because every command imports this module before it can answer --help

    def kind(end: str) -> tuple[str | None, str | None]:
        return (end, None) if end in WEIGHTS else mimetypes.guess_type(f"x{end}")

    got = kind(out.suffix.lower())
    plain = suffix != ".html" and (got[0] or "").startswith(("text/", "application/octet-stream"))
    if got not in (kind(suffix), (None, None)) and not plain:
        raise UsageError(f"got --out {out}; {told}", hint=f"--out {quoted(out.with_suffix(suffix))}")


def temporary_of(path: Path) -> Path:
    """The temporary name under which this process writes ``path``. Leftovers of killed processes are removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            with contextlib.suppress(OSError):
                shutil.rmtree(left) if is_dir(left) else left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def lines(text: str) -> list[str]:
    """The lines of a text file. ``str.splitlines`` would also end a line at characters that names may contain, such as
    U+0085 (an ellipsis of Windows that was read as Latin-1) and U+2028, and shift all names behind it."""
    rows = re.split("\r\n|\n|\r", text)
    return rows if rows[-1] else rows[:-1]


def check_output(path: Path, mark: bytes, option: str = "--out") -> Path:
    """Return where to write the file that ``option`` names: ``path`` with links resolved, so that a link is kept.

    Raises UsageError for a folder, and for a file without ``mark``, which all of imnet's files of that kind contain:
    it is the user's. Raises IOFailure for a read-only file. An empty file, a device or a pipe may be written.
    """
    if is_dir(path):
        raise UsageError(f"got a folder for {option}", file=path, hint="name a file in it")
    if _is_stream(path):
        return path
    real = Path(os.path.realpath(path))
    if not is_file(real) or not real.stat().st_size:
        return real
    # Whoever made it read-only wants to keep it. A rename would ignore that, and root may write anything.
    if not (real.stat().st_mode & 0o222 and os.access(real, os.W_OK)):
        raise IOFailure("not written: the file is read-only", file=path, hint=f"choose another {option}")
    if not holds(real, mark):
        what = f"got a file for {option} that imnet has not written: it would be lost"
        raise UsageError(what, file=path, hint="choose another name, or remove it first")
    return real


def check_folder(path: Path) -> None:
    """Raise OSError if the folder ``path`` can neither be written nor created. Leaves nothing behind: it tries an
    unnamed file in the nearest existing folder."""
    there = next(p for p in (path, *path.parents) if _is_there(p))
    if not is_dir(there):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
    if max(len(os.fsencode(part)) for part in (".", *path.parts)) > os.pathconf(there, "PC_NAME_MAX"):
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    import tempfile

    with tempfile.TemporaryFile(dir=there) as probe:
        probe.write(b"imnet")


def _is_there(path: Path) -> bool:
    """Like os.path.lexists, but raises OSError for a path that cannot be looked at, where lexists returns False."""
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def listed(folder: Path, pattern: str) -> list[Path]:
    """The paths in a folder whose names match ``pattern``, sorted; empty if there is no such folder.

    Raises IOFailure for a folder that this user may not read. glob would find it empty: a run would seem to have no
    checkpoint, or an ensemble to lack a band.
    """
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        hint = "check its permissions" if error.errno in (errno.EACCES, errno.EPERM) else "choose another path"
        raise IOFailure(f"cannot be listed: {error.strerror}", file=folder, hint=hint) from error
    return [folder / name for name in sorted(fnmatch.filter(names, pattern))]


@contextlib.contextmanager
def in_utf8(path: Path) -> Iterator[Path]:
    """Yield a name of the file or folder that libraries in Rust and C++ can open: on Linux any bytes can be a name, but
    these libraries only open UTF-8."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        number = os.open(path, os.O_RDONLY)
        try:
            yield Path(f"/dev/fd/{number}")
        finally:
            os.close(number)
    else:
        yield path


def _is_stream(path: Path) -> bool:
    """Whether ``path`` is a device, a pipe, or like /dev/stdout, which may lead to a file that others hold open."""
    inside = os.path.realpath(path.parent)
    named = inside == "/dev" or inside.startswith("/proc/")
    return exists(path) and (named or not (is_file(path) or is_dir(path)))


def holds(path: Path, mark: bytes) -> bool:
    """Whether a file contains ``mark``; IOFailure if the file is empty or cannot be read."""
    try:
        with path.open("rb") as f, mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return content.find(mark) >= 0
    except (OSError, ValueError) as error:
        raise IOFailure(f"cannot be read: {error}", file=path, hint="choose another file") from error


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name, fsync and rename. Links are kept, devices and pipes are written to instead of
    replaced, and a replaced file keeps its mode. On failure raises IOFailure and leaves the old file."""
    data = content.encode() if isinstance(content, str) else content
    real = Path(os.path.realpath(path))
    temporary = real
    try:
        if _is_stream(path):
            # If stdout is redirected to a file, opening /dev/stdout again would overwrite that file from its beginning.
            sys.stdout.flush()
            own = next((fd for fd in (1, 2) if os.path.samestat(os.fstat(fd), path.stat())), None)
            # A pipe that nobody reads is refused so (ENXIO); without O_NONBLOCK this would wait for a reader.
            number = os.dup(own) if own is not None else os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            if own is None:
                os.set_blocking(number, True)
            with open(number, "wb") as f:
                f.write(data)
            return
        if is_dir(real) or real.is_symlink():  # realpath leaves a link only if links form a loop
            number = errno.EISDIR if is_dir(real) else errno.ELOOP
            raise OSError(number, os.strerror(number))
        temporary = temporary_of(real)
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        if is_file(real):
            shutil.copymode(real, temporary)
        temporary.rename(real)
    except OSError as error:
        if temporary != real:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        raise IOFailure(f"not written: {error.strerror}", file=path, hint="check space and permissions") from error


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(finite(value), indent=1) + "\n")


def finite(value: Any) -> Any:
    """``value`` with None for every float in it that is not finite: JSON has no NaN, and strict readers refuse it."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
