"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import glob
import json
import os
from pathlib import Path
from typing import Any

from imnet.errors import IOFailure


def temporary_of(path: Path) -> Path:
    """Under which name this process writes what will be ``path``; what killed processes left of it is removed."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        pid = left.name.split(".")[-2]
        if pid.isdigit() and not _is_alive(int(pid)):
            with contextlib.suppress(OSError):
                left.unlink()
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name, fsync, rename; a device or a pipe is written as it is, not replaced. Raises
    IOFailure and leaves the old file."""
    temporary = temporary_of(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(data)
            return
        with temporary.open("wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        temporary.rename(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise IOFailure(f"not written: {error.strerror}", file=path, hint="check space and permissions") from error


def write_json(path: Path, value: Any) -> None:
    """``value`` as indented JSON, atomically."""
    write_atomic(path, json.dumps(value, indent=1) + "\n")
