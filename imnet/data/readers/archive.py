"""Reads archives without extracting them: regular members only, bounded in number and size, names checked. Tars are
listed here, zips in zips.py."""

from __future__ import annotations

import errno
import gzip
import os
import resource
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from imnet.data.files import FileState, file_state, reading
from imnet.data.readers.rule import LFS_POINTER
from imnet.errors import DataError, IOFailure

STORED, DEFLATED = 0, 8
MAX_MEMBERS = 20_000_000
_BLOCK = 512
_MAX_LONG_NAME_BYTES = 1 << 16
_TAIL_BYTES = _UNPACK_BYTES = 1 << 20
# A member that inflates further than this is not an image: photographs do not compress at all, zeros reach 1032.
MAX_RATIO = 200
RATIO_MATTERS_BYTES = 1 << 20
_NO_HOLES = "make the tar without tar's option -S"
_HINTS = dict.fromkeys((b"1", b"2"), "tar -h --hard-dereference puts files in the place of links") | {b"S": _NO_HOLES}
_COMPRESSIONS = {b"BZh": "bzip2", b"\xfd7z": "xz", b"(\xb5/": "zstd"}
# Path of a gzipped tar -> (its state, the unpacked file). Forked workers share the files, so they read with pread only.
_UNPACKED: dict[str, tuple[FileState, BinaryIO]] = {}


class Member(NamedTuple):
    """A regular member: the ``offset`` of its bytes (in a zip: of its local header), their number packed (``size``) and
    unpacked (``full``), the compression method, and the crc32 (-1 if the archive has none)."""

    name: str
    offset: int
    size: int
    full: int
    method: int = STORED
    crc: int = -1


def refuse_pointer(file: BinaryIO, path: Path | str) -> None:
    """Raise DataError if the file is a Git LFS pointer. The file is at its beginning before and after."""
    if file.read(len(LFS_POINTER)) == LFS_POINTER:
        raise DataError("a Git LFS pointer, not the file", file=path, hint="git lfs pull")
    file.seek(0)


def by_name(members: Iterable[Member], path: Path) -> dict[str, Member]:
    """{name: member} in archive order. DataError if two have the same name, of which tar would keep only the last."""
    found: dict[str, Member] = {}
    for member in members:
        if found.setdefault(member.name, member) is not member:
            raise DataError("two members have this name", file=path, offset=member.name)
    return found


def check_name(name: str, path: Path) -> str:
    """Return ``name``; DataError if it points outside the archive, which is hostile even if nothing is extracted."""
    parts = name.replace("\\", "/").split("/")
    if not name:
        raise DataError("a member has no name", file=path)
    if name.startswith(("/", "\\")) or ".." in parts or (len(name) > 1 and name[1] == ":") or "\0" in name:
        raise DataError("member name points outside the archive", file=path, offset=repr(name)[:200])
    return name


def list_tar(file: BinaryIO, path: Path, start: int = 0, length: int | None = None) -> Iterator[Member]:
    """The regular members of the tar in ``length`` bytes from ``start`` (a tar in a tar), by default the whole file.

    Folders are skipped. Raises DataError with the offset or the name for links, devices, path traversal, damage and
    truncation.
    """
    fd = file.fileno()
    end = os.fstat(fd).st_size if length is None else start + length
    at, count, long_name, long_size = start, 0, None, None
    while True:
        head = os.pread(fd, _BLOCK, at)
        if at + _BLOCK > end or len(head) < _BLOCK:
            raise DataError("tar ends without its end mark: truncated", file=path, offset=min(at, end))
        if head == bytes(_BLOCK):
            _refuse_second(fd, path, at, end)
            return
        name, size, kind = _tar_header(head, path, at)
        size = size if long_size is None or kind in b"xgLK" else long_size
        body, at = at + _BLOCK, at + _BLOCK + -(-size // _BLOCK) * _BLOCK
        if at > end:
            raise DataError(f"tar member {name[:80]!r} of {size} bytes goes beyond the end", file=path, offset=body)
        if kind in b"xgLK":
            long_name, long_size = _extension(fd, path, body, size, kind, long_name, long_size)
            continue
        name, long_name, long_size = long_name or name, None, None
        if kind == b"5":
            continue
        if kind not in (b"0", b"\0", b"7"):
            what = f"tar member is of type {kind!r}; allowed regular files"
            raise DataError(what, file=path, offset=name[:200], hint=_HINTS.get(kind))
        count += 1
        if count > MAX_MEMBERS:
            raise DataError(f"tar has more than {MAX_MEMBERS} members", file=path, offset=body)
        yield Member(plain(check_name(name, path)), body, size, size)


def _refuse_second(fd: int, path: Path, at: int, end: int) -> None:
    """Raise DataError if another tar follows the end mark; all but the first of concatenated tars would be ignored."""
    while at < end and (data := os.pread(fd, min(_TAIL_BYTES, end - at), at)):
        start = len(data) - len(data.lstrip(b"\0"))
        if start < len(data):
            at += start // _BLOCK * _BLOCK
            if _is_header(os.pread(fd, _BLOCK, at), path, at):
                hint = "tar -x -i reads them all: make one tar of that"
                raise DataError("another tar follows the end mark", file=path, offset=at, hint=hint)
            return
        at += len(data)


def _is_header(head: bytes, path: Path, at: int) -> bool:
    with suppress(DataError):
        return len(head) == _BLOCK and _tar_header(head, path, at)[1] >= 0
    return False


def plain(name: str) -> str:
    """``./cat//1.jpg`` -> ``cat/1.jpg``; archives of a folder ``.`` have names that begin with ``./``."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _tar_header(head: bytes, path: Path, at: int) -> tuple[str, int, bytes]:
    """(name, size, type) from a header block; DataError if its checksum is wrong."""
    hint = "get the file again"
    try:
        stored = int(head[148:156].split(b"\0")[0].strip() or b"-1", 8)
        size = int.from_bytes(head[125:136], "big") if head[124] == 0x80 else int(
            head[124:136].split(b"\0")[0].strip() or b"0", 8
        )  # fmt: skip
    except ValueError as error:
        raise DataError("tar header is damaged (not octal)", file=path, offset=at, hint=hint) from error
    actual = sum(head[:148]) + 8 * 32 + sum(head[156:])
    if stored != actual or size < 0:
        raise DataError(f"tar header checksum is {stored}, expected {actual}", file=path, offset=at, hint=hint)
    name = head[:100].split(b"\0")[0]
    prefix = head[345:500].split(b"\0")[0] if head[257:263] == b"ustar\0" else b""
    return os.fsdecode(prefix + b"/" + name if prefix else name), size, head[156:157]


def _extension(
    fd: int, path: Path, body: int, size: int, kind: bytes, name: str | None, full: int | None
) -> tuple[str | None, int | None]:
    """(name, size) of the next member after a GNU long-name or pax block; what the block lacks is unchanged."""
    if size > _MAX_LONG_NAME_BYTES:
        raise DataError(f"tar extension block has {size} bytes; allowed {_MAX_LONG_NAME_BYTES}", file=path, offset=body)
    data = os.pread(fd, size, body)
    if kind == b"L":
        return os.fsdecode(data.rstrip(b"\0")), full
    if kind != b"x":
        return name, full
    for key, value in _pax_records(data, path, body):
        if key.startswith(b"GNU.sparse."):  # GNU tar gives such a member the type of a regular file
            raise DataError("tar member is sparse; allowed regular files", file=path, offset=body, hint=_NO_HOLES)
        if key == b"path":
            name = os.fsdecode(value)
        if key == b"size":
            if not value.isdigit() or len(value) > 18:
                raise DataError("pax size is not a number", file=path, offset=body)
            full = int(value)
    return name, full


def _pax_records(data: bytes, path: Path, body: int) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at < len(data):
        digits = data[at : at + 12].split(b" ")[0]
        length = int(digits) if digits.isdigit() else 0
        key, equals, value = data[at + len(digits) + 1 : at + length - 1].partition(b"=")
        if length <= len(digits) or at + length > len(data) or not equals:
            raise DataError("pax record is damaged", file=path, offset=body + at)
        yield key, value
        at += length


@contextmanager
def open_tar(path: Path | str) -> Iterator[BinaryIO]:
    """Open a tar for reading with ``os.pread``. A gzipped tar is unpacked once into a nameless temporary file, which
    disappears with the process. DataError for other compressions."""
    held = _UNPACKED.get(os.fspath(path))
    if held is not None and held[0] == file_state(path):
        yield held[1]
        return
    with reading(path), open(path, "rb") as file:
        refuse_pointer(file, path)
        magic = file.read(3)
        if magic in _COMPRESSIONS:
            what = f"tar is compressed with {_COMPRESSIONS[magic]}; allowed none or gzip"
            raise DataError(what, file=path, hint="unpack it first")
        yield _unpacked(path, file) if magic[:2] == b"\x1f\x8b" else file


def _allow_open_files() -> None:
    """Raise the limit of open files as far as the system allows: each unpacked tar is one, perhaps of thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS reports no limit but refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


@contextmanager
def gzip_errors(path: Path | str) -> Iterator[None]:
    """Turn the errors of reading a damaged gzip stream into a DataError."""
    try:
        yield
    except EOFError as error:
        raise DataError("gzip stream ends early: truncated", file=path, hint="get the file again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"gzip stream is damaged: {error}", file=path, hint="get the file again") from error


@contextmanager
def unpacking(path: Path | str) -> Iterator[None]:
    """Turn an OSError of unpacking into a temporary file into an IOFailure that says where it needs room."""
    try:
        yield
    except OSError as error:
        what = f"cannot unpack it: {error.strerror or error}"
        # None if no folder for temporary files can be written.
        hint = f"make room in {tempfile.tempdir} or set TMPDIR" if tempfile.tempdir else "set TMPDIR"
        hint = "raise ulimit -n, or unpack them to .tar" if error.errno == errno.EMFILE else hint
        raise IOFailure(what, file=path, hint=hint) from error


def _unpacked(path: Path | str, file: BinaryIO) -> BinaryIO:
    state = file_state(path)
    limit = max(RATIO_MATTERS_BYTES, MAX_RATIO * state[0])
    file.seek(0)
    _allow_open_files()
    with unpacking(path):
        out = tempfile.TemporaryFile(prefix="imnet-tar-")  # noqa: SIM115  (it stays open)
        with gzip_errors(path), gzip.GzipFile(fileobj=file) as stream:
            while block := stream.read(_UNPACK_BYTES):
                if out.tell() + len(block) > limit:
                    raise DataError(f"tar bomb: it unpacks to more than {MAX_RATIO} times its size", file=path)
                out.write(block)
        out.flush()
    _UNPACKED[os.fspath(path)] = (state, out)
    return out
