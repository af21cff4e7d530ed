"""Tars that lie gzipped: unpacked once into a nameless temporary file, which goes when the process does."""

from __future__ import annotations

import gzip
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from imnet.data.readers.rule import LFS_POINTER
from imnet.errors import DataError, IOFailure

# Pictures do not compress at all; what grows further than this is no tar of pictures.
_MAX_RATIO = 200
_RATIO_MATTERS_BYTES = 1 << 20
_BLOCK_BYTES = 1 << 20
_OTHERS = {b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/": "zstd"}
# Path -> (size, mtime_ns, unpacked file); forked workers share them and read with pread alone.
_UNPACKED: dict[str, tuple[int, int, BinaryIO]] = {}


@contextmanager
def open_tar(path: Path | str) -> Iterator[BinaryIO]:
    """A tar to read with ``os.pread``, its gzip undone; DataError for another compression."""
    held = _UNPACKED.get(os.fspath(path))
    if held is not None and held[:2] == _state(path):
        yield held[2]
        return
    try:
        with open(path, "rb") as file:
            magic = file.read(len(LFS_POINTER))
            if magic == LFS_POINTER:
                raise DataError("a Git LFS pointer, not the file", file=path, hint="git lfs pull")
            if magic[:3] in _OTHERS:
                what = f"tar is compressed with {_OTHERS[magic[:3]]}; allowed none or gzip"
                raise DataError(what, file=path, hint="unpack it first")
            yield _unpacked(path, file) if magic[:2] == b"\x1f\x8b" else file
    except OSError as error:
        raise IOFailure(f"cannot read: {error.strerror or error}", file=path) from error


def _state(path: Path | str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


def _unpacked(path: Path | str, file: BinaryIO) -> BinaryIO:
    size, modified = _state(path)
    limit = max(_RATIO_MATTERS_BYTES, _MAX_RATIO * size)
    file.seek(0)
    out = tempfile.TemporaryFile(prefix="imnet-tar-")  # noqa: SIM115  (it is kept)
    try:
        with gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(_BLOCK_BYTES):
                if out.tell() + len(block) > limit:
                    raise DataError(f"tar bomb: it unpacks to more than {_MAX_RATIO} times its size", file=path)
                out.write(block)
    except EOFError as error:
        raise DataError("gzip stream ends early: truncated", file=path, hint="get the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"gzip stream is damaged: {error}", file=path, hint="get the file again") from error
    except OSError as error:
        what = f"cannot unpack it: {error.strerror or error}"
        raise IOFailure(what, file=path, hint=f"make room in {tempfile.gettempdir()} or set TMPDIR") from error
    out.flush()
    _UNPACKED[os.fspath(path)] = (size, modified, out)
    return out
