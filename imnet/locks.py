"""File locks that end with the process that holds them, so that a killed process blocks nobody."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from imnet.errors import IOFailure

NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
"""Errors of flock on a file system without locks, such as many NFS mounts."""


def try_lock(descriptor: int, path: Path, needed: bool = True) -> bool:
    """Lock the open file ``path`` exclusively, without waiting; returns whether the lock is held.

    Returns False if another process holds the lock, or if its last holder has removed or renamed the file: a lock on a
    file that is no longer at its path keeps nobody out. On a file system without locks, raises IOFailure if ``needed``,
    else goes on without.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise IOFailure(f"cannot lock: {error.strerror}", file=path) from error
        if needed:
            what = f"this file system has no locks ({error.strerror})"
            hint = "--no-lock goes on without: then nothing keeps a second process from writing here"
            raise IOFailure(what, file=path, hint=hint) from error
    return is_at(descriptor, path)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file or folder is still the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
