"""Files that are either whole or absent."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from imnet.errors import IOFailure


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write under a temporary name, fsync, rename. Raises IOFailure and leaves the old file."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
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
