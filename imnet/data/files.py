"""Errors of the disk, folders, locks and atomic names, shared by the readers, the downloader and the packed store."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from imnet.errors import DataError, IOFailure, UsageError
from imnet.locks import is_at, try_lock

# In the environment, because packing for a run is done by a child process.
_WITHOUT = "IMNET_NO_LOCK"
_TELL_AFTER_S = 1.0


def without_locks() -> None:
    """Go on where a file system has no locks: whoever asks for it sees to it that no second process writes there."""
    os.environ[_WITHOUT] = "1"


_ELSEWHERE = "set XDG_CACHE_HOME to a folder that may be written"


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/imnet`` or ``~/.cache/imnet``; not created here."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "imnet"
    except RuntimeError as error:  # a user whom the machine does not know, as in some containers
        raise UsageError("got no folder for what is kept: this user has no home", hint=_ELSEWHERE) from error


@contextlib.contextmanager
def io_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError inside into ONE IOFailure that says what was being done, to which file, and why it failed."""
    try:
        yield
    except OSError as error:
        hint = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check path and permissions"
        with contextlib.suppress(UsageError):
            hint += f", or {_ELSEWHERE}" * path.is_relative_to(cache_dir())
        raise IOFailure(f"cannot {doing}: {error.strerror or error}", file=path, hint=hint) from error


@contextlib.contextmanager
def reading(path: Path | str, offset: str | None = None) -> Iterator[None]:
    """Turn an OSError inside into ONE IOFailure: what lies at ``path`` (in an archive: its member) cannot be read."""
    try:
        yield
    except OSError as error:
        what = f"cannot read: {error.strerror or error}"
        raise IOFailure(what, file=error.filename or path, offset=offset) from error


FileState = tuple[int, int, int]
"""Size in bytes, time of modification and time of change of the entry in ns: others when a file is another one."""


def file_state(path: Path | str) -> FileState:
    """The state of a file now; IOFailure where it is not there or out of reach."""
    with reading(path):
        status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def refuse_changed(path: Path | str, before: FileState) -> None:
    """DataError for a file that was listed when its state was ``before``, and is another one now."""
    if file_state(path) != before:
        hint = "run again once nothing writes there"
        raise DataError("changed while it was read", file=path, hint=hint)


def make_dir(path: Path) -> Path:
    """Create a folder and its parents; IOFailure where that is refused."""
    with io_errors(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


@contextlib.contextmanager
def locked(path: Path, wait_s: float = 600.0) -> Iterator[int]:
    """Hold an exclusive lock on the file ``path`` (created if absent) and yield its descriptor.

    On a file system without locks that is an error, or goes on without one after ``without_locks()``.

    The lock dies with the process, so a stale file never blocks. The file may be renamed or removed by its last holder
    while others wait: they then lock the new one. IOFailure after ``wait_s`` seconds.
    """
    start, told = time.monotonic(), False
    descriptor = _opened(path)
    try:
        while not try_lock(descriptor, path, needed=os.environ.get(_WITHOUT) != "1"):
            waited = time.monotonic() - start
            if waited > wait_s:
                what = f"another process has held it for {wait_s:g} s"
                raise IOFailure(what, file=path, hint="wait for it or end it")
            if waited > _TELL_AFTER_S and not told:
                sys.stderr.write(f"{path}: another process is at it; waiting for it\n")
                told = True
            time.sleep(min(0.05, wait_s / 10))
            if not is_at(descriptor, path):
                os.close(descriptor)
                descriptor = _opened(path)
        yield descriptor
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int:
    with io_errors(path, "open"):
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def publish(part: Path, final: Path, descriptor: int) -> None:
    """fsync the finished file, give it its final name, fsync the folder: it is there whole or not at all."""
    with io_errors(final, "write"):
        os.fsync(descriptor)
        os.rename(part, final)
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
