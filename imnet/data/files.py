"""I/O errors, folders, locks and atomic renames, shared by the readers, the downloader and the packed store."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from imnet.errors import DataError, IOFailure, UsageError
from imnet.files import exists
from imnet.locks import is_at, try_lock

# An environment variable, because a child process packs the data for a run.
_WITHOUT = "IMNET_NO_LOCK"
_TELL_AFTER_S = 1.0


def without_locks() -> None:
    """Allow this process and its children to write without a lock to file systems that have none. The user then has to
    make sure that no second process writes there."""
    os.environ[_WITHOUT] = "1"


_ELSEWHERE = "set XDG_CACHE_HOME to a folder that may be written"


def environment_path(name: str) -> Path | None:
    """The path that the environment variable ``name`` holds, or None. Its ``~`` is expanded, which no shell has done
    if it comes from an .env file or was set in quotes."""
    text = os.environ.get(name)
    return Path(os.path.expanduser(text)) if text else None


def cache_dir() -> Path:
    """``$XDG_CACHE_HOME/imnet`` or ``~/.cache/imnet``; does not create it."""
    root = environment_path("XDG_CACHE_HOME")
    try:
        return (root or Path.home() / ".cache") / "imnet"
    except RuntimeError as error:  # the user has no entry in the password database, as in some containers
        raise UsageError("got no folder for what is kept: this user has no home", hint=_ELSEWHERE) from error


@contextlib.contextmanager
def io_errors(path: Path, doing: str) -> Iterator[None]:
    """Turn an OSError inside into one IOFailure that states what was being done, to which file, and why it failed."""
    try:
        yield
    except OSError as error:
        hint = "free some space there" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "check path and permissions"
        with contextlib.suppress(UsageError):
            hint += f", or {_ELSEWHERE}" * path.is_relative_to(cache_dir())
        raise IOFailure(f"cannot {doing}: {error.strerror or error}", file=path, hint=hint) from error


@contextlib.contextmanager
def reading(path: Path | str, offset: str | None = None) -> Iterator[None]:
    """Turn an OSError inside into one IOFailure: ``path`` (a file, or a member of an archive) cannot be read."""
    try:
        yield
    except OSError as error:
        what = f"cannot read: {error.strerror or error}"
        raise IOFailure(what, file=error.filename or path, offset=offset) from error


FileState = tuple[int, int, int]
"""(size in bytes, mtime in ns, ctime in ns); a file that was changed or replaced has another state."""


def file_state(path: Path | str) -> FileState:
    """The current state of a file; IOFailure if it is missing or cannot be accessed."""
    with reading(path):
        status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def refuse_changed(path: Path | str, before: FileState) -> None:
    """Raise DataError if the file's state is no longer ``before``, the state that it had when it was listed."""
    if file_state(path) != before:
        hint = "run again once nothing writes there"
        raise DataError("changed while it was read", file=path, hint=hint)


def make_dir(path: Path) -> Path:
    """Create a folder and its parents; IOFailure if that fails."""
    with io_errors(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def refuse_run(folder: Path) -> None:
    """UsageError if data would be written into a run's folder, which would then be read both as data and as a run."""
    if exists(folder / "run.json"):
        what = "got the folder of a run as the target: data would lie beside the run's files"
        raise UsageError(what, file=folder, hint="name another folder")


@contextlib.contextmanager
def locked(path: Path, wait_s: float = 600.0) -> Iterator[int]:
    """Hold an exclusive lock on the file ``path`` (created if absent) and yield its descriptor.

    Raises IOFailure after ``wait_s`` seconds, and on a file system without locks unless ``without_locks()`` was called.

    The lock ends with the process, so that a stale file never blocks. If the last holder renames or removes the file
    while others wait, they lock the new one.
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
    """fsync the finished file ``part``, rename it to ``final`` and fsync the folder, so that ``final`` is complete or
    absent even after a crash. ``descriptor`` is the open file."""
    with io_errors(final, "write"):
        os.fsync(descriptor)
        os.rename(part, final)
        folder = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
